"""`python launch.py`: one run, and what a wrong command line says. Bad input leaves one line and no file."""

import hashlib
import itertools
import json
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from edkd import models
from edkd.config.compose import quoted
from edkd.rundir import checkpoint
from edkd.teachers import store as teacher_store
from tests.commandline import REPOSITORY, Ended, error, files, journals, launch, metrics, python

DATA = "digits-8-20perclass-test10"  # the key of the `tiny` data set
RUN = f"runs/{DATA}"
METHODS = ", ".join(sorted(path.stem for path in (REPOSITORY / "conf" / "distiller").glob("*.yaml")))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stray files would show up here."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "outputs" / "teachers"


@pytest.fixture
def teacher(store: Path) -> Path:
    """The weights file of a teacher resnet8 that learnt nothing."""
    torch.manual_seed(0)
    state = models.resnet8(num_classes=10).state_dict()
    about = {"id": "file:0", "source": "a test", "epochs": None, "recipe": None, "test": None, "num_classes": 10}
    entry, _ = teacher_store.publish(store, DATA, "resnet8", state, replace=False, **about)
    return entry.path


def reseal(weights: Path) -> None:
    """Make the sidecar agree with a file that was altered."""
    sidecar = weights.with_suffix(".json")
    entry = json.loads(sidecar.read_text())
    entry["sha256"] = hashlib.sha256(weights.read_bytes()).hexdigest()
    sidecar.write_text(json.dumps(entry))


def test_help_whose_reader_has_enough() -> None:
    command = [sys.executable, str(REPOSITORY / "launch.py"), "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""


@pytest.mark.parametrize(
    ("arguments", "line", "expected"),
    [
        (["--help"], "", "Train a student network"),
        (["-sc", "query=bash"], "python launch.py -m distiller=edk", "distiller=edkd"),
        (["-sc", "install=bash"], "", "complete -o nospace"),
    ],
)
def test_help_and_tab_completion_do_without_torch(arguments: list[str], line: str, expected: str) -> None:
    code = (
        "import sys; sys.argv[0] = 'launch.py'; from edkd.cli.launch import main\n"
        "try: main()\n"
        "finally: print({'torch', 'mlflow'} & set(sys.modules), file=sys.stderr)"
    )
    done = python("-c", code, *arguments, COMP_LINE=line)
    assert (done.code, done.err) == (0, "set()\n")
    assert expected in done.out


def test_the_commands_of_the_help_are_those_of_the_configuration(tiny: list[str]) -> None:
    said = launch("--help").out
    launchers = [path.stem for path in (REPOSITORY / "conf" / "hydra" / "launcher").glob("*.yaml")]
    assert all(name in said for name in launchers)
    assert said.index("+dry_run") < said.index("Groups (") < said.index("distiller: at, ") < said.index("Values (")


# ---- one run


def test_one_run(tiny: list[str], here: Path) -> None:
    dry = launch(*tiny, "distiller=vanilla", "tracking=sqlite", "+dry_run=true")
    assert dry.code == 0
    assert f"would train {DATA}/resnet8/vanilla-s0-" in dry.err and "for 2 epochs" in dry.err
    assert dry.err.count("\n") == 2 and "\nestimate: none yet, " in dry.err
    assert "1 run: 1 new" in launch(*tiny, "distiller=vanilla", "--multirun", "+dry_run=true").out  # -m, anywhere
    late = launch(*tiny, "distiller=vanilla", "schedule.milestones=[1,2]", "+dry_run=true").err
    assert late.startswith("schedule.milestones 2: never reached in 2 epochs; fractions, such as 0.625, follow ")
    many = launch("-m", *tiny, "distiller=vanilla", "schedule.milestones=[1,2]", "seed=0,1", "+dry_run=true").err
    assert many.count("never reached") == 1
    assert files(here) == set()

    done = launch(*tiny, "distiller=vanilla")
    assert done.code == 0, done
    (records,) = journals(here / "outputs").values()
    assert [record["event"] for record in records] == ["start", "epoch", "epoch", "end"]
    end = records[-1]
    assert f"top-1 last {end['last']['top1']:.2f} %, best {end['best']['top1']:.2f} %" in done.out
    assert f"{DATA}/resnet8/vanilla-s0-" in done.out
    assert "epoch 2/2: train loss" in done.err
    assert {path.name for path in here.iterdir()} == {"outputs"}
    assert {path.name for path in (here / "outputs").iterdir()} == {"runs", "teachers"}

    before = files(here)
    again = launch(*tiny, "distiller=vanilla")
    assert (again.code, again.out) == (0, done.out.replace("\n", " (finished before)\n", 1))
    assert journals(here / "outputs") == {"resnet8/vanilla-s0": records}
    assert files(here) == before
    assert (
        f"resnet8/vanilla-s0-{records[0]['run'][:8]} is finished"
        in launch(*tiny, "distiller=vanilla", "+dry_run=true").err
    )

    taught = launch(*tiny, "distiller=edkd")  # by the network that the first run put into the store
    assert taught.code == 0, taught
    start = journals(here / "outputs")["resnet8-resnet8/edkd-s0"][0]
    assert start["teacher"]["id"] == f"run:{records[0]['run']}"
    assert start["teacher"]["top1"] == end["last"]["top1"]


def test_a_process_of_its_own(tiny: list[str], here: Path) -> None:
    done = python(str(REPOSITORY / "launch.py"), *tiny, "distiller=vanilla", "seed=3")
    assert done.code == 0, done
    assert list(journals(here / "outputs")) == ["resnet8/vanilla-s3"]
    assert {path.name for path in here.iterdir()} == {"outputs"}

    failed = python(str(REPOSITORY / "launch.py"), *tiny, "distiller=vanila")
    assert "distiller=vanila: no such option, did you mean vanilla?" in error(failed)


def test_interrupted_and_continued(tiny: list[str], here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [*tiny, "distiller=vanilla"]
    with monkeypatch.context() as patch:
        save = checkpoint.save

        def interrupted(*arguments: Any) -> None:
            save(*arguments)
            raise KeyboardInterrupt

        patch.setattr(checkpoint, "save", interrupted)
        stopped = launch(*command)
    assert stopped.code == 130
    assert stopped.out == "" and "interrupted; the same command continues" in stopped.err
    assert launch(*command).code == 0
    (records,) = journals(here / "outputs").values()
    assert [r["event"] for r in records] == ["start", "epoch", "interrupted", "start", "epoch", "end"]
    assert launch(*command, f"output={here / 'straight'}").code == 0
    (straight,) = journals(here / "straight").values()
    assert metrics(records) == metrics(straight)


@pytest.mark.parametrize("text", ["plain", "a b", "o'b", "back\\slash", "\\'", "end\\", "${x}", '"two"', "a,b=c"])
def test_any_text_as_the_value_of_an_override(text: str) -> None:
    (override,) = OverridesParser.create().parse_overrides([f"+key={quoted(text)}"])
    assert OmegaConf.create({"key": override.value()}).key == text


def test_help_lists_groups_and_values() -> None:
    done = launch("--help")
    assert done.code == 0
    assert f"distiller: {METHODS}\n" in done.out and "weight_decay: 0.0005" in done.out


# ---- wrong configuration


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "distiller=kdd",
            f"distiller=kdd: no such option, did you mean kd?; allowed: {METHODS}",
        ),
        ("distiler=kd", "distiler: no such group or key, did you mean distiller?; allowed: allow_weak_teacher, "),
        ("pair=vgg13-vgg9", "pair=vgg13-vgg9: no such option, did you mean vgg13-vgg8?"),
        ("foo=1", "foo: no such group or key; allowed: "),
        ("dry_run=true", "dry_run is no value of a run: write +dry_run=true"),
        ("~teacher", "~teacher: a run needs one; allowed are the options of conf/teacher"),
        ("output=a?b tracking=sqlite", "tracking.uri=sqlite:///a?b/mlflow.db: a SQLite file's path may hold no '?'"),
        ("schedule=null", "schedule=null: an option's name is a text; allowed: cifar240, "),
        (f"distiller=vanilla student.name={'x' * 101}", f"student.name={'x' * 101}: a name has up to 100 letters, "),
        ("+foo=1", "foo: no such value; allowed: seed, "),
        (
            "distiller.temprature=2",
            "distiller.temprature: no such key in distiller=edkd, did you mean temperature?; allowed: ",
        ),
        (
            "distiller=kd distiller.beta=2",
            "distiller.beta: no such key in distiller=kd; allowed: _target_, ce_weight, family, kd_weight, ",
        ),
        ("schedule.epoch=3", "schedule.epoch: no such key in schedule=short, did you mean epochs?"),
        ("dataset.sorce.root=x", "dataset.sorce.root: no such key in dataset=digits, did you mean source?"),
        ("+schedule.epoch=3", "schedule.epoch: no such value; allowed: epochs, "),
        (
            "++dataset.train_per_clas=8",
            "dataset.train_per_clas: nothing uses such a value, did you mean train_per_class?; allowed: flip, ",
        ),
        ("+student.lrr=8", "student.lrr: nothing uses such a value, did you mean lr?; allowed: lr, model, name"),
        (
            "student=timm student.arch=resnet10t student.options.in_chans=1",
            "student.options.in_chans: it has no such entry yet; +student.options.in_chans=VALUE adds one",
        ),
        (
            "student=timm student.arch=resnet10t +student.option.in_chans=1",
            "student.option: nothing uses such a value, did you mean options?; allowed: arch, feats, ",
        ),
        ("hydra.run.dri=x", "hydra.run.dri: no such key in hydra.run, did you mean dir?"),
        ("distiller=dkd distiller.temperature=0", "distiller.temperature=0: must be above 0"),
        ("engine.device=gpu", "engine.device=gpu: allowed: auto, cpu, cuda, cuda:N"),
        ("dataset=folder", "dataset.root has no value yet: set dataset.root=…"),
        ("schedule.lr=${schedule.rate}", "schedule.lr: Interpolation key 'schedule.rate' not found"),
        ("dataset=folder dataset.root=x", "dataset.name has no value yet: set dataset.name=…"),
        ("seed=0,1", "seed=0,1: several values are a sweep: add -m"),
        ("seed=[", "seed=[ is no KEY=VALUE: "),
        ("distiller=kd,", "distiller=kd, is no KEY=VALUE: it ends where a value is expected"),
        ("seed", "seed is no KEY=VALUE: "),
        ("pair=all", "several pairs are a sweep: add -m, or name one pair"),
        ("tracking.uri=mlruns", "tracking URI 'mlruns': folders such as ./mlruns"),
        ("+dry_run=perhaps", "dry_run=perhaps: must be true or false"),
    ],
)
def test_a_wrong_configuration(tiny: list[str], teacher: Path, here: Path, arguments: str, message: str) -> None:
    before = files(here)
    assert error(launch(*tiny, "schedule.epochs=1", *arguments.split())).startswith(message)
    assert files(here) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "distiller=kd,kdd",
            f"distiller=kdd: no such option, did you mean kd?; allowed: {METHODS}",
        ),
        ("seed=0,1 schedule.epoch=3", "schedule.epoch: no such key in schedule=short, did you mean epochs?"),
        (
            "distiller=edkd,kd distiller.beta=2",
            "distiller.beta: no such key in distiller=kd; allowed: _target_, ce_weight, family, kd_weight, ",
        ),
        (
            "distiller=kd,fitnet distiller.hint_stage=1",
            "distiller.hint_stage: no such key in distiller=edkd; ++distiller.hint_stage=… is checked with each of ",
        ),
        (
            "distiller=kd,fitnet ++distiller.hint_stage=1",
            "distiller.hint_stage: no such value; allowed: ce_weight, kd_weight, temperature, standardise",
        ),
        ("distiller=kd,dkd distiller.temperature=4,0", "distiller.temperature=0: must be above 0"),
        ("distiller=kd,nan", "distiller=kd,nan: an option's name is a text; allowed: "),
        (
            "schedule.lr=interval(0,1)",
            "schedule.lr=interval(0,1): only lists of values can be swept, such as schedule.lr=1,2,3; hydra/sweeper=",
        ),
        ("pair=all", "pair= names teacher and student: leave out student= and teacher="),
        ("+dry_run=perhaps", "dry_run=perhaps: must be true or false"),
        (
            "hydra.launcher.n_jobs=2",
            "hydra.launcher.n_jobs: no launcher is chosen that has values; hydra/launcher=local",
        ),
        ("hydra/launcher=local hydra.launcher.n_jobs=0", "hydra.launcher.n_jobs is 0; allowed: 1 or more runs"),
        ("teacher.model.options={a:1}", "teacher.model.options: no such key in teacher.model"),
        ("teacher.model={a:1}", "teacher.model: it has no such entry yet; +teacher.model.NAME=VALUE adds one"),
        ("hydra/launcher=lokal", "hydra/launcher=lokal: no such option, did you mean local?; allowed: basic, "),
        (
            "student=resnet8,resnet9",
            "student=resnet9: no such option, did you mean resnet8?; allowed: imagenet_resnet18, ",
        ),
    ],
)
def test_a_wrong_sweep(tiny: list[str], here: Path, arguments: str, message: str) -> None:
    assert error(launch("-m", *tiny, *arguments.split())).startswith(message)
    assert files(here) == set()


@pytest.mark.parametrize("multirun", [[], ["-m"]])
def test_a_file_that_is_no_yaml(here: Path, multirun: list[str]) -> None:
    file = here / "own" / "distiller" / "bad.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("weight: 0.1\n  bad yaml: [\n")
    message = error(launch("--config-dir", "own", *multirun, "distiller=bad"))
    assert message == f'mapping values are not allowed here in "{file}", line 2, column 11'


@pytest.mark.parametrize("multirun", [[], ["-m"]])
def test_a_file_that_is_not_utf8(here: Path, multirun: list[str]) -> None:
    file = here / "own" / "distiller" / "bad.yaml"
    file.parent.mkdir(parents=True)
    file.write_bytes("_target_: edkd.distillers.kd.KD\n".encode("utf-16"))
    message = error(launch("--config-dir", "own", *multirun, "distiller=bad"))
    assert message == "own/distiller/bad.yaml: YAML files are text in UTF-8, this one is not (invalid start byte)"


def test_the_configuration_is_shown_by_either_name_of_the_option(here: Path) -> None:
    assert launch("-c", "job", "seed=7").out == launch("--cfg", "job", "seed=7").out
    assert launch("seed=7", "-c", "job").out.startswith("seed: 7\n")


def test_keys_that_other_values_refer_to_are_used(tiny: list[str], here: Path) -> None:
    done = launch(*tiny, "distiller=vanilla", "+student.rate=0.02", "schedule.lr=${student.rate}", "+dry_run=true")
    assert done.code == 0, done


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--config-dir", "argument --config-dir/-cd: expected one argument"),
        ("--config-name", "argument --config-name/-cn: expected one argument"),
        ("--multi-run", "unrecognized arguments: --multi-run"),
    ],
)
def test_a_wrong_option(here: Path, option: str, message: str) -> None:
    assert launch(option) == Ended(2, "", f"launch.py: {message}; see launch.py --help\n")


# ---- data


def cifar(root: Path, *more: str) -> list[str]:
    return ["dataset=cifar100", f"dataset.root={root}", "distiller=vanilla", "student=resnet8", *more]


def test_data_that_are_missing_incomplete_or_corrupt(here: Path) -> None:
    offline = cifar(here / "data", "dataset.download=false")
    assert "CIFAR-100 not found: looked for " in error(launch(*offline))
    assert files(here) == set()

    folder = here / "data" / "cifar-100-python"
    folder.mkdir(parents=True)
    assert "CIFAR-100 not found: looked for " in error(launch(*offline))
    (folder / "train").write_bytes(b"not a pickle")
    assert "has no test, meta" in error(launch(*offline))
    (folder / "test").write_bytes(b"")
    (folder / "meta").write_bytes(b"")
    assert "CIFAR-100 is corrupt: train, test, meta in " in error(launch(*offline))
    assert "CIFAR-100 is corrupt: train, test, meta in " in error_after_plan(launch("-m", *offline, "seed=0,1"))
    assert {path.name for path in here.iterdir()} == {"data"}


def error_after_plan(ended: Any) -> str:
    """The message of a sweep that printed its plan and failed before it launched anything."""
    assert ended.out.startswith("stage ")
    return error(ended._replace(out=""))


def test_no_network(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:  # bound and never listening: connections are refused
        closed.bind(("127.0.0.1", 0))
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{closed.getsockname()[1]}")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(urllib.request, "_opener", None)  # urlopen keeps the proxies of its first call
        message = error(launch(*cifar(here / "data")))
    assert message.startswith("could not download https://") and "Connection refused" in message
    assert "dataset.root=DIR names a folder with cifar-100-python/ and dataset.download=false" in message
    assert files(here) <= {"data", "data/.cifar-100-python.tar.gz.lock"}


def test_own_images_that_are_missing_or_corrupt(here: Path) -> None:
    birds = ["dataset=folder", "dataset.name=birds", f"dataset.root={here / 'birds'}", "distiller=vanilla"]
    assert error(launch(*birds)).startswith(f"no folder {here / 'birds' / 'train'}; dataset.root=DIR names a folder")
    for part, name in itertools.product(("train", "test"), ("crow", "owl")):
        (here / "birds" / part / name).mkdir(parents=True)
    assert error(launch(*birds)).startswith(f"{here / 'birds' / 'train'} lacks images: ")
    for part, name in itertools.product(("train", "test"), ("crow", "owl")):
        (here / "birds" / part / name / "1.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    assert error(launch(*birds)).startswith(f"cannot read the image {here / 'birds' / 'train' / 'crow' / '1.png'}")
    assert {path.name for path in here.iterdir()} == {"birds"}


# ---- teachers


def test_no_teacher(tiny: list[str], here: Path) -> None:
    message = error(launch(*tiny, "distiller=kd"))
    assert message.startswith(f"no teacher resnet8 for the data set {DATA} in ")
    assert "`python launch.py distiller=vanilla student=resnet8 seed=0`" in message
    assert "edkd teachers import resnet8 FILE" in message
    assert files(here) == set()


def test_a_teacher_of_another_architecture_is_refused_before_anything_is_written(
    tiny: list[str], teacher: Path, here: Path
) -> None:
    torch.save({"model": models.resnet14(num_classes=10).state_dict()}, teacher)
    reseal(teacher)
    before = files(here)
    said = error(launch(*tiny, "distiller=kd", "tracking=sqlite"))
    assert f"{teacher}) does not fit the architecture ResNet: of 56 entries 36 unexpected (layer1.1." in said
    assert files(here) == before


# ---- places that cannot be written


@pytest.mark.parametrize("sweep", [(), ("-m",)], ids=["run", "sweep"])
def test_a_database_that_cannot_be_written(tiny: list[str], teacher: Path, here: Path, sweep: tuple[str, ...]) -> None:
    database = here / "outputs" / "mlflow.db"
    database.mkdir()
    done = launch(*sweep, *tiny, "distiller=kd", "tracking=sqlite")
    message = error_after_plan(done) if sweep else error(done)
    assert message.startswith(f"MLflow store {database} cannot be used (") and message.count("tracking=journal") == 1
    assert not (here / "outputs" / "runs").exists()
    assert not (here / "outputs" / "mlartifacts").exists()


def test_a_server_that_is_away_does_not_stop_the_training(
    tiny: list[str], here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{closed.getsockname()[1]}"
        done = launch(*tiny, "distiller=vanilla", "tracking=server", f"tracking.uri={uri}")
    assert done.code == 0, done
    (before,) = [record.getMessage() for record in caplog.records]
    assert before.startswith(f"MLflow store {uri} failed: ")
    assert before.endswith(f"; training goes on, `edkd sync --uri {uri}` brings MLflow up to date later")
    assert done.err.count(f"tracking failed: MLflow store {uri} failed: ") == 1  # in the run's log
    assert list(journals(here / "outputs")) == ["resnet8/vanilla-s0"]


def test_an_output_folder_that_cannot_be_made(tiny: list[str], here: Path) -> None:
    (here / "outputs").write_text("in the way")
    message = error(launch(*tiny, "distiller=vanilla"))
    assert str(here / "outputs") in message
    assert files(here) == {"outputs"}

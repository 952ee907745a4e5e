"""Sweeps, from the plan to the summary, through the real command line."""

import contextlib
import gc
import json
import os
import re
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from edkd import models, tracking
from edkd.config.compose import quoted
from edkd.errors import EdkdError
from edkd.rundir import checkpoint, journal, lock
from edkd.runs import attempt
from edkd.sweeps import execution, plan, preview
from edkd.training.trainer import TrainState
from tests.commandline import REPOSITORY, Ended, error, files, journals, launch, metrics, python

SEVEN = ["a-b", "c-d", "e-f"]  # stands for the pairs of the table
BRITTLE = '''
"""Methods with the faults of real ones, while a file is there."""

import os
import signal
from pathlib import Path

from edkd.distillers.kd import KD

MARKER = Path(__file__).with_name("marker")


class Raising(KD):
    def forward(self, student, teacher, batch):
        if MARKER.exists() and float(batch.epoch) > 1:
            raise RuntimeError("the marker is there")
        return super().forward(student, teacher, batch)


class Dying(KD):
    def forward(self, student, teacher, batch):
        if MARKER.exists():
            MARKER.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(student, teacher, batch)


class Editing(KD):
    def forward(self, student, teacher, batch):
        Path(__file__).with_name("conf").joinpath("schedule", "mine.yaml").write_text("epochs: [")
        return super().forward(student, teacher, batch)
'''


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with methods and options of a user; `marker` in it makes the methods fail."""
    folder = tmp_path_factory.mktemp("own")
    module = f"brittle_{folder.name}"  # a name of its own, for modules stay imported
    (folder / f"{module}.py").write_text(BRITTLE)
    (folder / "conf" / "distiller").mkdir(parents=True)
    (folder / "conf" / "schedule").mkdir()
    for name in ("Raising", "Dying", "Editing"):
        values = {"_target_": f"{module}.{name}", "ce_weight": 0.1, "kd_weight": 0.9, "temperature": 4.0}
        (folder / "conf" / "distiller" / f"{name.lower()}.yaml").write_text(yaml.safe_dump(values))
    schedule = yaml.safe_load((REPOSITORY / "conf" / "schedule" / "short.yaml").read_text()) | {"epochs": 1}
    (folder / "conf" / "schedule" / "mine.yaml").write_text(yaml.safe_dump(schedule))
    (folder / "marker").touch()
    monkeypatch.syspath_prepend(folder)
    return folder


@pytest.fixture
def networks(tiny: list[str]) -> list[str]:
    """`tiny` with the networks of conf/, which `pair` can choose."""
    return [each for each in tiny if not each.startswith(("teacher=", "student="))]


def swept(tiny: list[str], *arguments: str) -> Ended:
    return launch("-m", *tiny, *arguments)


def events(records: list[dict[str, Any]]) -> list[str]:
    return [record["event"] for record in records]


def plan_of(ended: Ended) -> list[list[str]]:
    """The rows of a printed plan: stage, name without its hash, state."""
    header, *lines = ended.out.splitlines()
    assert header.split() == ["stage", "run", "state"]
    rows = []
    for line in lines:
        if line.startswith("sweep "):
            break
        number, _, name, *state = line.split()
        rows.append([number, name.partition("/")[2].rpartition("-")[0], " ".join(state)])
    return rows


# ---- expanding


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("seed=0", [["seed=0"]]),
        ("seed=0,1", [["seed=0"], ["seed=1"]]),
        ("seed=0,1,0", [["seed=0"], ["seed=1"]]),
        ("seed=range(0,2)", [["seed=0"], ["seed=1"]]),
        (
            "distiller=kd,dkd x=1 seed=1,2",
            [[f"distiller={d}", "x=1", f"seed={s}"] for d in ("kd", "dkd") for s in (1, 2)],
        ),
        ("pair=all", [["pair=a-b"], ["pair=c-d"], ["pair=e-f"]]),
        ("pair=z-z,all", [["pair=z-z"], ["pair=a-b"], ["pair=c-d"], ["pair=e-f"]]),
        ("pair=e-f,all", [["pair=e-f"], ["pair=a-b"], ["pair=c-d"]]),
        ("pair=all seed=0,1", [[f"pair={p}", f"seed={s}"] for p in SEVEN for s in (0, 1)]),
        ("+experiment=all", [["+experiment=all"]]),
        ("name=all", [["name=all"]]),
        ("m=[1,2],[3]", [["m=[1,2]"], ["m=[3]"]]),
        ("m=[1,2]", [["m=[1,2]"]]),
        ("root='/a b'", [["root='/a b'"]]),
        ("root='/a b','/c d'", [["root='/a b'"], ["root='/c d'"]]),
    ],
)
def test_the_product_of_all_choices(arguments: str, expected: list[list[str]]) -> None:
    words = [arguments] if "'" in arguments else arguments.split()
    assert plan.expand(OverridesParser.create().parse_overrides(words), {"all": SEVEN}) == expected


# ---- planning


def test_a_dry_run_shows_the_plan_and_writes_nothing(tiny: list[str], here: Path) -> None:
    done = swept(tiny, "distiller=kd,dkd", "seed=0,1", "tracking=sqlite", "+dry_run=true")
    assert (done.code, done.err) == (0, "")
    assert plan_of(done) == [
        ["1", "resnet8/vanilla-s0", "new"],
        ["2", "resnet8-resnet8/kd-s0", "new"],
        ["2", "resnet8-resnet8/kd-s1", "new"],
        ["2", "resnet8-resnet8/dkd-s0", "new"],
        ["2", "resnet8-resnet8/dkd-s1", "new"],
    ]
    numbers, seeds, estimate, disk = done.out.splitlines()[-4:]
    assert seeds.startswith("WARNING: seed 0 is also that of resnet8: ")
    assert numbers.endswith(": 4 runs: 4 new; teachers to train first: 1")
    assert estimate.startswith("estimate: none yet, no recorded step time for 2 of 2 networks")
    weights = models.resnet8(num_classes=100).state_dict().values()
    size = f"{10 * sum(each.nbytes for each in weights) / 1e6:.2f} MB"
    assert disk == f"disk: {size} of weights at the end, beside the logits of 1 teacher (see docs/teacher-cache.md)"
    assert files(here) == set()


def test_a_dry_run_says_that_the_device_is_not_here(tiny: list[str]) -> None:
    done = swept(tiny, "distiller=vanilla", "engine.device=cuda:99", "+dry_run=true")
    assert done.code == 1 and done.err.startswith("edkd: engine.device=cuda:99 is not here: "), done
    done = swept(tiny, "distiller=vanilla", "engine.device=cuda:99", "hydra/launcher=slurm", "+dry_run=true")
    assert done.code == 0, done


def test_the_whole_table_trains_four_teachers_for_21_students(networks: list[str]) -> None:
    done = swept(networks, "distiller=kd,dkd,edkd", "pair=all", "+dry_run=true")
    rows = plan_of(done)
    assert [name for stage, name, _ in rows if stage == "1"] == [
        f"{name}/vanilla-s0" for name in ("resnet32x4", "wrn_40_2", "vgg13", "resnet50")
    ]
    students = [name for stage, name, _ in rows if stage == "2"]
    assert len(students) == len(set(students)) == 21
    assert students[0] == "resnet32x4-resnet8x4/kd-s0" and students[-1] == "resnet32x4-mobilenetv2/edkd-s0"


def test_a_student_alone_is_trained_once_whatever_the_pairs(networks: list[str]) -> None:
    pairs = "pair=vgg13-vgg8,resnet50-vgg8,vgg13-mobilenetv2"
    rows = plan_of(swept(networks, "distiller=vanilla", pairs, "+dry_run=true"))
    assert [name for _, name, _ in rows] == ["vgg8/vanilla-s0", "mobilenetv2/vanilla-s0"]


def test_teachers_have_a_seed_of_their_own(tiny: list[str]) -> None:
    rows = plan_of(swept(tiny, "distiller=kd", "seed=7,8", "teacher_seed=5", "+dry_run=true"))
    assert [name for _, name, _ in rows] == ["resnet8/vanilla-s5", "resnet8-resnet8/kd-s7", "resnet8-resnet8/kd-s8"]


def test_students_with_the_seed_of_their_teacher_are_warned_of(tiny: list[str]) -> None:
    command = [each for each in tiny if not each.startswith("teacher_seed")]
    usual = swept(command, "distiller=kd", "seed=0,1", "+dry_run=true")
    assert plan_of(usual)[0][1] == "resnet8/vanilla-s1000" and "WARNING" not in usual.out
    warning = (
        "WARNING: seed 1 is also that of resnet8: in each epoch these students see what their teacher was trained on"
    )
    shared = swept(command, "distiller=kd", "seed=0,1", "teacher_seed=1")
    assert shared.code == 0 and shared.out.count(warning) == 1 and shared.out.count("WARNING: seed") == 1
    assert warning in swept(command, "distiller=dkd", "seed=1", "+dry_run=true").out, "of a stored teacher, too"
    assert warning in launch(*command, "distiller=dkd", "seed=1", "+dry_run=true").out
    assert "WARNING" not in launch(*command, "distiller=dkd", "seed=0", "+dry_run=true").out


def test_a_teacher_that_is_itself_asked_for_is_trained_first_and_once(tiny: list[str]) -> None:
    rows = plan_of(swept(tiny, "distiller=vanilla,kd", "student=resnet8,resnet14", "+dry_run=true"))
    assert [row[:2] for row in rows] == [
        ["1", "resnet8/vanilla-s0"],
        ["2", "resnet14/vanilla-s0"],
        ["2", "resnet8-resnet8/kd-s0"],
        ["2", "resnet8-resnet14/kd-s0"],
    ]


def test_a_teacher_that_would_be_trained_in_several_ways_is_refused(tiny: list[str], here: Path) -> None:
    message = error(swept(tiny, "distiller=kd", "schedule.epochs=1,2"))
    assert message.startswith("the sweep would train teacher resnet8 of digits-8-20perclass-test10 in several ways")
    assert "python launch.py distiller=vanilla student=resnet8" in message
    assert files(here) == set()


def test_a_network_that_can_only_teach_must_be_in_the_store(tiny: list[str], own: Path, here: Path) -> None:
    (own / "conf" / "teacher").mkdir()
    values = {"name": "giant", "model": {"_target_": "edkd.models.vgg13"}}
    (own / "conf" / "teacher" / "giant.yaml").write_text(yaml.safe_dump(values))
    message = error(swept([f"--config-dir={own / 'conf'}", *tiny], "distiller=kd", "teacher=giant"))
    assert message.startswith("teacher giant is not in the store, and cannot be trained: student=giant: no such option")
    assert files(here) == set()


# ---- running


def test_a_sweep_runs_to_its_end_and_is_not_run_again(tiny: list[str], here: Path) -> None:
    command = [*tiny[:-2], "tracking=sqlite", tiny[-1], "distiller=vanilla,kd,edkd"]
    first = swept(command)
    assert first.code == 0, first
    assert first.out.splitlines()[-2].endswith(": 3 of 3 runs finished")
    for name in ("resnet8/vanilla", "resnet8-resnet8/kd", "resnet8-resnet8/edkd"):
        assert f"{name}-s0-" in first.err  # a line for each run that ends
    assert "\x1b" not in first.err + first.out
    found = journals(here / "outputs")
    assert set(found) == {"resnet8/vanilla-s0", "resnet8-resnet8/kd-s0", "resnet8-resnet8/edkd-s0"}
    assert all(events(records) == ["start", "epoch", "epoch", "end"] for records in found.values())
    taught_by = {f"run:{found['resnet8/vanilla-s0'][0]['run']}"}
    assert {found[f"resnet8-resnet8/{method}-s0"][0]["teacher"]["id"] for method in ("kd", "edkd")} == taught_by
    (name,) = {records[0]["sweep"] for records in found.values()}
    assert {path.name for path in here.iterdir()} == {"outputs"}
    (log,) = (here / "outputs").glob("runs/*/*/edkd-*/run.log")
    assert "epoch 2/2: train loss" in log.read_text()
    below = {path.name for path in (here / "outputs").iterdir()}
    assert below == {"runs", "teachers", "sweeps", "mlflow.db", "mlflow.db.lock", "mlartifacts"}
    assert files(here / "outputs" / "sweeps") == {f"{name}.json"}  # which runs it has

    second = swept(command)
    assert second.code == 0, second
    assert {state for _, _, state in plan_of(second)} == {"done"}
    planned, teacher, *table, ended, advice = second.out.splitlines()[-10:]
    assert planned.startswith(f"sweep {name}: 3 runs: 3 done; teachers to train first: 0")
    assert teacher.startswith("teacher resnet8 of ")
    kd = found["resnet8-resnet8/kd-s0"][-1]["last"]["top1"]
    assert table[4].split() == ["KD", f"{kd:.2f}"]
    assert ended == f"sweep {name}: 3 of 3 runs finished"
    assert advice.startswith(f"`python -m analysis --report --output {here}/outputs` for the table and one page")
    assert f"`edkd ui --output {here}/outputs` for the curves" in advice
    assert journals(here / "outputs") == found

    check_mlflow(here / "outputs", name, found)
    check_model(here / "outputs", found)


def check_model(output: Path, found: dict[str, list[dict[str, Any]]]) -> None:
    """The best distilled student is a model in MLflow, which predicts what the student does."""
    import mlflow.pytorch

    uri = f"sqlite:///{output}/mlflow.db"
    runs = [run for run in tracking.load_runs(uri, "edkd") if run["tags"]["teacher"]]
    (run,) = [run for run in runs if "model" in run["tags"]]
    assert run["metrics"]["best/top1"] == max(each["metrics"]["best/top1"] for each in runs)
    mlflow.set_tracking_uri(uri)
    try:
        loaded = mlflow.pytorch.load_model(run["tags"]["model"])
        info = mlflow.models.get_model_info(run["tags"]["model"])
    finally:
        mlflow.set_tracking_uri(None)
    assert info.signature is not None and info.saved_input_example_info is not None
    network = models.resnet8(num_classes=10).eval()
    checkpoint.load_into(network, checkpoint.load_weights(output / run["tags"]["weights"]), "best.pt")
    size = found["resnet8/vanilla-s0"][0]["config"]["dataset"]["source"]["image_size"]
    images = torch.randn(5, 3, size, size)
    torch.testing.assert_close(loaded(images), network(images).logits)


def check_mlflow(output: Path, name: str, found: dict[str, list[dict[str, Any]]]) -> None:
    """One parent run, with a child for each journal."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{output / 'mlflow.db'}")
    (experiment,) = [each for each in client.search_experiments() if each.name == "edkd"]
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if "edkd.sweep" in run.data.tags]
    children = [run for run in runs if run is not parent]
    assert parent.data.tags["edkd.sweep"] == name
    assert (parent.info.status, parent.data.tags["runs.finished"]) == ("FINISHED", "3")
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert {run.data.tags["edkd.run"] for run in children} == {records[0]["run"] for records in found.values()}
    for run in children:
        records = next(each for each in found.values() if each[0]["run"] == run.data.tags["edkd.run"])
        assert run.info.status == "FINISHED"
        assert run.data.metrics["test/top1"] == round(records[-1]["last"]["top1"], 2) == run.data.metrics["last/top1"]
        assert run.data.params["schedule.epochs"] == "2"
        assert {"pair", "teacher", "student", "distiller", "dataset", "seed", "config_hash"} <= set(run.data.tags)


def test_one_failure_stops_no_other_and_can_be_mended(tiny: list[str], own: Path, here: Path) -> None:
    command = [f"--config-dir={own / 'conf'}", *tiny, "distiller=raising,kd"]
    failed = swept(command)
    assert failed.code == 1
    found = journals(here / "outputs")
    assert events(found["resnet8-resnet8/kd-s0"]) == ["start", "epoch", "epoch", "end"]
    assert events(found["resnet8-resnet8/raising-s0"]) == ["start", "epoch", "failure"]
    total, lost, advice = failed.out.splitlines()[-3:]
    assert total.endswith(": 2 of 3 runs finished")
    (log,) = (here / "outputs").rglob("raising-*/run.log")
    assert lost.endswith(f" failed: RuntimeError: the marker is there; see {log}")
    assert "RuntimeError: the marker is there" in log.read_text() and "Traceback" in log.read_text()
    assert advice == "run the same command again, or `edkd retry`, to continue"
    assert failed.err.count("failed: RuntimeError: the marker is there") == 1

    again = swept(command)
    assert again.code == 1
    assert plan_of(again) == [
        ["2", "resnet8-resnet8/raising-s0", "to resume (failed before), after epoch 1"],
        ["2", "resnet8-resnet8/kd-s0", "done"],
    ]
    assert again.out.splitlines()[3].endswith(
        ": 2 runs: 1 to resume (failed before), 1 done; teachers to train first: 0"
    )
    (own / "marker").unlink()
    mended = swept(command)
    assert mended.code == 0
    assert "failed" not in mended.err
    after = journals(here / "outputs")
    assert events(after["resnet8-resnet8/raising-s0"])[-4:] == ["failure", "start", "epoch", "end"]
    assert metrics(after["resnet8-resnet8/raising-s0"]) == metrics(after["resnet8-resnet8/kd-s0"])
    assert after["resnet8-resnet8/kd-s0"] == found["resnet8-resnet8/kd-s0"]


def test_without_its_teacher_no_student_starts(tiny: list[str], here: Path) -> None:
    done = swept(tiny, "distiller=kd,dkd", "schedule.lr=1e30")
    assert done.code == 1
    total, teacher, *students, advice = done.out.splitlines()[-5:]
    assert total.endswith(": 0 of 3 runs finished")
    assert "/resnet8/vanilla-s0-" in teacher and "training diverged; lower schedule.lr" in teacher
    assert all(line.endswith(" not started: its teacher resnet8 is not trained yet") for line in students)
    assert list(journals(here / "outputs")) == ["resnet8/vanilla-s0"]
    assert not list((here / "outputs").glob("teachers/*/*.pt"))
    assert advice == "run the same command again, or `edkd retry`, to continue"


def test_a_teacher_whose_journal_came_without_weights_is_trained(tiny: list[str], here: Path) -> None:
    assert swept(tiny, "distiller=kd").code == 0
    for path in [*here.glob("outputs/teachers/*/*"), *here.glob("outputs/runs/*/resnet8/*/*.pt")]:
        path.unlink()
    done = swept(tiny, "distiller=kd,dkd")
    assert done.code == 0, done
    assert len(list(here.glob("outputs/teachers/*/resnet8.pt"))) == 1


def test_an_error_keeps_nothing_of_the_run_alive(tiny: list[str], here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[weakref.ref[Any]] = []
    alive: list[list[bool]] = []

    def failing(state: TrainState, *arguments: Any, **options: Any) -> None:
        gc.collect()
        alive.append([each() is not None for each in seen])
        seen.append(weakref.ref(state.student))
        raise EdkdError("no")

    monkeypatch.setattr(attempt, "fit", failing)
    assert swept(tiny, "distiller=vanilla", "seed=0,1,2").code == 1
    assert alive == [[], [False], [False, False]]


def test_a_stored_teacher_is_used_and_a_weak_one_refused(tiny: list[str], here: Path) -> None:
    assert launch(*tiny, "distiller=vanilla", "schedule.epochs=1").code == 0
    command = [*tiny, "distiller=kd"]
    weak = error(swept(command))
    assert weak.startswith("teacher resnet8 of digits-8-20perclass-test10 was trained for 1 epoch, the student is to ")
    assert "allow_weak_teacher=true" in weak
    assert error(launch(*command)) == weak
    assert plan_of(swept(command, "schedule.epochs=1", "+dry_run=true")) == [["2", "resnet8-resnet8/kd-s0", "new"]]
    assert swept(command, "allow_weak_teacher=true").code == 0
    found = journals(here / "outputs")
    assert found["resnet8-resnet8/kd-s0"][0]["teacher"]["id"] == f"run:{found['resnet8/vanilla-s0'][0]['run']}"


def test_a_stored_teacher_that_was_trained_otherwise_is_shown_and_strictly_refused(tiny: list[str], here: Path) -> None:
    assert launch(*tiny, "distiller=vanilla", "schedule.lr=0.00001").code == 0
    run = journals(here / "outputs")["resnet8/vanilla-s0"][0]["run"]
    command = [*tiny, "distiller=kd", "seed=1", "+dry_run=true"]
    done = swept(command)
    line, warning = done.out.splitlines()[-4:-2]
    assert line.startswith("teacher resnet8 of digits-8-20perclass-test10: top-1 ")
    assert line.endswith(f"trained by run {run[:8]}")
    differs = "trained otherwise than this sweep would: schedule.lr 1e-05, here 0.01"
    assert warning == f"  WARNING: {differs} (teacher_recipe=any omits this line)"
    assert "WARNING" not in swept(command, "teacher_recipe=any").out
    assert "schedule.lr 1e-05, here 0.01; remove " in error(swept(command, "teacher_recipe=strict"))
    alone = error(launch(*command, "teacher_recipe=strict", "schedule.weight_decay=0.1"))
    assert "which teacher_recipe=strict refuses" in alone
    same = swept(command, "teacher_recipe=strict", "schedule.lr=0.00001")
    assert same.code == 0 and "WARNING" not in same.out
    other = swept(command, "teacher_seed=1", "schedule.lr=0.00001")
    assert "  WARNING: trained otherwise than this sweep would: seed 0, here 1 (" in other.out
    spread = swept(command, "engine.devices=2", "schedule.lr=0.00001")
    assert "  WARNING: trained otherwise than this sweep would: engine.devices 1, here 2 (" in spread.out


@pytest.mark.parametrize("how", ["ends", "is interrupted"])
def test_a_teacher_that_another_command_trains_is_waited_for(
    tiny: list[str], here: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    original = execution._others_train

    def continued(teachers: Any) -> bool:
        if how == "is interrupted":
            process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGCONT)
        return original(teachers)

    monkeypatch.setattr(execution, "_others_train", continued)
    command = [*tiny, "schedule.epochs=40"]
    first = [sys.executable, str(REPOSITORY / "launch.py"), "-m", *command, "distiller=vanilla"]
    with subprocess.Popen(first, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(lambda: any(map(metrics, journals(here / "outputs").values())))
            process.send_signal(signal.SIGSTOP)  # it keeps its lock
            done = swept(command, "distiller=kd")
        finally:
            process.kill()
    assert done.code == 0, done
    assert plan_of(done)[0][:2] == ["1", "resnet8/vanilla-s0"] and "running elsewhere" in plan_of(done)[0][2]
    said = f"resnet8/vanilla-s0-[0-9a-f]+, which trains in another process .pid {process.pid} on "
    assert len(re.findall(f"waiting for .*{said}", done.err)) == 1
    assert "2 of 2 runs finished" in done.out
    teacher = journals(here / "outputs")["resnet8/vanilla-s0"]
    assert events(teacher).count("start") == (1 if how == "ends" else 2)
    assert len(metrics(teacher)) == 40


def test_a_teacher_that_was_removed_is_not_trained_for_finished_students(tiny: list[str], here: Path) -> None:
    command = [*tiny, "distiller=kd"]
    assert swept(command).code == 0
    for path in [*here.glob("outputs/teachers/*/*"), *here.glob("outputs/runs/*/resnet8/*/*.pt")]:
        path.unlink()
    done = swept(command)
    assert (done.code, plan_of(done)) == (0, [["2", "resnet8-resnet8/kd-s0", "done"]])
    assert not list(here.glob("outputs/teachers/*/*.pt"))
    planned = swept(command, "seed=0,1", "+dry_run=true")
    assert plan_of(planned)[0] == ["1", "resnet8/vanilla-s0", preview.LOST]
    assert "teachers to train first: 1\n" in planned.out


def test_runs_of_another_process_are_left_to_it(tiny: list[str], here: Path, make_job: Any) -> None:
    folder = "output=" + quoted(str(here / "o'b"))  # a name that needs quotes, for once
    running, other = (make_job("vanilla", f"seed={seed}", folder) for seed in (1, 2))
    with lock.hold(running.directory):
        done = swept(tiny, "distiller=vanilla", "seed=1,2", folder)
    assert done.code == 1
    assert plan_of(done) == [
        ["2", "resnet8/vanilla-s1", "running elsewhere"],
        ["2", "resnet8/vanilla-s2", "new"],
    ]
    assert f"{running.name} is running in another process (pid {os.getpid()} on " in done.out
    assert (journal.state(running.directory).status, journal.state(other.directory).status) == ("new", "finished")
    assert {path.name for path in here.iterdir()} == {"o'b"}


def test_what_was_planned_is_run_whatever_happens_to_conf(tiny: list[str], own: Path, here: Path) -> None:
    mine = [f"--config-dir={own / 'conf'}", *tiny, "schedule=mine", "schedule.epochs=1", "allow_weak_teacher=true"]
    done = swept(mine, "distiller=editing", "seed=0,1")
    assert done.code == 0, done
    assert (own / "conf" / "schedule" / "mine.yaml").read_text() == "epochs: ["
    assert {len(metrics(records)) for records in journals(here / "outputs").values()} == {1}
    assert len(journals(here / "outputs")) == 3


def test_a_frozen_configuration_that_was_changed_is_not_run(
    tiny: list[str], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    freeze = execution.freeze

    def changed(job: Any, **more: Any) -> Path:
        path: Path = freeze(job, **more)
        path.write_text(path.read_text().replace("epochs: 2", "epochs: 3"))
        return path

    monkeypatch.setattr(execution, "freeze", changed)
    done = swept(tiny, "distiller=vanilla")
    assert done.code == 1
    assert "config.yaml was changed after planning: it now describes run " in done.out.splitlines()[-2]
    assert not list((here / "outputs").rglob("*.pt"))


def test_several_processes_give_the_bits_of_one_and_survive_a_kill(tiny: list[str], own: Path, here: Path) -> None:
    arguments = ["-m", f"--config-dir={own / 'conf'}", *tiny, "distiller=dying,kd", "hydra/launcher=local"]
    done = python(str(REPOSITORY / "launch.py"), *arguments, PYTHONPATH=str(own))
    assert done.code == 0, done
    assert not (own / "marker").exists()  # one process did kill itself
    (stopped,) = [line for line in done.err.splitlines() if line.startswith("the launcher stopped")]
    assert "SIGKILL" in stopped and stopped.endswith("; looking at the journals")
    assert done.out.splitlines()[-2].endswith(": 3 of 3 runs finished")
    several = journals(here / "outputs")
    assert events(several["resnet8-resnet8/dying-s0"])[0] == "start"
    assert events(several["resnet8-resnet8/dying-s0"])[-4:] == ["start", "epoch", "epoch", "end"]
    assert len({records[0]["pid"] for records in several.values()}) > 1

    serial = launch(*arguments[:-1], f"output={here / 'serial'}")
    assert serial.code == 0, serial
    one = journals(here / "serial")
    assert list(one) == list(several)
    for name, records in one.items():
        assert metrics(records) == metrics(several[name])
        assert records[-1]["last"] == several[name][-1]["last"]


def test_workers_end_with_a_sweep_that_is_killed(tiny: list[str], here: Path) -> None:
    endless = [*tiny, "schedule.epochs=9999", "distiller=vanilla", "seed=0,1", "hydra/launcher=local"]
    command = [sys.executable, str(REPOSITORY / "launch.py"), "-m", *endless]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(lambda: list(map(bool, map(metrics, journals(here / "outputs").values()))) == [True] * 2)
        finally:
            process.kill()
    runs = [path.parent for path in (here / "outputs").rglob("journal.jsonl")]
    workers = {journal.read(run)[0]["pid"] for run in runs}
    try:
        assert process.pid not in workers and len(workers) == 2
        wait_for(lambda: not any(map(lock.is_held, runs)))  # the kernel drops the lock with the process
    finally:
        for pid in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(("launcher", "how", "runs"), [("local", signal.SIGINT, 2), ("basic", signal.SIGTERM, 1)])
def test_a_sweep_whose_main_process_alone_is_asked_to_stop_records_it(
    tiny: list[str], here: Path, launcher: str, how: signal.Signals, runs: int
) -> None:
    endless = [*tiny, "schedule.epochs=9999", "distiller=vanilla", "seed=0,1", f"hydra/launcher={launcher}"]
    command = [sys.executable, str(REPOSITORY / "launch.py"), "-m", *endless]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_for(lambda: list(map(bool, map(metrics, journals(here / "outputs").values()))) == [True] * runs)
            process.send_signal(how)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert said.endswith("interrupted; the same command continues where this one stopped\n")
    assert [events(records)[-1] for records in journals(here / "outputs").values()] == ["interrupted"] * runs


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < until, "did not happen within 120 s"
        time.sleep(0.1)


# ---- launching


class Launcher:
    """Stands for a launcher that loses jobs: each launch carries out the next of some scripts."""

    def __init__(self, *scripts: Any) -> None:
        self.scripts = list(scripts)
        self.launched: list[list[str]] = []

    def launch(self, job_overrides: list[list[str]], initial_job_idx: int) -> None:
        names = [Path(overrides[0].split("'")[1]).parent.name.rpartition("-")[0] for overrides in job_overrides]
        assert initial_job_idx == sum(map(len, self.launched))
        self.launched.append(names)
        self.scripts.pop(0)([Path(overrides[0].split("'")[1]).parent for overrides in job_overrides])


def write(directory: Path, *records: dict[str, Any]) -> None:
    with (directory / "journal.jsonl").open("a") as file:
        file.writelines(json.dumps({"time": 0.0, **record}) + "\n" for record in records)


START = {"event": "start"}
EPOCH = {"event": "epoch", "epoch": 1, "seconds": {"train": 1.0}}
END = {"event": "end"}


@pytest.fixture
def jobs(make_job: Any) -> list[Any]:
    made = [make_job("vanilla", f"seed={seed}") for seed in (0, 1, 2)]
    for job in made:
        job.directory.mkdir(parents=True)
    return made


def launched(jobs: list[Any], *scripts: Any) -> list[list[str]]:
    launcher = Launcher(*scripts)
    execution._launch(jobs, {job.run: job.directory / "config.yaml" for job in jobs}, launcher)
    assert launcher.scripts == []
    return launcher.launched


def test_only_jobs_that_were_lost_are_launched_again_while_that_gets_further(jobs: list[Any]) -> None:
    def two_end(folders: list[Path]) -> None:
        write(folders[0], START, EPOCH, END)
        write(folders[1], START, {"event": "failure", "error": "diverged"})
        write(folders[2], START)
        raise RuntimeError("a worker died")

    def further(folders: list[Path]) -> None:
        write(folders[0], START, EPOCH)
        raise RuntimeError("a worker died")

    def no_further(folders: list[Path]) -> None:
        write(folders[0], START)
        raise RuntimeError("a worker died")

    first, again = ["vanilla-s0", "vanilla-s1", "vanilla-s2"], ["vanilla-s2"]
    assert launched(jobs, two_end, further, no_further) == [first, again, again]


@pytest.mark.parametrize(
    ("launcher", "jobs", "parallel", "threads"),
    [
        ({"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"}, 9, 1, 8),
        ({"_target_": "x.JoblibLauncher", "n_jobs": 2}, 9, 2, 4),
        ({"_target_": "x.JoblibLauncher", "n_jobs": 3}, 9, 3, 2),
        ({"_target_": "x.JoblibLauncher", "n_jobs": 3}, 2, 2, 4),
        ({"_target_": "x.JoblibLauncher", "n_jobs": -1}, 9, 8, 1),
        ({"_target_": "x.JoblibLauncher", "n_jobs": 16}, 99, 16, 1),
        ({"_target_": "x.SlurmLauncher"}, 9, None, None),
    ],
)
def test_jobs_side_by_side_share_the_cores(
    monkeypatch: pytest.MonkeyPatch, launcher: dict[str, Any], jobs: int, parallel: int | None, threads: int | None
) -> None:
    monkeypatch.setattr(execution, "cores", lambda: 8)
    master = OmegaConf.create({"hydra": {"launcher": launcher}})
    assert execution.shares(master, jobs) == (parallel, threads)

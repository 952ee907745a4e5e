"""The `edkd` command, on runs that `launch.py` made."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient

from edkd import __version__, tracking
from edkd.rundir import checkpoint, lock
from edkd.teachers import store as teacher_store
from tests.commandline import Ended, edkd, error, files, journals, launch, python

KEY = "digits-8-20perclass-test10"
DATA = ["dataset.image_size=8", "dataset.train_per_class=20", "dataset.test_per_class=10", "engine.device=cpu"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with a teacher resnet8 and a student of it, never logged to MLflow. Not to be changed."""
    output = tmp_path_factory.mktemp("trained") / "outputs"
    common = ["dataset=digits", *DATA, "schedule=short", "schedule.epochs=2", "engine.threads=1", "tracking=journal"]
    done = launch("-m", *common, "teacher=resnet8", "student=resnet8", "distiller=vanilla,kd", f"output={output}")
    assert done.code == 0, done
    return output


@pytest.fixture
def output(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, in the current directory."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, tmp_path / "outputs")
    return tmp_path / "outputs"


def end(output: Path, name: str) -> dict[str, Any]:
    return journals(output)[name][-1]


def said(values: dict[str, Any]) -> str:
    return f"top-1 {values['top1']:.2f} %  top-5 {values['top5']:.2f} %  loss {values['loss']:.4f}"


def evaluate(*arguments: str) -> Ended:
    return edkd("evaluate", "-m", "resnet8", "-d", "digits", *arguments, *DATA)


def run_file(output: Path, method: str, name: str) -> Path:
    (path,) = output.glob(f"runs/*/*/{method}-*/{name}")
    return path


# ---- evaluate


def test_a_stored_teacher(output: Path) -> None:
    before = files(output)
    done = evaluate()
    assert done.code == 0, done
    run = journals(output)["resnet8/vanilla-s0"][0]["run"]
    expected = said(end(output, "resnet8/vanilla-s0")["last"])
    assert done.out == f"resnet8 on {KEY} (teacher run:{run})\n{expected}\n"
    assert files(output) == before


def test_as_a_module_in_a_process_of_its_own(output: Path) -> None:
    done = python("-m", "edkd.cli.main", "evaluate", "-m", "resnet8", "-d", "digits", *DATA)
    assert (done.code, done.err) == (0, "")
    assert done.out.endswith(f"{said(end(output, 'resnet8/vanilla-s0')['last'])}\n")


@pytest.mark.parametrize(("file", "which"), [("last.pt", "last"), ("best.pt", "best")])
def test_a_file_of_ours(output: Path, file: str, which: str) -> None:
    path = run_file(output, "kd", file)
    done = evaluate("-c", str(path))
    assert done.code == 0, done
    assert done.out == f"resnet8 on {KEY} ({path})\n{said(end(output, 'resnet8-resnet8/kd-s0')[which])}\n"


@pytest.mark.parametrize("prefix", ["", "module.", "module.student."])
def test_a_file_of_the_fields(output: Path, prefix: str) -> None:
    state = checkpoint.load_weights(run_file(output, "kd", "last.pt"))
    torch.save({"epoch": 240, "model": {f"{prefix}{key}": value for key, value in state.items()}}, "theirs.pth")
    done = evaluate("-c", "theirs.pth")
    assert done.code == 0, done
    assert done.out.endswith(f"{said(end(output, 'resnet8-resnet8/kd-s0')['last'])}\n")


def test_what_cannot_be_evaluated(output: Path) -> None:
    before = files(output)
    (output.parent / "broken.pt").write_bytes(b"PK\x03\x04 and no more")
    torch.save({"model": {"weight": torch.zeros(1)}}, output.parent / "other.pt")
    assert "nowhere.pt" in error(evaluate("-c", "nowhere.pt"))
    assert "broken.pt" in error(evaluate("-c", "broken.pt"))
    assert error(evaluate("-c", "other.pt")).startswith("other.pt")
    assert error(edkd("evaluate", "-m", "vgg8", "-d", "digits", *DATA)).startswith(
        f"no teacher vgg8 of {KEY} in outputs/teachers; -c FILE names a checkpoint"
    )
    assert error(edkd("evaluate", "-m", "vgg9", "-d", "digits")).startswith(
        "student=vgg9: no such option, did you mean vgg19?; allowed: mobilenetv2, "
    )
    assert error(edkd("evaluate", "-m", "vgg8", "-d", "digit")).startswith(
        "dataset=digit: no such option, did you mean digits?; allowed: cifar100, digits, folder"
    )
    assert error(edkd("evaluate", "-m", "vgg8", "-d", "digits", "dataset.root=x")).startswith(
        "dataset.root: no such key in dataset=digits; allowed: flip, image_size, "
    )
    assert files(output) == before


def test_the_default_data_set_is_cifar100(output: Path) -> None:
    message = error(
        edkd("evaluate", "-m", "resnet8", "-c", str(run_file(output, "kd", "last.pt")), "dataset.download=false")
    )
    assert message.startswith("CIFAR-100 not found: looked for data/cifar-100-python; dataset.root=DIR names ")


# ---- teachers


def test_the_list_of_teachers(output: Path) -> None:
    run = journals(output)["resnet8/vanilla-s0"][0]["run"]
    top1 = end(output, "resnet8/vanilla-s0")["last"]["top1"]
    done = edkd("teachers", "list")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"{KEY}/resnet8: top-1 {top1:.2f} %, run:{run}, from ")
    assert done.out.count("\n") == 1

    empty = edkd("teachers", "list", "--output", "elsewhere")
    assert empty.code == 0 and empty.out.startswith("no teachers in elsewhere/teachers; ")

    with (output / "teachers" / KEY / "resnet8.pt").open("ab") as file:
        file.write(b"\0")
    damaged = edkd("teachers", "list")
    assert damaged.out.startswith(f"{KEY}/resnet8: ") and "does not match its sidecar resnet8.json" in damaged.out


def import_(*arguments: str) -> Ended:
    return edkd("teachers", "import", "resnet8", *arguments, "-d", "digits", *DATA)


def test_a_file_becomes_a_teacher(output: Path) -> None:
    file = run_file(output, "kd", "last.pt")
    run = journals(output)["resnet8/vanilla-s0"][0]["run"]
    kept = error(import_(str(file)))
    assert kept == f"{KEY} has a teacher resnet8 already (run:{run}); --replace replaces it"

    done = import_(str(file), "--replace")
    assert done.code == 0, done
    last = end(output, "resnet8-resnet8/kd-s0")["last"]
    identity = f"file:{hashlib.sha256(file.read_bytes()).hexdigest()[:16]}"
    path = Path("outputs") / "teachers" / KEY / "resnet8.pt"
    assert done.out == f"resnet8 of {KEY}: top-1 {last['top1']:.2f} %, {identity}, in {path}\n"
    entry = teacher_store.find(Path("outputs") / "teachers", KEY, "resnet8")
    assert entry is not None
    assert (entry.id, entry.num_classes, entry.epochs) == (identity, 10, None)
    assert entry.test == {name: last[name] for name in ("top1", "top5", "loss")}
    assert import_(str(file)).code == 0  # the same file again
    assert evaluate().out.endswith(f"{said(last)}\n")

    common = ["dataset=digits", *DATA, "schedule=short", "schedule.epochs=1", "tracking=journal", "teacher=resnet8"]
    assert launch(*common, "student=resnet8", "distiller=dkd", "engine.threads=1").code == 0
    assert journals(output)["resnet8-resnet8/dkd-s0"][0]["teacher"]["id"] == identity


def test_what_cannot_become_a_teacher(output: Path) -> None:
    torch.save({"model": {"weight": torch.zeros(1)}}, "other.pt")
    before, sidecar = files(output), output / "teachers" / KEY / "resnet8.json"
    content = json.loads(sidecar.read_text())
    assert error(import_("other.pt", "--replace")).startswith("other.pt")
    assert "nowhere.pt" in error(import_("nowhere.pt", "--replace"))
    assert files(output) == before and json.loads(sidecar.read_text()) == content


# ---- sync


def test_sync_brings_mlflow_up_to_date_once(output: Path) -> None:
    first = edkd("sync")
    assert (first.code, first.err) == (0, "")
    said = sorted(line.rpartition(": ")[2] for line in first.out.splitlines())
    assert said == ["2 epochs logged", "2 epochs logged", "FINISHED"], "the runs, and their sweep"
    runs = tracking.load_runs(f"sqlite:///{output / 'mlflow.db'}", "edkd")
    expected = {records[0]["run"]: records[-1]["last"]["top1"] for records in journals(output).values()}
    assert {run["tags"]["edkd.run"]: run["metrics"]["last/top1"] for run in runs} == expected

    second = edkd("sync")
    assert second == Ended(0, "", "")
    assert tracking.load_runs(f"sqlite:///{output / 'mlflow.db'}", "edkd") == runs


def test_sync_leaves_a_sweep_that_goes_on_alone(output: Path) -> None:
    (output / "sweeps").mkdir(exist_ok=True)
    (sweep,) = {record["sweep"] for records in journals(output).values() for record in records if "sweep" in record}
    store = f"sqlite:///{output / 'mlflow.db'}"

    def status() -> str:
        client = MlflowClient(store)
        (parent,) = client.search_runs(["1"], f"tags.`edkd.sweep` = '{sweep}'")
        return str(parent.info.status)

    run = run_file(output, "kd", "journal.jsonl")
    whole = run.read_bytes()
    run.write_bytes(b"".join(whole.splitlines(keepends=True)[:2]))
    with lock.hold(run.parent):
        assert edkd("sync").code == 0
        assert status() == "RUNNING"
    assert edkd("sync").out.endswith(f"sweep {sweep}: FAILED\n")
    assert status() == "FAILED"
    run.write_bytes(whole)
    assert edkd("sync").out.endswith(f"sweep {sweep}: FINISHED\n")


def test_a_reader_who_has_enough_ends_the_command_quietly(output: Path) -> None:
    command = [sys.executable, "-m", "edkd.cli.main", "status", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
    assert (process.returncode, said) == (141, b"")


def test_what_cannot_be_synced(output: Path) -> None:
    assert error(edkd("sync", "--output", "elsewhere")).startswith("no runs in elsewhere/runs; --output DIR names ")
    assert error(edkd("sync", "--uri", "mlruns")).startswith("tracking URI 'mlruns': folders such as ./mlruns")
    (output / "mlflow.db").mkdir()
    assert error(edkd("sync")).startswith(f"MLflow store {output / 'mlflow.db'} cannot be used (")
    (output / "mlflow.db").rmdir()
    journal = run_file(output, "kd", "journal.jsonl")
    journal.write_text("damage\n" + journal.read_text())
    done = edkd("sync")
    assert done.code == 1
    assert done.out.count("2 epochs logged") == 1
    damaged, total = done.err.splitlines()
    assert damaged.endswith(
        f"line 1 of {journal.relative_to(output.parent)} is not a journal record; "
        "the file was damaged: restore or move it"
    )
    assert total == "edkd: 1 run could not be brought to sqlite:///outputs/mlflow.db"


# ---- the rest


def test_usage() -> None:
    assert edkd("--version") == Ended(0, f"edkd {__version__}\n", "")
    for wrong in ([], ["evaluate"], ["train"], ["teachers"]):
        done = edkd(*wrong)
        assert done.code == 2 and done.err.startswith("usage: edkd ")

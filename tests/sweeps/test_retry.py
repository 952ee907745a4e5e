"""Logs of runs, and launching again what failed or vanished, on runs that the real command line made."""

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import yaml

from edkd.rundir import journal, lock
from edkd.rundir.paths import find_runs, runs_of_sweep
from edkd.status import logs
from edkd.status.state import look
from tests.commandline import REPOSITORY, Ended, edkd, error, journals, launch, metrics, python

METHOD = '''
"""KD that raises while a file is there."""

from pathlib import Path

from edkd.distillers.kd import KD


class Raising(KD):
    def forward(self, student, teacher, batch):
        if Path(__file__).with_name("marker").exists() and float(batch.epoch) > 1:
            raise RuntimeError("the marker is there")
        return super().forward(student, teacher, batch)
'''


TINY = [
    "dataset=digits", "dataset.image_size=8", "dataset.train_per_class=20", "dataset.test_per_class=10",
    "teacher=resnet8", "student=resnet8", "teacher_seed=0", "schedule=short", "schedule.epochs=2",
    "engine.device=cpu", "engine.threads=1", "tracking=journal",
]  # fmt: skip


class Failed(NamedTuple):
    """A sweep of KD and of a method that failed, seeds 0 and 1 each, in the current directory."""

    id: str
    own: Path
    """The folder of the method and its options; what makes it fail is the `marker` there."""

    @property
    def marker(self) -> Path:
        return self.own / "marker"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Failed]]:
    """The sweep's output folder, not to be changed."""
    own, folder = tmp_path_factory.mktemp("own"), tmp_path_factory.mktemp("original")
    module = f"raising_{own.name}"  # a name of its own, for modules stay imported
    (own / f"{module}.py").write_text(METHOD)
    (own / "conf" / "distiller").mkdir(parents=True)
    values = {"_target_": f"{module}.Raising", "ce_weight": 0.1, "kd_weight": 0.9, "temperature": 4.0}
    (own / "conf" / "distiller" / "raising.yaml").write_text(yaml.safe_dump(values))
    (own / "marker").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(own)
        with pytest.MonkeyPatch.context() as inside:
            inside.chdir(folder)
            ended = launch("--config-dir", str(own / "conf"), "-m", *TINY, "distiller=kd,raising", "seed=0,1")
        assert ended.code == 1, ended
        yield folder / "outputs", Failed(sweep_of(ended), own)


@pytest.fixture
def sweep(original: tuple[Path, Failed], here: Path) -> Failed:
    output, failed = original
    shutil.copytree(output, here / "outputs")
    failed.marker.touch()
    return failed


def events(records: list[dict[str, Any]]) -> list[str]:
    return [record["event"] for record in records]


def counted(output: Path) -> dict[str, str]:
    """The state of each run, by `<pair>/<method>-s<seed>`."""
    views = look(find_runs(output))
    return {view.name.partition("/")[2].rpartition("-")[0]: view.state for view in views}


def sweep_of(ended: Ended) -> str:
    return ended.out.split("sweep ")[1].split(":")[0]


# ---- retry, for real


def test_a_run_that_cannot_be_launched_again_is_named(sweep: Failed, here: Path) -> None:
    (broken,) = (here / "outputs" / "runs").glob("*/*/raising-s1-*")
    (broken / "config.yaml").write_text("{}")
    line = error(edkd("retry", "--dry-run"))
    assert line.startswith(str(broken.relative_to(here))) and line.endswith(
        "; --pair and --distiller choose other runs"
    )


def test_what_failed_is_launched_again_as_it_was_planned(sweep: Failed, here: Path) -> None:
    assert counted(here / "outputs") == {
        "resnet8/vanilla-s0": "done",
        "resnet8-resnet8/kd-s0": "done",
        "resnet8-resnet8/kd-s1": "done",
        "resnet8-resnet8/raising-s0": "failed",
        "resnet8-resnet8/raising-s1": "failed",
    }
    shown = edkd("status", sweep.id, "--state", "failed")
    assert shown.code == 1 and shown.out.count("RuntimeError: the marker is there") == 2

    sweep.marker.unlink()
    frozen = {path: path.read_text() for path in (here / "outputs" / "runs").glob("*/*/*/config.yaml")}
    again = edkd("retry", sweep.id)  # without --config-dir: conf/ does not know the method
    assert (again.code, sweep_of(again)) == (0, sweep.id), again
    assert "2 of 2 runs finished" in again.out
    assert {path: path.read_text() for path in frozen} == frozen

    assert set(counted(here / "outputs").values()) == {"done"}
    records = journals(here / "outputs")
    for seed in (0, 1):
        mended, plain = records[f"resnet8-resnet8/raising-s{seed}"], records[f"resnet8-resnet8/kd-s{seed}"]
        assert events(mended) == ["start", "epoch", "failure", "start", "epoch", "end"]
        assert events(plain) == ["start", "epoch", "epoch", "end"]
        assert metrics(mended) == metrics(plain)
    assert edkd("status", sweep.id).code == 0
    nothing = edkd("retry", sweep.id)
    assert (nothing.code, nothing.out) == (0, "nothing to retry: 5 runs: 5 done\n")


def test_the_launcher_is_the_one_given(sweep: Failed, here: Path) -> None:
    sweep.marker.unlink()
    given = ["retry", "hydra/launcher=local", "hydra.launcher.n_jobs=2"]
    done = python("-m", "edkd.cli.main", *given, PYTHONPATH=f"{sweep.own}{os.pathsep}{REPOSITORY}")
    assert done.code == 0, done
    pids = {records[3]["pid"] for name, records in journals(here / "outputs").items() if "raising" in name}
    assert len(pids) == 2 and os.getpid() not in pids


def test_a_teacher_that_failed_goes_first_and_its_students_go_along(sweep: Failed, here: Path) -> None:
    runs = {path.name.rpartition("-")[0]: path for path in find_runs(here / "outputs")}
    shutil.rmtree(here / "outputs" / "teachers")
    shutil.rmtree(runs["raising-s0"])
    shutil.rmtree(runs["raising-s1"])
    for name in ("kd-s0", "kd-s1"):  # as planned, and never begun
        for path in runs[name].iterdir():
            if path.name != "config.yaml":
                path.unlink()
    records = journal.read(runs["vanilla-s0"])
    lines = [json.dumps(record) for record in [*records[:-1], {"event": "failure", "time": 1.0, "error": "no"}]]
    (runs["vanilla-s0"] / "journal.jsonl").write_text("\n".join(lines) + "\n")
    before = {"resnet8/vanilla-s0": "failed", "resnet8-resnet8/kd-s0": "new", "resnet8-resnet8/kd-s1": "new"}
    assert counted(here / "outputs") == before

    dry = edkd("retry", sweep.id, "--state", "failed", "--dry-run")
    assert dry.code == 0
    rows = [line.split()[:3] for line in dry.out.splitlines()[1:4]]
    assert [(row[0], row[2].partition("/")[2].rpartition("-")[0]) for row in rows] == [
        ("1", "resnet8/vanilla-s0"),
        ("2", "resnet8-resnet8/kd-s0"),
        ("2", "resnet8-resnet8/kd-s1"),
    ]
    assert counted(here / "outputs") == before

    again = edkd("retry", sweep.id)
    assert again.code == 0, again
    assert set(counted(here / "outputs").values()) == {"done"}
    assert list((here / "outputs" / "teachers").glob("*/resnet8.pt"))


def test_a_student_brings_a_teacher_along_that_the_store_has_lost(sweep: Failed, here: Path) -> None:
    sweep.marker.unlink()
    shutil.rmtree(here / "outputs" / "teachers")
    again = edkd("retry", "--distiller", "raising", "--seed", "0")
    assert again.code == 0, again
    assert "2 of 2 runs finished" in again.out
    records = journals(here / "outputs")
    assert events(records["resnet8/vanilla-s0"]) == ["start", "epoch", "epoch", "end"]  # it is done: only published
    assert events(records["resnet8-resnet8/raising-s0"])[-1] == "end"


def test_a_student_whose_teacher_is_nowhere(sweep: Failed, here: Path) -> None:
    shutil.rmtree(here / "outputs" / "teachers")
    shutil.rmtree(next((here / "outputs" / "runs").glob("*/resnet8")))
    assert "which is neither in outputs/teachers nor in outputs/runs/" in error(edkd("retry"))


def test_a_retry_takes_what_is_chosen_and_does_not_shrink_the_sweep(sweep: Failed, here: Path) -> None:
    before = runs_of_sweep(here / "outputs", sweep.id)
    edkd("retry", "--seed", "1")
    assert runs_of_sweep(here / "outputs", sweep.id) == before
    assert len(before) == 5 and "/resnet8/vanilla-s0-" in before[0]
    records = journals(here / "outputs")
    assert events(records["resnet8-resnet8/raising-s1"]) == ["start", "epoch", "failure", "start", "failure"]
    assert events(records["resnet8-resnet8/raising-s0"]) == ["start", "epoch", "failure"]

    (journal_of,) = (here / "outputs" / "runs").glob("*/*/raising-s1-*/journal.jsonl")
    journal_of.unlink()  # as planned, and never begun
    some, every = edkd("retry", "--dry-run"), edkd("retry", "--dry-run", "--all")
    assert "raising-s0" in some.out and "raising-s1" not in some.out
    assert "raising-s0" in every.out and "raising-s1" in every.out
    none = edkd("retry", "--seed", "1", "--distiller", "raising")
    assert none.out == "nothing to retry: 1 run: 1 new; --all takes those that never began\n"


def test_a_retry_of_several_sweeps_is_a_sweep_of_its_own(sweep: Failed, here: Path) -> None:
    other = launch("--config-dir", str(sweep.own / "conf"), "-m", *TINY, "distiller=raising", "seed=2")
    assert (other.code, sweep_of(other) == sweep.id) == (1, False)
    sweep.marker.unlink()
    done = edkd("retry")
    assert (done.code, sweep_of(done) in {sweep.id, sweep_of(other)}) == (0, False), done
    assert edkd("status", sweep_of(done)).out.splitlines()[-1] == "3 runs: 3 done"


def test_a_retry_that_is_terminated_ends_as_by_ctrl_c(sweep: Failed, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("edkd.sweeps.sweep.carry_out", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    try:
        assert edkd("retry").code == 130  # the runs are `interrupted` then, and not `vanished`
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_sweep_has_also_the_runs_that_another_one_finished(sweep: Failed) -> None:
    ended = launch("-m", *TINY, "distiller=kd", "seed=0,1")
    assert (ended.code, sweep_of(ended) == sweep.id) == (0, False)
    shown = edkd("status", sweep_of(ended))
    assert (shown.code, shown.out.splitlines()[-1]) == (0, "2 runs: 2 done")


# ---- retry, refused


def test_another_directory_is_refused(sweep: Failed, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    message = error(edkd("retry", "--output", "../outputs"))
    assert "run this from the directory where that path leads there" in message
    assert list((here / "elsewhere").iterdir()) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["hydra/launcher=cloud"], "hydra/launcher=cloud: no such option"),
        (
            ["hydra/launcher=slurm", "hydra.launcher.tasks_per_node=2"],
            "hydra.launcher.tasks_per_node=2: must be 1",
        ),
        (
            ["hydra/launcher=slurm", "hydra.launcher.partitoin=x"],
            "no such key in hydra.launcher, did you mean partition?",
        ),
        (["--config-dir", "nowhere"], "--config-dir nowhere: there is no such folder"),
        (["schedule.epochs=3"], "schedule.epochs=3: a retried run is what it was planned to be"),
    ],
)
def test_a_launcher_that_makes_no_sense(sweep: Failed, given: list[str], message: str) -> None:
    assert message in error(edkd("retry", *given))


# ---- edkd logs


@pytest.fixture
def logged(here: Path) -> Path:
    """A run directory with a log of 50 lines, and one more beside it."""
    folder = here / "outputs" / "runs" / "digits-8" / "vgg13-vgg8"
    for name in ("kd-s0-0123abcd", "kd-s1-0199abcd"):
        (folder / name).mkdir(parents=True)
    run = folder / "kd-s0-0123abcd"
    (run / "run.log").write_text("".join(f"line {number}\n" for number in range(50)))
    (run / "config.yaml").touch()
    return run


@pytest.mark.parametrize(
    "given",
    [
        "0123abcd",
        "012",
        "0123abcd4567ef89",
        "kd-s0-0123abcd",
        "vgg13-vgg8/kd-s0",
        "kd-s0",
        "digits-8/vgg13-vgg8/kd-s0-0123abcd",
        "outputs/runs/digits-8/vgg13-vgg8/kd-s0-0123abcd",
    ],
)
def test_the_end_of_a_log(logged: Path, given: str) -> None:
    done = edkd("logs", given, "-n", "2")
    assert (done.code, done.out, done.err) == (0, "line 48\nline 49\n", "")
    assert len(edkd("logs", given).out.splitlines()) == 20
    assert edkd("logs", given, "-n", "1000").out == (logged / "run.log").read_text()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("01", "01 names 2 runs: digits-8/vgg13-vgg8/kd-s0-0123abcd, digits-8/vgg13-vgg8/kd-s1-0199abcd; give more"),
        ("dkd-s0", "no run dkd-s0 in outputs/runs; give a hash"),
        ("0199", "no log yet: digits-8/vgg13-vgg8/kd-s1-0199abcd is new"),
        ("", "no run "),
    ],
)
def test_a_run_that_is_not_clear(logged: Path, given: str, message: str) -> None:
    assert error(edkd("logs", given)).startswith(message)


def submit(run: Path) -> Path:
    """A SLURM job of the run that nobody can be asked about, with its log."""
    log = run.parents[4] / "12_0.err"
    log.write_text("slurmstepd: error: Detected 1 oom_kill event\n")
    (run / "slurm.json").write_text(json.dumps({"job_id": "12_0", "submitted": 1.0, "sweep": "x", "log": str(log)}))
    return log


def test_the_log_of_the_job_where_the_run_has_none(logged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    (logged / "run.log").unlink()
    submit(logged)
    assert edkd("logs", "kd-s0").out == "slurmstepd: error: Detected 1 oom_kill event\n"


def test_the_log_of_the_job_where_it_was_written_last(logged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    log = submit(logged)
    both = edkd("logs", "kd-s0", "-n", "1").out.splitlines()
    assert both[::2] == [f"==> {logged.relative_to(logged.parents[4])}/run.log <==", f"==> {log} <=="]
    os.utime(log, (1, 1))  # long before the run's own log
    assert edkd("logs", "kd-s0", "-n", "1").out == "line 49\n"
    os.utime(log)
    journal.Journal(logged).append({"event": "end"})
    assert edkd("logs", "kd-s0", "-n", "1").out == "line 49\n"


def test_following_until_the_run_has_ended(logged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "POLL", 0.02)
    book = journal.Journal(logged)
    book.append({"event": "start", "config": {}})

    def train() -> None:
        with lock.hold(logged):
            started.set()
            with (logged / "run.log").open("a") as file:
                for number in range(50, 60):
                    print("line", number, file=file, flush=True)
                    time.sleep(0.05)
            book.append({"event": "failure", "error": "no"})

    started = threading.Event()
    trainer = threading.Thread(target=train)
    trainer.start()
    assert started.wait(60)
    done = edkd("logs", "-f", "kd-s0", "-n", "1000")
    trainer.join()
    assert (done.code, done.out) == (0, "".join(f"line {number}\n" for number in range(60)))


def test_following_a_run_that_waits_begins_with_a_word(logged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = journal.Journal(logged)
    naps: list[float] = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 25:
            book.append({"event": "failure", "error": "no"})

    monkeypatch.setattr(logs, "time", SimpleNamespace(sleep=sleep))
    (logged / "run.log").unlink()
    done = edkd("logs", "-f", "kd-s0")
    run = "digits-8/vgg13-vgg8/kd-s0-0123abcd"
    assert done.err == f"no log yet: {run} is new; following it\nedkd: no log yet: {run} failed (no)\n"
    assert (done.code, len(naps)) == (1, 40), "the run is looked at, and so SLURM asked, every twenty naps"

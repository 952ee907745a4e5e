"""Waiting for jobs until they have ended, and why they did."""

import inspect
import sys
import time
from collections.abc import Generator, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edkd.config import job as config_job
from edkd.rundir import journal, lock
from edkd.slurm import queue
from edkd.slurm.submission import Submission
from edkd.status import wait
from edkd.status.state import RunStatus, look
from edkd.sweeps import execution
from tests.commandline import REPOSITORY, edkd, journals, launch, metrics, python
from tests.fake_slurm import FakeSlurm
from tests.slurm.commands import slurm


def test_a_sweep_from_the_command_to_the_summary(tiny: list[str], fake_slurm: FakeSlurm, here: Path) -> None:
    fake_slurm.set("run")
    fake_slurm.queue(j1="RUNNING", j2="PENDING")
    done = slurm(tiny, "distiller=kd", "hydra.launcher.cpus_per_task=1", launcher="slurm")
    assert done.code == 0, done
    assert done.out.splitlines()[-2].endswith("2 of 2 runs finished")
    found = journals(here / "outputs")
    (start,) = [record for record in found["resnet8-resnet8/kd-s0"] if record["event"] == "start"]
    assert start["slurm"] == {"job_id": "2", "node": "n1", "cuda_visible_devices": None, "restarts": 0}
    elsewhere = here / "elsewhere"
    assert launch("-m", *tiny, "distiller=kd", f"output={elsewhere}").code == 0
    for name, records in journals(elsewhere).items():
        assert metrics(found[name]) == metrics(records)


def test_a_student_in_the_queue_outlives_its_teacher_and_says_why_it_failed(
    tiny: list[str], fake_slurm: FakeSlurm, here: Path
) -> None:
    fake_slurm.set("run")
    fake_slurm.queue(j1="RUNNING", j2="PENDING Dependency")
    done = slurm(tiny, "distiller=kd", "schedule.lr=1e30", "hydra.launcher.cpus_per_task=1", launcher="slurm")
    assert done.code == 1, done
    (teacher,) = (here / "outputs").glob("runs/*/resnet8/vanilla-*")
    failed = next(line for line in done.err.splitlines() if " failed: teacher resnet8 is not in " in line)
    assert failed.endswith(f": its run {teacher} failed; `edkd retry`, or the same command again, trains it first")
    assert done.err.count("SLURM: 1 run waits: Dependency") == 1
    first, second = (line for line in done.out.splitlines() if " failed: " in line)
    assert "training diverged; lower schedule.lr" in first
    assert second.endswith(" failed: its teacher resnet8 is not trained yet")


def test_a_job_that_left_the_queue_without_a_word_has_vanished(
    tiny: list[str], fake_slurm: FakeSlurm, here: Path
) -> None:
    log = here / "outputs" / "sweeps" / "slurm" / "1_0_0_log.err"
    log.parent.mkdir(parents=True)
    log.write_text(NO_PYTHON)
    fake_slurm.queue(j1_0="FAILED")
    done = slurm(tiny, "distiller=vanilla", "seed=0,1", launcher="slurm")
    assert done.code == 1
    first, second = (line for line in done.out.splitlines() if " vanished after epoch 0: " in line)
    why = f": FAILED: execve(): /nonexistent/python: No such file or directory (SLURM job 1_0, {log})"
    assert first.endswith(why) and "job gone from SLURM's queue (SLURM job 1_1)" in second
    assert f": vanished{why}\n" in done.err
    assert "  FAILED: execve(): /nonexistent/python: No such file or directory\n" in edkd("status").out


def test_what_another_command_has_continued_is_not_given_up(
    tiny: list[str], fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = execution.wait

    def outlasted(run_dirs: Iterable[Path], poll_s: float) -> dict[Path, RunStatus]:
        ended = original(run_dirs, poll_s)
        assert {status.state for status in ended.values()} == {"vanished"}
        assert python(str(REPOSITORY / "launch.py"), "-m", *tiny, "distiller=vanilla").code == 0
        return ended

    monkeypatch.setattr(execution, "wait", outlasted)
    done = slurm(tiny, "distiller=vanilla", launcher="slurm")
    assert done.code == 0 and "1 of 1 runs finished" in done.out, done


def test_a_warning_before_python_is_ready_ends_no_job(tiny: list[str], fake_slurm: FakeSlurm, here: Path) -> None:
    early = here / "python"
    early.write_text(f'#!/bin/sh\nkill -USR2 $$\nexec {sys.executable} "$@"\n')
    early.chmod(0o755)
    fake_slurm.set("run")
    fake_slurm.queue(j1="RUNNING")
    done = slurm(tiny, "distiller=vanilla", f"hydra.launcher.python={early}", launcher="slurm")
    assert done.code == 0 and "1 of 1 runs finished" in done.out, done


NO_PYTHON = """\
slurmstepd: error: execve(): /nonexistent/python: No such file or directory
srun: error: n1: task 0: Exited with exit code 2

"""


@pytest.mark.parametrize(
    ("log", "line"),
    [
        (NO_PYTHON, "execve(): /nonexistent/python: No such file or directory"),
        (
            "/var/spool/n1/job00002/slurm_script: line 19: module: command not found\n",
            "line 19: module: command not found",
        ),
        ("srun: error: Unable to create step\n", "srun: error: Unable to create step"),
        ("x" * 10_000 + "\n", "x" * 150 + "…"),
        ("\n", ""),
        (None, ""),
    ],
)
def test_the_last_line_of_a_log(here: Path, log: str | None, line: str) -> None:
    if log is not None:
        (here / "log").write_text(log)
    assert queue.last_line(here / "log") == line


@pytest.fixture
def run_dir(make_job: Any, fake_slurm: FakeSlurm) -> Path:
    """The directory of a run whose job 1 was submitted."""
    job = make_job("vanilla")
    config_job.freeze(job, sweep=None, threads=None)
    Submission("1", time.time(), "grid", "log").write(job.directory)
    return Path(job.directory)


def waited(
    monkeypatch: pytest.MonkeyPatch, run_dir: Path, poll_s: float, meanwhile: Generator[None, None, None]
) -> list[str]:
    """The states in which `wait` finds a run at the end. Its pauses take no time; each takes a step of `meanwhile`."""
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        next(meanwhile, None)

    monkeypatch.setattr(wait, "time", SimpleNamespace(monotonic=lambda: now, sleep=sleep))
    ended = wait.wait([run_dir], poll_s)
    assert inspect.getgeneratorstate(meanwhile) == inspect.GEN_CLOSED, "it has not waited for that"
    return [status.state for status in ended.values()]


def test_nothing_vanishes_while_slurm_is_away_or_the_directory_is_held(
    run_dir: Path, fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_slurm.set("away")

    def meanwhile() -> Generator[None, None, None]:
        yield from [None] * 3
        with lock.hold(run_dir):
            fake_slurm.clear("away")
            yield from [None] * 3

    assert waited(monkeypatch, run_dir, wait.SILENCE, meanwhile()) == ["vanished"]


def test_a_job_in_the_queue_has_not_ended_whatever_the_journal_says(
    run_dir: Path, fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_slurm.queue(j1="COMPLETING")
    journal.Journal(run_dir).append({"event": "failure", "error": "no"})

    def meanwhile() -> Generator[None, None, None]:
        yield from [None] * 3
        fake_slurm.queue(j1="FAILED")

    assert waited(monkeypatch, run_dir, wait.SILENCE, meanwhile()) == ["failed"]


def test_a_requeued_job_that_was_lost_for_a_moment_has_not_vanished(
    run_dir: Path, fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_slurm.queue(j1="NODE_FAIL")

    def meanwhile() -> Generator[None, None, None]:
        yield
        fake_slurm.queue(j1="PENDING")
        yield from [None] * 5
        fake_slurm.queue(j1="NODE_FAIL")  # counted anew
        yield
        journal.Journal(run_dir).append({"event": "end"})

    assert waited(monkeypatch, run_dir, wait.SILENCE * 0.4, meanwhile()) == ["done"]


def test_why_jobs_wait_is_shown_when_it_is_news(
    run_dir: Path, fake_slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [run_dir.with_name(f"vanilla-s{seed}-0123abcd") for seed in range(3)]
    for seed, run in enumerate(runs):
        run.mkdir()
        Submission(f"1_{seed}", time.time(), "grid", "log").write(run)
    queues = [
        {"j1_0": "PENDING", "j1_1": "PENDING", "j1_2": "PENDING"},
        {"j1_0": "PENDING PartitionConfig", "j1_1": "PENDING PartitionConfig", "j1_2": "PENDING PartitionConfig"},
        {"j1_0": "PENDING Resources", "j1_1": "PENDING Priority", "j1_2": "PENDING Priority"},
        {"j1_0": "RUNNING", "j1_1": "PENDING ReqNodeNotAvail", "j1_2": "COMPLETED"},
        {"j1_0": "RUNNING", "j1_1": "PENDING Priority", "j1_2": "RUNNING"},
    ]
    shown: set[str] = set()
    for state in queues:
        fake_slurm.queue(**state)
        for _ in range(2):
            shown |= wait.show_reasons(look(runs), shown)
    assert capsys.readouterr().err.splitlines() == [
        "SLURM: 3 runs wait: PartitionConfig",
        f"SLURM: PartitionConfig does not end by itself: {queue.cure('PartitionConfig', '')}",
        "SLURM: 3 runs wait: Priority (2), Resources (1)",
        "SLURM: 1 run waits: ReqNodeNotAvail",
        f"SLURM: ReqNodeNotAvail does not end by itself: {queue.cure('ReqNodeNotAvail', '')}",
    ]


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("PartitionConfig", "smaller cpus_per_task"),
        ("JobHeldUser", "`scontrol release 7`"),
        ("launch failed requeued held", "`scontrol release 7`"),
        ("QOSMaxCpuPerUserLimit", "sacctmgr show qos"),
        ("AssocGrpGRES", "sacctmgr show assoc"),
        ("ReqNodeNotAvail, UnavailableNodes:n[1-3]", "sinfo -R"),
        ("DependencyNeverSatisfied", "`scancel 7`"),
        ("Dependency", ""),
        ("Priority", ""),
    ],
)
def test_what_helps_a_job_that_cannot_begin(reason: str, said: str) -> None:
    helps = queue.cure(reason, "7")
    assert said in helps and bool(said) == bool(helps)

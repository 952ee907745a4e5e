"""A command that comes again finds the jobs of the one before."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

from edkd.config import job as config_job
from edkd.rundir import journal, lock
from edkd.slurm.submission import Submission
from edkd.sweeps import execution
from tests.commandline import Ended, launch
from tests.fake_slurm import FakeSlurm
from tests.slurm.commands import flags, slurm, submissions


def test_jobs_in_the_queue_are_found_again_and_not_submitted_twice(
    tiny: list[str], fake_slurm: FakeSlurm, here: Path
) -> None:
    assert slurm(tiny, "distiller=kd", "seed=0,1").code == 0
    before = submissions(here / "outputs")
    fake_slurm.queue(j1="RUNNING", j2_0="PENDING", j2_1="CANCELLED")
    done = slurm(tiny, "distiller=kd", "seed=0,1,2")
    assert "2 jobs submitted to SLURM, 2 were in its queue already: 1, 2, 3\n" in done.out
    assert flags(fake_slurm.scripts()[2])["dependency"] == "afterany:1"
    after = submissions(here / "outputs")
    assert after.pop("resnet8-resnet8/kd-s2")["job_id"] == "3_1"
    assert after.pop("resnet8-resnet8/kd-s1")["job_id"] == "3_0"
    assert after == {name: before[name] for name in after}


@pytest.mark.parametrize("state", ["NODE_FAIL", "PREEMPTED"])
def test_a_job_that_slurm_is_about_to_queue_again_gets_no_twin(
    tiny: list[str], fake_slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    assert slurm(tiny, "distiller=vanilla").code == 0
    fake_slurm.queue(j1=state)
    monkeypatch.setattr(execution.time, "sleep", lambda seconds: fake_slurm.queue(j1="PENDING"))
    assert "0 jobs submitted to SLURM, 1 was in its queue already: 1\n" in slurm(tiny, "distiller=vanilla").out


def test_the_plan_says_what_is_in_the_queue_and_slurm_is_asked_once(
    tiny: list[str], fake_slurm: FakeSlurm, here: Path
) -> None:
    squeue = fake_slurm.folder / "bin" / "squeue"
    squeue.write_text(squeue.read_text() + f"\necho >>{fake_slurm.folder}/squeues\n")

    def planned(done: Ended) -> list[str]:
        return [
            line.split("  ")[-1].strip()
            for line in done.out.splitlines()
            if line.startswith(("1 teacher", "2 student"))
        ]

    assert planned(slurm(tiny, "distiller=kd", "seed=0,1")) == ["new"] * 3
    assert not (fake_slurm.folder / "squeues").exists(), "there was nothing to ask"
    fake_slurm.queue(j1="RUNNING", j2_0="PENDING", j2_1="CANCELLED")
    again = slurm(tiny, "distiller=kd", "seed=0,1")
    assert planned(again) == ["waiting in SLURM (job 1)", "waiting in SLURM (job 2_0)", "new"]
    assert "2 runs: 1 waiting in SLURM, 1 new; teachers to train first: 1" in again.out
    assert "1 job submitted to SLURM, 2 were in its queue already" in again.out
    assert len((fake_slurm.folder / "squeues").read_text().splitlines()) == 1
    fake_slurm.set("away")
    assert all("waiting in SLURM (job " in each for each in planned(slurm(tiny, "distiller=kd", "seed=0,1")))
    assert len((fake_slurm.folder / "squeues").read_text().splitlines()) == 1
    fake_slurm.clear("away")
    here_instead = launch("-m", *tiny, "distiller=kd", "+dry_run=true")
    assert planned(here_instead) == ["new"] * 2
    assert "WARNING: in SLURM's queue: 2 runs of this command (job 1, 2); `scancel` that, or let" in here_instead.err
    fake_slurm.queue()
    assert "WARNING" not in launch("-m", *tiny, "distiller=kd", "+dry_run=true").err


def test_a_run_that_a_job_of_slurms_holds_runs_there(make_job: Any, tiny: list[str], fake_slurm: FakeSlurm) -> None:
    job = make_job("vanilla")
    config_job.freeze(job, sweep=None, threads=None)
    Submission("7_3", time.time(), "grid", "log").write(job.directory)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_JOB_ID", "10")
        holding = lock.hold(job.directory)
        holding.__enter__()
    try:
        shown = launch("-m", *tiny, "distiller=vanilla", "+dry_run=true").out
    finally:
        holding.__exit__(None, None, None)
    assert "  running in SLURM (job 7_3)\n" in shown


def test_what_may_still_be_queued_is_not_submitted_again_while_slurm_is_away(
    tiny: list[str], fake_slurm: FakeSlurm
) -> None:
    assert slurm(tiny, "distiller=vanilla").code == 0
    fake_slurm.set("away")
    done = slurm(tiny, "distiller=vanilla")
    assert done.code == 1 and "SLURM does not answer, and may still have 1 of these runs in its queue" in done.err
    assert len(fake_slurm.scripts()) == 1
    fake_slurm.clear("away")
    assert slurm(tiny, "distiller=vanilla").code == 0
    assert len(fake_slurm.scripts()) == 2


def test_a_failed_run_is_submitted_again_once_its_job_has_left(
    tiny: list[str], fake_slurm: FakeSlurm, here: Path
) -> None:
    assert slurm(tiny, "distiller=vanilla").code == 0
    (run,) = (path.parent for path in (here / "outputs").rglob("slurm.json"))
    journal.Journal(run).append({"event": "failure", "error": "no"})
    fake_slurm.queue(j1="COMPLETING")
    assert "0 jobs submitted to SLURM, 1 was in its queue already: 1\n" in slurm(tiny, "distiller=vanilla").out
    fake_slurm.queue(j1="FAILED")
    assert "1 job submitted to SLURM: 2\n" in slurm(tiny, "distiller=vanilla").out


def test_students_of_a_teacher_that_trains_elsewhere_are_not_submitted(
    tiny: list[str], fake_slurm: FakeSlurm, here: Path
) -> None:
    assert slurm(tiny, "distiller=kd").code == 0
    (teacher,) = (here / "outputs").glob("runs/*/resnet8/vanilla-*")
    with lock.hold(teacher):
        done = slurm(tiny, "distiller=kd", launcher="slurm")
    assert done.code == 1 and len(fake_slurm.scripts()) == 2
    assert "is running in another process" in done.out and "its teacher resnet8 is not trained yet" in done.out


@pytest.mark.parametrize("launcher", ["basic", "slurm"])
def test_who_repeats_a_finished_sweep_of_somebody_elses_is_told_so(
    tiny: list[str], fake_slurm: FakeSlurm, here: Path, monkeypatch: pytest.MonkeyPatch, launcher: str
) -> None:
    assert launch("-m", *tiny, "distiller=vanilla", "schedule.epochs=1").code == 0
    before = {path: path.stat().st_mtime_ns for path in here.rglob("*")}
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    done = launch("-m", *tiny, "distiller=vanilla", "schedule.epochs=1", f"hydra/launcher={launcher}")
    assert (done.code, done.err) == (0, "") and ": 1 of 1 runs finished\n" in done.out
    assert {path: path.stat().st_mtime_ns for path in here.rglob("*")} == before

"""Run the jobs of a sweep, missing teachers first: here, or in SLURM's queue.

Hydra's launcher launches the jobs (in this process, in several local ones, on SLURM). Their states are read only from
their journals, because a launcher may lose a job, and a lost job must not end the others.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig

from edkd.config.compose import quoted
from edkd.config.job import Job, freeze
from edkd.console import LOG, console
from edkd.errors import EdkdError
from edkd.rundir import journal, lock, provenance
from edkd.slurm import submit
from edkd.slurm.queue import RETURNING
from edkd.slurm.submission import Submission
from edkd.status.state import UNSEEN, RunStatus, look
from edkd.status.wait import wait
from edkd.sweeps import progress, report
from edkd.sweeps.plan import Sweep
from edkd.training.device import cores, name_gpus

POLL = 1.0  # seconds between looks at a teacher that another command trains
MOMENT = 3.0  # seconds that SLURM needs to requeue a job that was preempted or lost its node


def run(
    planned: Sweep, statuses: Mapping[str, RunStatus], master: DictConfig, launcher: Launcher
) -> dict[str, RunStatus] | None:
    """Launch what is not done, teachers first, and wait; returns each run's status, None if nobody waits for SLURM."""
    if isinstance(launcher, submit.Queue):
        return _queue(planned, statuses, launcher)
    return _run(planned, statuses, master, launcher)


def look_at(planned: Sweep, *, ask: bool) -> dict[str, RunStatus]:
    """The status of each run. Unless `ask`, SLURM is not asked, and a run that waits in its queue is `vanished`."""
    found = look([job.directory for job in planned.jobs], **({} if ask else {"ask": lambda job_ids: {}}))
    return {job.run: status for job, status in zip(planned.jobs, found)}


def outstanding(planned: Sweep, statuses: Mapping[str, RunStatus]) -> list[Job]:
    """The jobs to launch. A teacher that is done, but not in the store, is put there again by its job."""
    active = ("waiting", "running")
    todo = [job for job in planned.teachers if statuses[job.run].state not in active]
    return todo + [job for job in planned.students if statuses[job.run].state not in (*active, "done")]


def _queue(planned: Sweep, statuses: Mapping[str, RunStatus], launcher: submit.Queue) -> dict[str, RunStatus] | None:
    """Submit what is neither done nor in the queue, and wait for all that is, unless the launcher is detached."""
    submit.require_sbatch()
    with progress.watch(planned.jobs, parallel=launcher.parallel):
        folder = Path(planned.jobs[0].settings.output) / "sweeps"
        with submit.alone(folder):
            submit.adopt(folder, launcher)
            returning = any(each.entry is not None and each.entry.state in RETURNING for each in statuses.values())
            if returning:
                time.sleep(MOMENT)
            if returning or any(Submission.read(job.directory) != statuses[job.run].submission for job in planned.jobs):
                statuses = look_at(planned, ask=True)  # another command or SLURM has queued some since
            unseen = sum(status.why == UNSEEN for status in statuses.values())
            if unseen:
                raise EdkdError(
                    f"{submit.NO_ANSWER}, and may still have {unseen} of these runs in its queue: {submit.SQUEUE_SAYS}"
                )
            queued = {run: each.submission for run, each in statuses.items() if each.in_queue and each.submission}
            todo = {job.run for job in outstanding(planned, statuses)}
            submitted = submit.submit(planned, todo, queued, launcher, folder)
        submit.show_submitted(submitted, queued, detached=launcher.detached)
        if launcher.detached:
            return None
        try:
            ended = wait([job.directory for job in planned.jobs if job.run in submitted | queued], launcher.poll_s)
        except KeyboardInterrupt:
            console.print(
                "the jobs stay in SLURM's queue: `edkd status` shows them, the same command waits for them again"
            )
            raise
    outcome = look_at(planned, ask=False)
    for job in planned.jobs:  # another command may have resumed vanished runs since
        if job.directory in ended and outcome[job.run].state not in ("done", "running"):
            outcome[job.run] = ended[job.directory]
    report.track_end(planned, outcome)  # the parent run was made by the first job that logged
    return outcome


def _run(
    planned: Sweep, statuses: Mapping[str, RunStatus], master: DictConfig, launcher: Launcher
) -> dict[str, RunStatus]:
    """Launch what is not done, stage by stage, in this process or in several on this machine."""
    todo = outstanding(planned, statuses)
    parallel, threads = shares(master, len(todo))
    if parallel is not None and parallel > 1:
        name_gpus()
    if todo and threads is not None:
        progress.warn_if_busy(todo[0].settings, threads)
    known = provenance.read()
    files = {job.run: freeze(job, sweep=planned.id, threads=threads, planned_with=known) for job in todo}
    where = planned.jobs[0].settings.tracking
    if where.uri is not None:
        report.track_start(planned.id, where)
    try:
        with progress.watch(todo, parallel=parallel or len(todo)):
            _launch([job for job in planned.teachers if job.run in files], files, launcher)
            if _others_train(planned.teachers):
                left = _unfinished(planned.teachers)
                files |= {job.run: freeze(job, sweep=planned.id, threads=threads, planned_with=known) for job in left}
                _launch(left, files, launcher)
            taught = [job for job in planned.students if job.run in files and not _lacks_teacher(job, planned)]
            _launch(taught, files, launcher)
    except KeyboardInterrupt:
        for job in todo:  # a launcher's processes that got no interrupt themselves ended without a record
            state = journal.state(job.directory)
            began = state.start != statuses[job.run].known.start
            if began and state.status == "interrupted" and state.interruption is None:
                journal.Journal(job.directory).append({"event": "interrupted"})
        raise
    finally:
        outcome = look_at(planned, ask=False)
        report.track_end(planned, outcome)
    return outcome


def _others_train(teachers: Sequence[Job]) -> bool:
    """Wait until no other command trains one of these teachers; returns whether one did."""
    said: set[str] = set()
    while held := {job.name: holder for job in teachers if (holder := lock.is_held(job.directory)) is not None}:
        for name in held.keys() - said:
            console.print(
                f"waiting for {name}, which trains in another process (pid {held[name].get('pid')} on "
                f"{held[name].get('host')})",
                markup=False,
                soft_wrap=True,
            )
        said |= held.keys()
        time.sleep(POLL)
    return bool(said)


def _lacks_teacher(job: Job, planned: Sweep) -> bool:
    """Whether the job's teacher was to be trained in this sweep and was not."""
    teachers = {f"run:{teacher.run}": teacher for teacher in planned.teachers}
    teacher = teachers.get(job.teacher_id or "")
    return teacher is not None and journal.state(teacher.directory).status != "finished"


def _launch(jobs: Sequence[Job], files: dict[str, Path], launcher: Launcher) -> None:
    """Launch jobs; launch those again that died or that a dying neighbour ended, as long as that makes progress."""
    first, before = 0, None
    while jobs and (now := [_progress(job) for job in jobs]) != before:
        before = now
        try:
            ended = launcher.launch(
                [[f"+frozen={quoted(files[job.run].as_posix())}"] for job in jobs], initial_job_idx=first
            )
            for job, returned in zip(jobs, ended, strict=False):
                if returned.status is JobStatus.FAILED:
                    _note(job, returned._return_value)
        except Exception as error:
            reason = " ".join(str(error).split())[:500]
            LOG.warning("the launcher stopped (%s: %s); looking at the journals", type(error).__name__, reason)
        first += len(jobs)
        jobs = _unfinished(jobs)


def _unfinished(jobs: Iterable[Job]) -> list[Job]:
    return [job for job in jobs if journal.state(job.directory).status in ("new", "interrupted")]


def _note(job: Job, error: Any) -> None:
    """Record a job's error in its journal, unless it is there: a job may fail before it can open its journal."""
    line = str(error) if isinstance(error, EdkdError) else f"{type(error).__name__}: {error}"
    status = journal.state(job.directory).status
    if status in ("new", "interrupted"):
        journal.Journal(job.directory).append({"event": "failure", "error": line})
    elif status == "finished":  # a teacher that could not be put into the store
        LOG.warning("%s: %s", job.name, line)


def _progress(job: Job) -> tuple[str, str, int]:
    state = journal.state(job.directory)
    return job.run, state.status, state.epoch


def shares(master: DictConfig, jobs: int) -> tuple[int | None, int | None]:
    """How many of `jobs` jobs the launcher runs at a time on this machine, and each one's share of the CPU threads.

    Both are None for launchers that submit jobs to a queue.
    """
    launcher, parallel = master.hydra.launcher, 1
    if not str(launcher._target_).endswith("BasicLauncher"):
        if "n_jobs" not in launcher:
            return None, None
        if launcher.n_jobs == 0:
            raise EdkdError("hydra.launcher.n_jobs is 0; allowed: 1 or more runs at a time, or -1 for one a CPU core")
        parallel = max(1, min(jobs, launcher.n_jobs if launcher.n_jobs > 0 else cores()))
    return parallel, max(1, cores() // parallel)

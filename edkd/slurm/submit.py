"""Handing a sweep to SLURM: all of its jobs at once.

    teachers: arrays of jobs -> students of each teacher: arrays that depend on that teacher's job alone

Each run's directory keeps a `Submission` that names its job. So the launching process may go and come again: the same
command finds the jobs that wait or run, and submits only the others.
"""

import contextlib
import re
import shutil
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from filelock import FileLock

from edkd.config.job import Job, absent, freeze, unmake
from edkd.console import LOG, counted
from edkd.errors import EdkdError
from edkd.rundir import provenance
from edkd.rundir.paths import RunDir
from edkd.slurm import queue
from edkd.slurm.submission import Submission


class Planned(Protocol):
    """The part of a planned sweep that is submitted and shown."""

    students: list[Job]
    teachers: list[Job]

    @property
    def id(self) -> str:
        """Names the sweep."""


@runtime_checkable
class Queue(Protocol):
    """A launcher that hands jobs to a queue instead of running them."""

    detached: bool
    poll_s: float
    threads: int | None

    def check(self) -> None:
        """Raise EdkdError for parameters that make no sense."""

    def submit(self, configs: Sequence[Path], after: str | None) -> Sequence[tuple[str, str]]:
        """Submit the runs of some frozen configurations, to begin when job `after` has ended, however it did.

        Returns the id and the log file of each job. Raises EdkdError if the queue refuses them.
        """


def require_sbatch() -> None:
    """Raise EdkdError where jobs cannot be submitted."""
    if not shutil.which("sbatch"):
        raise EdkdError(
            "there is no sbatch on PATH: start this on a login node of the cluster, "
            "or use another launcher, such as hydra/launcher=local"
        )


def submit(
    planned: Planned, todo: Collection[str], queued: Mapping[str, Submission], launcher: Queue
) -> dict[str, Submission]:
    """Submit those jobs of a sweep whose runs are `todo`; `queued` has what is in the queue already, by run.

    A student whose teacher another process trains is left out. Returns the submissions by run. Raises EdkdError if the
    queue refuses jobs: those that it has by then stay, and of those that it refused nothing stays that was not there.
    """
    code, limit = provenance.read(), array_limit()
    submitted: dict[str, Submission] = {}

    def send(jobs: Sequence[Job], after: str | None) -> None:
        for first in range(0, len(jobs), limit):
            part = jobs[first : first + limit]
            made = [folder for job in part for folder in absent(job)]
            try:
                frozen = [
                    freeze(job, sweep=planned.id, threads=launcher.threads, planned_with=code).absolute()
                    for job in part
                ]
                sizes = [RunDir(job.directory).journal_size for job in part]
                accepted = launcher.submit(frozen, after)
            except EdkdError:
                unmake(made)
                raise
            for job, size, (job_id, log) in zip(part, sizes, accepted, strict=True):
                submitted[job.run] = Submission(job_id, time.time(), planned.id, log, size)
                submitted[job.run].write(job.directory)

    send([job for job in planned.teachers if job.run in todo], None)
    trained_by = {f"run:{job.run}": (submitted | {**queued}).get(job.run) for job in planned.teachers}
    students: dict[str | None, list[Job]] = {}
    for job in planned.students:
        teacher = trained_by.get(job.teacher_id or "")
        if job.run in todo and (job.teacher_id not in trained_by or teacher is not None):
            students.setdefault(teacher.job_id if teacher else None, []).append(job)
    for after, jobs in sorted(students.items(), key=lambda item: item[0] is not None):
        send(jobs, after)
    return submitted


def show_submitted(submitted: Mapping[str, Submission], queued: Mapping[str, Submission], *, detached: bool) -> None:
    """Print how many jobs there are in the queue, and their numbers."""
    arrays = sorted({each.job_id.partition("_")[0] for each in [*submitted.values(), *queued.values()]}, key=int)
    line = f"{counted(len(submitted), 'job')} submitted to SLURM"
    if queued:
        line += f", {len(queued)} {'was' if len(queued) == 1 else 'were'} in its queue already"
    print(f"{line}{': ' + ', '.join(arrays) if arrays else ''}", flush=True)
    if detached:
        print(
            "not waiting for them; `edkd status` shows how they are; "
            "the same command with hydra.launcher.detached=false waits, and ends with the summary"
        )


def array_limit() -> int:
    """The largest number of jobs in one array, as the cluster is set up; 1001, SLURM's default, if it does not say.

    This is the first question to SLURM of a sweep's first command. sbatch would try for longer, and in silence.
    """
    asked = queue.ask(["scontrol", "show", "config"], time.monotonic() + queue.PATIENCE)
    if asked is None or asked.returncode != 0:
        LOG.warning("SLURM does not answer; trying to submit all the same")
        return 1001
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", asked.stdout, re.MULTILINE)
    return max(1, int(found[1])) if found else 1001


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Let one command at a time submit jobs: two would submit the same."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = FileLock(folder / ".submission.lock")
        held.acquire()
    except (OSError, NotImplementedError) as error:
        raise EdkdError(f"cannot write below {folder}: {error}") from error
    try:
        yield
    finally:
        held.release()

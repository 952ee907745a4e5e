"""Submits a sweep to SLURM, all of its jobs at once.

    teachers: arrays of jobs -> students of each teacher: arrays that depend on that teacher's job alone

Each run's directory keeps a `Submission` that names its job. So the launching process may end. The same command then
finds the jobs that wait or run, and submits only the others.
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import time
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from edkd.config.job import Job, absent, freeze, remove_frozen
from edkd.console import LOG, counted
from edkd.errors import EdkdError
from edkd.rundir import files, provenance
from edkd.rundir.paths import RunDir
from edkd.slurm import queue
from edkd.slurm.submission import Submission, UnwrittenError

NO_ANSWER = "SLURM does not answer"
SQUEUE_SAYS = "`squeue` says why; the same command continues when it is back"
_UNDER_WAY = ".submitting"  # suffix of the file that names jobs while they are submitted


class Planned(Protocol):
    """The part of a planned sweep that is submitted and shown."""

    students: list[Job]
    teachers: list[Job]

    @property
    def id(self) -> str:
        """Names the sweep."""


@runtime_checkable
class Queue(Protocol):
    """A launcher that submits jobs to a queue instead of running them."""

    detached: bool
    poll_s: float
    threads: int | None
    runs_per_job: int
    parallel: int  # runs of one array at a time, at most

    @property
    def name(self) -> str:
        """The prefix of the jobs' names."""

    def check(self) -> None:
        """Raise EdkdError for parameters that make no sense."""

    def check_devices(self, jobs: Sequence[Job]) -> None:
        """Raise EdkdError for runs whose devices do not match those of their SLURM jobs."""

    def submit(self, jobs: Sequence[Job], after: str | None, comment: str) -> Sequence[str]:
        """Submit the frozen runs of `jobs`, to begin when SLURM's job `after` has ended, well or not.

        Each SLURM job takes `runs_per_job` runs. Returns the SLURM job id of each run. Raises `RefusedError`, or
        `AwayError` if it is unknown whether SLURM has the jobs.
        """

    def log(self, job_id: str) -> str:
        """The file of a job's log."""


class RefusedError(EdkdError):
    """SLURM refuses the jobs."""


class AwayError(EdkdError):
    """SLURM does not answer; it may still have accepted the jobs."""


def label(job: Job) -> str:
    """The name of a run for squeue."""
    return f"{job.settings.pair}/{job.settings.method}-s{job.settings.seed}"


def several(labels: Sequence[str]) -> str:
    """The name of a job with these runs."""
    return labels[0] if len(labels) == 1 else f"{labels[0]}+{len(labels) - 1}"


def require_sbatch() -> None:
    """Raise EdkdError where jobs cannot be submitted."""
    if not shutil.which("sbatch"):
        raise EdkdError(
            "there is no sbatch on PATH: start this on a login node of the cluster, "
            "or use another launcher, such as hydra/launcher=local"
        )


def submit(
    planned: Planned, todo: Collection[str], queued: Mapping[str, Submission], launcher: Queue, folder: Path
) -> dict[str, Submission]:
    """Submit the jobs of a sweep whose runs are in `todo`; `queued` has the jobs that are in the queue already, by run.

    A student is left out if another process trains its teacher. Returns the submissions by run. Raises EdkdError if
    SLURM refuses jobs or does not answer. Jobs accepted before that stay; folders made for refused jobs are removed.
    `folder` keeps a record of the jobs during submission, for `adopt`.
    """
    code, limit = provenance.read(), array_limit()
    submitted: dict[str, Submission] = {}

    def send(jobs: Sequence[Job], after: str | None) -> None:
        for first in range(0, len(jobs), limit * launcher.runs_per_job):
            part = jobs[first : first + limit * launcher.runs_per_job]
            made = [folder for job in part for folder in absent(job)]
            try:
                for job in part:
                    freeze(job, sweep=planned.id, threads=launcher.threads, planned_with=code)
                submitted.update(_submit_jobs(part, after, planned.id, launcher, folder))
            except EdkdError as error:
                if not isinstance(error, (AwayError, UnwrittenError)):  # SLURM may have the jobs
                    remove_frozen(made)
                raise

    try:
        send([job for job in planned.teachers if job.run in todo], None)
        trained_by = {f"run:{job.run}": (submitted | {**queued}).get(job.run) for job in planned.teachers}
        students: dict[str | None, list[Job]] = {}
        for job in planned.students:
            teacher = trained_by.get(job.teacher_id or "")
            if job.run in todo and (job.teacher_id not in trained_by or teacher is not None):
                students.setdefault(teacher.job_id if teacher else None, []).append(job)
        for after, jobs in sorted(students.items(), key=lambda item: item[0] is not None):
            send(jobs, after)
    except (AwayError, RefusedError) as error:
        why = f"{NO_ANSWER if isinstance(error, AwayError) else 'SLURM refused the jobs'}: {error}"
        if not submitted and isinstance(error, RefusedError):
            raise EdkdError(why) from error
        count = f"{_counted(submitted)} submitted{_numbers(submitted)}"
        raise EdkdError(f"{count}; {len(todo) - len(submitted)} not: {why}; the same command continues") from error
    return submitted


def _submit_jobs(
    jobs: Sequence[Job], after: str | None, sweep: str, launcher: Queue, folder: Path
) -> dict[str, Submission]:
    """Submit jobs in one request and write their submissions; a file written before the request is for `adopt`."""
    comment = f"{sweep} {uuid.uuid4().hex[:8]}"
    sizes = [RunDir(job.directory).journal_size for job in jobs]
    under_way = folder / f".{comment.split()[1]}{_UNDER_WAY}"
    about = {"comment": comment, "user": os.geteuid(), "submitted": time.time(), "sweep": sweep}
    about["runs_per_job"] = launcher.runs_per_job
    about["runs"] = [(str(job.directory.absolute()), size) for job, size in zip(jobs, sizes)]
    with signals_held():
        try:
            files.write_text(under_way, json.dumps(about) + "\n")
        except OSError as error:
            raise EdkdError(f"cannot write {under_way}: {error.strerror}") from error
        try:
            ids = launcher.submit(jobs, after, comment)
        except AwayError:
            raise
        except EdkdError:
            under_way.unlink()
            raise
        made = {}
        for job, job_id, size in zip(jobs, ids, sizes, strict=True):
            made[job.run] = Submission(job_id, time.time(), sweep, launcher.log(job_id), size)
            made[job.run].write(job.directory)
        under_way.unlink()
    names: dict[str, list[str]] = {}
    for job in jobs:
        names.setdefault(made[job.run].job_id, []).append(label(job))
    if len(names) > 1:  # sbatch gives all tasks of an array one name
        queue.name_jobs({job_id: f"{launcher.name}:{several(each)}" for job_id, each in names.items()})
    return made


def adopt(folder: Path, launcher: Queue) -> None:
    """Write the submissions of jobs that SLURM took from a command that ended, or lost SLURM, before it wrote them.

    Raises EdkdError if there is such a command and SLURM does not answer.
    """
    for under_way in folder.glob(f".*{_UNDER_WAY}"):
        about = json.loads(under_way.read_bytes())
        found = queue.commented(about["comment"], about["user"])
        if found is None:
            raise EdkdError(f"{NO_ANSWER}, and may have jobs of an interrupted command: {SQUEUE_SAYS}")
        for job_id in found:
            first = about["runs_per_job"] * int(job_id.partition("_")[2] or 0)
            for run, size in about["runs"][first : first + about["runs_per_job"]]:
                Submission(job_id, about["submitted"], about["sweep"], launcher.log(job_id), size).write(Path(run))
        under_way.unlink()


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Keep Ctrl-C, SIGTERM and SIGHUP from this process and from those that it starts, until the block has ended."""
    noted: list[int] = []
    held = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    # Another thread may receive a signal that this one blocks; the handler runs in this thread all the same.
    handlers = {each: signal.signal(each, lambda number, frame: noted.append(number)) for each in held}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        yield
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for number in noted[:1]:
            signal.raise_signal(number)


def show_submitted(submitted: Mapping[str, Submission], queued: Mapping[str, Submission], *, detached: bool) -> None:
    """Print how many jobs there are in the queue, and their numbers."""
    line = f"{_counted(submitted)} submitted to SLURM"
    if queued:
        line += f", {len(queued)} {'was' if len(queued) == 1 else 'were'} in its queue already"
    print(f"{line}{_numbers({**submitted, **queued})}", flush=True)
    if detached:
        print(
            "not waiting for them; `edkd status` shows how they are; "
            "the same command with hydra.launcher.detached=false waits, and ends with the summary"
        )


def _counted(submissions: Mapping[str, Submission]) -> str:
    jobs = len({each.job_id for each in submissions.values()})
    return counted(jobs, "job") + (f" of {counted(len(submissions), 'run')}" if jobs < len(submissions) else "")


def _numbers(submissions: Mapping[str, Submission]) -> str:
    arrays = sorted({each.job_id.partition("_")[0] for each in submissions.values()}, key=int)
    return f": {', '.join(arrays)}" if arrays else ""


def array_limit() -> int:
    """The cluster's largest number of jobs in one array; SLURM's default, 1001, if the cluster does not report it.

    This is the first request to SLURM of a sweep's first command. sbatch would retry for longer, and log nothing.
    """
    asked = queue.ask(["scontrol", "show", "config"], time.monotonic() + queue.PATIENCE)
    if asked is None or asked.returncode != 0:
        LOG.warning(f"{NO_ANSWER}; submitting anyway")
        return 1001
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", asked.stdout, re.MULTILINE)
    return max(1, int(found[1])) if found else 1001


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Let one command at a time submit jobs: two would submit the same.

    sbatch inherits the lock, and keeps it if its command is killed: SLURM may accept the jobs after that. Raises
    EdkdError if `folder` cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".submission.lock").open("ab")
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        raise EdkdError(f"cannot write below {folder}: {error}") from error
    os.set_inheritable(file.fileno(), True)
    with file:
        yield

"""A sweep on SLURM: hand all of its jobs to the queue at once, and wait for what becomes of them.

    teachers: arrays of jobs -> students of each teacher: arrays that depend on that teacher's job alone

Each run directory keeps a ticket, `slurm.json`, that names its job. So the launching process may go and come again:
whoever gives the same command finds the jobs that wait or run, and submits only the others. What became of a run is
told by its journal; the queue is asked only about those that are silent.
"""

import contextlib
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from filelock import FileLock

from edkd.config.job import Job, absent, freeze, unmake
from edkd.console import LOG, console, counted
from edkd.errors import EdkdError
from edkd.rundir import journal, lock
from edkd.rundir.provenance import read as read_code
from edkd.slurm import queue
from edkd.slurm.job import journal_size
from edkd.slurm.submission import Answer, Ticket, ask, has_ended, keep, queued

LOOK = 1.0  # seconds between two looks at the journals; more where they are many
SILENCE = 20.0  # seconds that a job must be gone from the queue, and its journal silent, until it counts as vanished
NEWS = 90.0  # the same for a job that SLURM says has ended well: a network file system shows new files that late


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


def run(
    planned: Planned, states: Mapping[str, journal.RunState], launcher: Queue, answer: Answer | None = None
) -> dict[str, str] | None:
    """Submit what is neither finished nor in the queue already, and wait for all of it.

    `answer` is what SLURM said when this was planned: it is asked anew if others have submitted runs of it since.
    Returns of each run that vanished what is known about it; None from a launcher that does not wait. Raises EdkdError
    if the queue refuses the jobs or does not answer; those that it has by then are found again by the same command, and
    of those that it refused nothing stays that was not there before.
    """
    if not shutil.which("sbatch"):
        raise EdkdError(
            "there is no sbatch on PATH: start this on a login node of the cluster, "
            "or use another launcher, such as hydra/launcher=local"
        )
    every = [*planned.teachers, *planned.students]
    output = Path(every[0].settings.output)
    with _alone(output / "sweeps"):
        tickets = queued(every, ask(every, states, answer))
        adopted = len(tickets)
        tickets |= _submit(planned, states, tickets, launcher)
    _tell(planned, tickets, adopted, launcher.detached)
    if launcher.detached:
        return None
    jobs = {job.run: job for job in every}
    try:
        return follow({run: (jobs[run], ticket) for run, ticket in tickets.items()}, launcher.poll_s)
    except KeyboardInterrupt:
        console.print("the jobs stay in SLURM's queue: `edkd status` shows them, the same command waits for them again")
        raise


def _submit(
    planned: Planned, states: Mapping[str, journal.RunState], waiting: dict[str, Ticket], launcher: Queue
) -> dict[str, Ticket]:
    code, limit = read_code(), array_limit()
    submitted: dict[str, Ticket] = {}

    def send(jobs: Sequence[Job], after: str | None) -> None:
        for first in range(0, len(jobs), limit):
            part = jobs[first : first + limit]
            made = [folder for job in part for folder in absent(job)]
            try:
                frozen = [
                    freeze(job, sweep=planned.id, threads=launcher.threads, planned_with=code).absolute()
                    for job in part
                ]
                sizes = [journal_size(job.directory) for job in part]
                accepted = launcher.submit(frozen, after)
            except EdkdError:
                unmake(made)
                raise
            for job, size, (job_id, log) in zip(part, sizes, accepted, strict=True):
                ticket = Ticket(job_id, time.time(), planned.id, log, size)
                keep(ticket, job.directory)
                submitted[job.run] = ticket

    # A teacher whose run is finished, but that is not in the store, is put there again by its job.
    send([job for job in planned.teachers if job.run not in waiting and states[job.run].status != "running"], None)
    trained_by = {f"run:{job.run}": (waiting | submitted).get(job.run) for job in planned.teachers}
    students: dict[str | None, list[Job]] = {}
    for job in planned.students:
        if job.run in waiting or states[job.run].status in ("finished", "running"):
            continue
        teacher = trained_by.get(job.teacher_id or "")
        if job.teacher_id not in trained_by or teacher is not None:  # else it is trained elsewhere, by nobody's job
            students.setdefault(teacher.job_id if teacher else None, []).append(job)
    for after, jobs in sorted(students.items(), key=lambda item: item[0] is not None):
        send(jobs, after)
    return submitted


def array_limit() -> int:
    """The largest number of jobs in one array, as the cluster is set up.

    This is the first question to SLURM of a sweep's first command. sbatch would try for longer, and in silence.
    """
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):
        asked = ["scontrol", "show", "config"]
        try:
            shown = subprocess.run(asked, capture_output=True, text=True, timeout=queue.PATIENCE, check=True)
        except subprocess.TimeoutExpired:
            LOG.warning("SLURM has not answered for %.0f seconds; trying to submit all the same", queue.PATIENCE)
            raise
        except subprocess.CalledProcessError as error:
            LOG.warning("scontrol: %s; trying to submit all the same", " ".join(error.stderr.split()))
            raise
        for line in shown.stdout.splitlines():
            name, _, value = line.partition("=")
            if name.strip() == "MaxArraySize":
                return max(1, int(value))
    return 1001  # SLURM's own default


def follow(watched: Mapping[str, tuple[Job, Ticket]], poll_s: float) -> dict[str, str]:
    """Wait until each job has ended in truth; returns of those that vanished what is known, by run."""
    waiting = dict(watched)
    silent: dict[str, float] = {}
    vanished: dict[str, str] = {}
    away = False
    told: frozenset[str] = frozenset()
    next_poll = 0.0
    while waiting:
        now = time.monotonic()
        known: Mapping[str, queue.Entry] | None = None
        if now >= next_poll:
            # Before the journals: what a job wrote before it left the queue is then seen.
            known = queue.look_up(ticket.job_id for _, ticket in waiting.values())
            if (known is None) != away:
                away = known is None
                LOG.warning("SLURM does not answer; waiting for it" if away else "SLURM answers again")
            if known is not None:
                told = _tell_reasons(known, told)
            next_poll = time.monotonic() + poll_s
        for run, (job, ticket) in list(waiting.items()):
            if has_ended(job, ticket):
                del waiting[run]
            elif known is not None:
                entry = known.get(ticket.job_id)
                state = entry.state if entry is not None else None
                if state in queue.ALIVE or lock.is_held(job.directory):
                    silent.pop(run, None)
                elif time.monotonic() - silent.setdefault(run, now) >= (NEWS if state == "COMPLETED" else SILENCE):
                    began = journal_size(job.directory) > ticket.journal_size
                    words = "" if began else queue.last_words(Path(ticket.log))
                    vanished[run] = f"{state or 'gone from the queue'} (SLURM job {ticket.job_id}, {ticket.log})"
                    vanished[run] += f": {words}" if words else ""
                    console.print(f"{job.name}: vanished: {vanished[run]}", markup=False, soft_wrap=True)
                    del waiting[run]
        if waiting:
            time.sleep(min(poll_s, max(LOOK, 0.01 * len(waiting))))
    return vanished


def _tell_reasons(known: Mapping[str, queue.Entry], told: frozenset[str]) -> frozenset[str]:
    """Say why jobs wait if there is a reason that was not `told` yet; returns all that were told."""
    reasons = Counter(entry.where for entry in known.values() if entry.state in queue.QUEUED and entry.where)
    if reasons.keys() <= told:
        return told
    each = ", ".join(f"{reason} ({count})" if len(reasons) > 1 else reason for reason, count in reasons.most_common())
    count = reasons.total()
    console.print(
        f"SLURM: {counted(count, 'run')} {'waits' if count == 1 else 'wait'}: {each}", markup=False, soft_wrap=True
    )
    return told | reasons.keys()


def _tell(planned: Planned, tickets: Mapping[str, Ticket], adopted: int, detached: bool) -> None:
    new = len(tickets) - adopted
    arrays = sorted({ticket.job_id.partition("_")[0] for ticket in tickets.values()}, key=int)
    told = f"{counted(new, 'job')} submitted to SLURM"
    if adopted:
        told += f", {adopted} {'was' if adopted == 1 else 'were'} in its queue already"
    print(f"{told}{': ' + ', '.join(arrays) if arrays else ''}", flush=True)
    if detached:
        print(
            "not waiting for them; `edkd status` shows how they are; "
            "the same command with hydra.launcher.detached=false waits, and ends with the summary"
        )


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two commands at once would submit the same jobs."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        submission = FileLock(folder / ".submission.lock")
        submission.acquire()
    except (OSError, NotImplementedError) as error:
        raise EdkdError(f"cannot write below {folder}: {error}") from error
    try:
        yield
    finally:
        submission.release()

"""The tickets of runs that were handed to SLURM: what a run directory keeps of its job, and what SLURM says of that."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from edkd.config.job import Job
from edkd.errors import EdkdError
from edkd.rundir import files, journal
from edkd.rundir.journal import RunState
from edkd.slurm import queue
from edkd.slurm.job import journal_size

FILE = "slurm.json"


@dataclass(frozen=True)
class Ticket:
    """What a run directory keeps of the job that was submitted for it."""

    job_id: str
    submitted: float
    sweep: str
    log: str
    journal_size: int = 0  # bytes in the journal at submission: what is written after them is this job's


def read(run_dir: Path) -> Ticket | None:
    """The ticket in a run directory; None where there is none."""
    try:
        return Ticket(**json.loads((Path(run_dir) / FILE).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def keep(ticket: Ticket, run_dir: Path) -> None:
    """Put a ticket into a run directory. Raises EdkdError, with the job that SLURM has all the same."""
    try:
        files.write_text(run_dir / FILE, json.dumps(asdict(ticket)) + "\n")
    except OSError as error:
        raise EdkdError(
            f"cannot write {run_dir / FILE}: {error.strerror}; SLURM has job {ticket.job_id} for this run: "
            "`scancel` it, or let it run, before the same command is given again"
        ) from error


@dataclass(frozen=True)
class Answer:
    """What SLURM said about the jobs of some runs."""

    tickets: dict[str, Ticket]
    """By run."""
    entries: dict[str, queue.Entry] | None
    """By job; None where SLURM did not answer."""


def ask(jobs: Sequence[Job], states: Mapping[str, RunState], before: Answer | None = None) -> Answer:
    """Ask SLURM about those of some runs that it may have. It is not asked again what it has said before."""
    left = [job for job in jobs if states[job.run].status != "finished"]
    tickets = {job.run: ticket for job in left if (ticket := read(job.directory)) is not None}
    if before is not None and before.tickets == tickets:
        return before
    return Answer(tickets, queue.look_up(ticket.job_id for ticket in tickets.values()))


def whereabouts(
    jobs: Sequence[Job], states: Mapping[str, RunState], answer: Answer | None
) -> dict[str, tuple[str, str]]:
    """Of runs that SLURM has what they do there, wait or run, and the job; without an answer those that run."""
    found = {}
    for job in jobs:
        status, holder = states[job.run].status, states[job.run].holder or {}
        if status == "finished" or (ticket := read(job.directory)) is None:
            continue
        entry = (answer.entries or {}).get(ticket.job_id) if answer is not None else None
        if status == "running":
            if holder.get("slurm_job_id"):
                found[job.run] = "running", ticket.job_id
        elif entry is not None and entry.state in queue.ALIVE and not has_ended(job, ticket):
            found[job.run] = "waiting" if entry.state in queue.QUEUED else "running", ticket.job_id
    return found


def queued(jobs: Sequence[Job], answer: Answer) -> dict[str, Ticket]:
    """Of some jobs those that wait or run in the queue, by run."""
    tickets, known = answer.tickets, answer.entries
    if known is None:
        raise EdkdError(
            f"SLURM does not answer, and may still have {len(tickets)} of these runs in its queue: "
            "`squeue` says why; the same command continues when it is back"
        )
    alive = {run for run, ticket in tickets.items() if (e := known.get(ticket.job_id)) and e.state in queue.ALIVE}
    # A job that has just written its end is about to leave the queue.
    return {job.run: tickets[job.run] for job in jobs if job.run in alive and not has_ended(job, tickets[job.run])}


def has_ended(job: Job, ticket: Ticket) -> bool:
    """Whether the run's journal says that the job of this ticket is over."""
    with contextlib.suppress(EdkdError):
        state = journal.tail_state(job.directory)
        # A failure from before the submission is that of an earlier job.
        return state.status == "finished" or (
            state.status == "failed" and journal_size(job.directory) > ticket.journal_size
        )
    return False

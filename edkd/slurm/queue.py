"""Asks SLURM about jobs: by `squeue`, and by `sacct` about jobs that `squeue` has forgotten.

The controller forgets a job `MinJobAge` seconds (300 by default) after its end. Then only accounting knows it, and many
clusters run without it. Variables of the caller's environment that would filter the answers are not passed on.
"""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PATIENCE = 10.0  # seconds for both questions together
QUEUED = frozenset({"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD"})
"""States of a job that will start, or start again."""
STARTED = frozenset({"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING", "STAGE_OUT"})
"""States of a job that has a node. COMPLETING does not mean its end: a job that is requeued has this state first."""
ALIVE = QUEUED | STARTED
RETURNING = frozenset({"NODE_FAIL", "PREEMPTED"})
"""States in which a job may be seen for a moment before SLURM queues it again."""

_CURES = {  # the beginnings of reasons that do not end by themselves, and what helps
    "PartitionConfig PartitionNodeLimit PartitionTimeLimit BadConstraints MaxMemPerLimit": (
        "no node of the partition can take it: smaller cpus_per_task, mem_gb, gpus_per_node or timeout_min, or another "
        "partition or constraint (`sinfo -o '%P %c %m %G %l %f'`)"
    ),
    "JobHeld launch_failed_requeued_held job_requeued_in_held_state": (
        "`scontrol release {job}` lets it start; `scontrol show job {job}` says why it was held"
    ),
    "QOS Assoc InvalidQOS InvalidAccount": (
        "a limit of your account: smaller cpus_per_task, gpus_per_node, timeout_min or array_parallelism, or another "
        "qos or account (`sacctmgr show assoc user=$USER`, `sacctmgr show qos`)"
    ),
    "ReqNodeNotAvail": "nodes are down or reserved (`sinfo -R`): another partition, or a wider constraint or exclude",
    "DependencyNeverSatisfied": "the job that it waits for is lost: `scancel {job}`, then the same command",
}

_MANY = 2000  # job numbers on one command line, at most
_ARRAY = re.compile(r"(?P<array>\d+)_\[(?P<tasks>[\d,:-]+)(?:%\d+)?\]")
_SPEAKER = re.compile(r"^(slurmstepd\S*: error: |\S*/slurm_script: )")
_LONGEST = 150  # characters that are kept of a log's line


@dataclass(frozen=True)
class Entry:
    """A job in SLURM's queue or accounts."""

    state: str
    """As SLURM calls it: PENDING, RUNNING, COMPLETED, TIMEOUT, ..."""
    where: str
    """The reason why a queued job waits, or the nodes of any other job; empty if there are none."""


def cure(reason: str, job: str) -> str:
    """Return what helps a job whose reason to wait does not end by itself; empty for any other reason."""
    said = reason.replace(" ", "_")
    found = (text for begins, text in _CURES.items() if said.startswith(tuple(begins.split())))
    return next(found, "").format(job=job)


def look_up(job_ids: Iterable[str]) -> dict[str, Entry] | None:
    """Return SLURM's entries of jobs by id, as `squeue` prints ids (``12``, ``12_3``).

    A job that SLURM does not know is absent. None if SLURM cannot be asked: there is no `squeue`, or the controller
    does not answer. Returns within about ten seconds, whatever SLURM does.
    """
    wanted = set(job_ids)
    if not wanted:
        return {}
    deadline = time.monotonic() + PATIENCE
    known = _squeue(wanted, deadline)
    if known is None:
        return None
    forgotten = wanted - known.keys()
    if forgotten:
        # What the controller has forgotten is not alive, even if the accounts missed its end.
        ended = {job: entry for job, entry in _sacct(forgotten, deadline).items() if entry.state not in ALIVE}
        known = ended | known
    return {job: entry for job, entry in known.items() if job in wanted}


def commented(comment: str, user: int) -> list[str] | None:
    """The jobs of a user whose comment ends with `comment`; None if SLURM cannot be asked."""
    command = ["squeue", "-h", "-r", "-a", "-t", "all", "-u", str(user), "-o", "%i|%k"]
    done = ask(command, time.monotonic() + PATIENCE)
    if done is None or done.returncode != 0:
        return None
    jobs = [line.partition("|")[::2] for line in done.stdout.splitlines()]
    return [job for name, said in jobs if said.endswith(comment) for job in _expanded(name)]


def name_jobs(names: Mapping[str, str]) -> None:
    """Rename jobs, by id, for squeue to show; if SLURM refuses, they keep their names."""
    orders = "".join(f"update JobId={job} JobName={name}\n" for job, name in names.items())
    ask(["scontrol"], time.monotonic() + PATIENCE, orders)


def _squeue(wanted: set[str], deadline: float) -> dict[str, Entry] | None:
    numbers = _numbers(wanted)
    chosen = ["-j", ",".join(numbers)] if len(numbers) <= _MANY else []
    done = ask(["squeue", "-h", "-r", "-a", "-t", "all", *chosen, "-o", "%i|%T|%r|%N"], deadline)
    if done is None:
        return None
    if done.returncode != 0:  # squeue fails for a single unknown job, not for one among several
        return {} if "Invalid job id" in done.stderr else None
    return dict(_entries(done.stdout))


def _sacct(wanted: set[str], deadline: float) -> dict[str, Entry]:
    """Return the entries of the accounting; none if the cluster has no accounting."""
    numbers = _numbers(wanted)
    known: dict[str, Entry] = {}
    for first in range(0, len(numbers), _MANY):
        chosen = ",".join(numbers[first : first + _MANY])
        done = ask(["sacct", "-n", "-P", "-X", "-j", chosen, "-o", "JobID,State,Reason,NodeList"], deadline)
        if done is not None and done.returncode == 0:
            known.update(_entries(done.stdout))
    return known


def _numbers(wanted: Iterable[str]) -> list[str]:
    """The jobs and arrays to ask for: naming an array asks for all of its tasks."""
    return sorted({job.partition("_")[0] for job in wanted if job[:1].isdigit()}, key=lambda number: number.zfill(12))


def _entries(printed: str) -> Iterator[tuple[str, Entry]]:
    for line in printed.splitlines():
        fields = line.strip().split("|")
        if len(fields) != 4 or not fields[1]:
            continue
        name, state, reason, nodes = fields
        word = state.split()[0]  # sacct: "CANCELLED by 1000"
        nodes = "" if nodes in ("None assigned", "(null)") else nodes
        entry = Entry(word, where=("" if reason == "None" else reason) if word in QUEUED else nodes)
        for job in _expanded(name):
            yield job, entry


def _expanded(name: str) -> Iterator[str]:
    """The jobs that a name stands for: ``12_[3-5,9%2]`` are 12_3, 12_4, 12_5 and 12_9."""
    array = _ARRAY.fullmatch(name)
    if array is None:
        yield name
        return
    for part in array["tasks"].split(","):
        span, _, step = part.partition(":")
        first, _, last = span.partition("-")
        for task in range(int(first), int(last or first) + 1, int(step or 1)):
            yield f"{array['array']}_{task}"


def ask(command: list[str], deadline: float, given: str = "") -> subprocess.CompletedProcess[str] | None:
    """Run a SLURM command with `given` as its standard input; None if it is missing or does not answer in time."""
    if shutil.which(command[0]) is None:
        return None
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("SQUEUE_", "SACCT_"))}
    plain |= {"LC_ALL": "C", "SLURM_BITSTR_LEN": "0"}  # SLURM_BITSTR_LEN=0 prints lists of array tasks in full
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=plain,
            start_new_session=True,
        )
    except OSError:
        return None
    with process:
        try:
            out, err = process.communicate(given, timeout=max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # a site's wrapper has children that hold the pipes
            process.communicate()
            return None
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def last_line(log: Path) -> str:
    """The last line of a job's log that is not empty, cut short; an empty string if there is none.

    srun's own lines are skipped if there are others: they report that a task has exited, after the reason.
    """
    try:
        lines = [" ".join(line.split()) for line in log.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        return ""
    line = next((each for each in reversed(lines) if not each.startswith("srun:")), lines[-1] if lines else "")
    line = _SPEAKER.sub("", line)
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"

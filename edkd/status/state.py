"""Decides the state of runs: by the journal first, then the lock, then SLURM's queue.

    the journal records the end            -> done
    a process holds the run's directory    -> running
    its journal cannot be read             -> failed
    it failed in a job of several runs     -> failed (pruned, if a search ended it)
    its SLURM job is alive                 -> waiting (running, if the lock cannot be seen from here)
    the journal records a failure          -> failed
    a search has ended it early            -> pruned
    it was submitted, SLURM does not answer -> waiting
    Ctrl-C or SIGTERM stopped it outside SLURM -> interrupted
    it was started or submitted            -> vanished
    none of these                          -> new

Loads neither torch nor Hydra, because it is called often and for many runs.
"""

import os
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from edkd.errors import EdkdError
from edkd.rundir import journal, lock
from edkd.rundir.journal import RunState
from edkd.rundir.paths import DIRECTORY_NAME, RunDir
from edkd.slurm import queue
from edkd.slurm.queue import Entry
from edkd.slurm.submission import Submission

State = Literal["done", "pruned", "new", "waiting", "running", "interrupted", "vanished", "failed"]
STATES: tuple[State, ...] = get_args(State)
UNSEEN = "SLURM cannot be asked now"

_ABOUT = 1024  # bytes at the end of config.yaml that hold its `run` block
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # CSafeLoader is ten times as fast
_READERS = 8  # threads: reads on a network file system mostly wait

_INTERNAL = {"shown": False}

Ask = Callable[[Iterable[str]], Mapping[str, Entry] | None]


@dataclass(frozen=True)
class RunStatus:
    """One run, as far as its directory and the queue show."""

    directory: Path
    name: str  # <dataset>/<pair>/<distiller>-s<seed>-<hash>
    hash: str  # the first eight digits
    dataset: str
    pair: str
    distiller: str
    seed: int | None
    state: State
    why: str = ""  # one line: the error, the queue's state of a vanished job, the reason to wait
    sweep: str | None = None  # id of the sweep that planned the run first
    epoch: int = 0  # the last in the journal
    epochs: int | None = None  # None if the run never started
    top1: float | None = None  # percent on the test set after that epoch
    best: float | None = None  # percent on the test set; only of a done run
    images_per_second: float | None = None
    seconds: float | None = None  # of all epochs; only of a done run
    seconds_left: float | None = None  # only of a running run, estimated from its last epoch
    node: str | None = None  # where it runs
    job: str | None = None  # SLURM's id, as squeue prints it
    log: Path | None = None  # log file of that job
    # The sources of the fields above; not part of the document.
    known: RunState = field(default_factory=lambda: RunState("new"), metadata=_INTERNAL)  # from journal and lock
    submission: Submission | None = field(default=None, metadata=_INTERNAL)
    entry: Entry | None = field(default=None, metadata=_INTERNAL)  # SLURM's entry of the job

    @property
    def in_queue(self) -> bool:
        """Whether a SLURM job that waits or runs will finish this run."""
        alive = self.entry is not None and self.entry.state in queue.ALIVE
        return alive and self.state in ("waiting", "running")

    @property
    def why_vanished(self) -> str:
        """Why the run vanished, with its SLURM job and that job's log."""
        log = f", {self.log}" if self.log is not None and os.access(self.log, os.R_OK) else ""
        return f"{self.why} (SLURM job {self.job}{log})" if self.job is not None else self.why

    def document(self) -> dict[str, Any]:
        """What `edkd status --json` shows of the run."""
        return {each.name: getattr(self, each.name) for each in fields(self) if not each.metadata}


def look(run_dirs: Iterable[Path], *, ask: Ask = queue.look_up) -> list[RunStatus]:
    """Return the status of each run, in the given order. SLURM is asked only if one of them was submitted.

    A single run never raises an error: if its journal is damaged, it is `failed`, with the reason. NODE_FAIL may last a
    second before SLURM queues the job again, so a caller should look twice before it acts on `vanished`.
    """
    directories = [Path(each) for each in run_dirs]
    with ThreadPoolExecutor(_READERS) as pool:
        found = list(pool.map(_Facts, directories))
    submitted = {facts.job for facts in found if facts.job is not None and facts.state.status != "finished"}
    entries = ask(submitted) if submitted else {}
    views = []
    for facts in found:
        view = _view(facts, entries)
        if view.state == "vanished":  # or it ended or began after its journal was read
            view = _view(_Facts(facts.directory, lately=facts.job), entries)
        views.append(view)
    return views


def about(run_dir: Path) -> dict[str, Any]:
    """The `run` block of a frozen configuration, {"hash", "method", "teacher_id", "sweep"}; empty if there is none.

    The block ends the file, so this costs one small read.
    """
    try:
        with RunDir(run_dir).config.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _ABOUT))
            _, found, block = file.read().decode(errors="replace").rpartition("\nrun:\n")
        values = yaml.load(block, Loader=_LOADER) if found else None
    except (OSError, yaml.YAMLError):
        return {}
    return values if isinstance(values, dict) else {}


def frozen(run_dir: Path) -> dict[str, Any]:
    """The whole of a frozen configuration, which takes milliseconds to read; empty if there is none."""
    try:
        values = yaml.load(RunDir(run_dir).config.read_bytes(), Loader=_LOADER)
    except (OSError, yaml.YAMLError):
        return {}
    return values if isinstance(values, dict) else {}


class _Facts:
    """What a run's directory holds."""

    def __init__(self, directory: Path, lately: str | None = None) -> None:
        self.directory, self.lately = directory, lately
        self.damage: str | None = None
        self.submission = Submission.read(directory)
        try:
            self.state = journal.state(directory)
        except EdkdError as error:
            self.state, self.damage = RunState(status="failed"), str(error)
        self.note = lock.last_holder(directory) if self.state.status == "interrupted" else None
        # Whether the journal has grown since the submission: sizes are compared, because the clocks of nodes differ.
        self.grown = self.submission is not None and RunDir(directory).journal_size > self.submission.journal_size

    @property
    def job(self) -> str | None:
        """The SLURM job that is to run this run, or was the last to try; None if there is none."""
        if self.submission is None:
            return None
        holder, start = self.state.holder or self.note, self.state.start or {}
        held = holder is not None and not holder.get("slurm_job_id") and holder["since"] > self.submission.submitted
        begun = bool(start) and not start.get("slurm") and start["time"] > self.submission.submitted
        return None if held or begun else self.submission.job_id  # None: a process outside SLURM took the run over


def _view(facts: _Facts, entries: Mapping[str, Entry] | None) -> RunStatus:
    directory, known = facts.directory, facts.state
    dataset, pair, last = directory.parts[-3:] if len(directory.parts) > 2 else ("", "", directory.name)
    named = DIRECTORY_NAME.fullmatch(last)
    entry = entries.get(facts.job) if entries is not None and facts.job is not None else None
    state, why = _judge(facts, entry, reached=entries is not None)
    epoch, start = known.last_epoch or {}, known.first_start or {}
    took = sum((epoch.get("seconds") or {}).values())
    left = None
    if state == "running" and took and known.epochs_total is not None:
        left = max(0.0, (known.epochs_total - epoch["epoch"]) * took - (time.time() - epoch["time"]))
    ended = known.end or {}
    holder = known.holder or {}
    return RunStatus(
        directory=directory,
        name=f"{dataset}/{pair}/{last}",
        hash=named["hash"] if named else "",
        dataset=dataset,
        pair=pair,
        distiller=named["distiller"] if named else last,
        seed=int(named["seed"]) if named else None,
        state=state,
        why=one_line(why),
        sweep=start.get("sweep") if start else about(directory).get("sweep"),
        epoch=epoch.get("epoch", 0),
        epochs=known.epochs_total,
        top1=(epoch.get("metrics") or {}).get("test/top1"),
        best=(ended.get("best") or {}).get("top1"),
        images_per_second=epoch.get("images_per_second"),
        seconds=ended.get("seconds"),
        seconds_left=left,
        node=((entry.where if entry is not None else "") or holder.get("host")) if state == "running" else None,
        job=facts.job or holder.get("slurm_job_id"),
        log=Path(facts.submission.log) if facts.submission is not None else None,
        known=known,
        submission=facts.submission,
        entry=entry,
    )


def _judge(facts: _Facts, entry: Entry | None, *, reached: bool) -> tuple[State, str]:
    """The state of a run and the line that explains it; `reached` says whether SLURM answered."""
    known = facts.state
    if known.status == "finished":
        imported = (known.start or {}).get("imported")
        return "done", f"imported from {imported['from']}" if imported else ""
    if known.status == "running":
        return "running", ""
    if facts.damage is not None:
        return "failed", facts.damage
    own_end: tuple[State, str] | None = None
    if known.status == "failed":
        own_end = "failed", known.error or "without a message"
    elif known.status == "pruned":
        own_end = "pruned", "its search has better trials"
    if own_end is not None and facts.grown and facts.submission is not None and facts.submission.several:
        return own_end
    if entry is not None and entry.state in queue.ALIVE:
        if entry.state in queue.STARTED and facts.grown and known.interruption is None:
            return "running", ""
        doing = "starting" if entry.state == "RUNNING" else entry.state
        return "waiting", entry.where if entry.state in queue.QUEUED else f"{doing} on {entry.where}"
    if own_end is not None and (facts.grown or facts.job is None):  # otherwise an earlier job recorded it
        return own_end
    if facts.job is not None and not reached:
        return "waiting", UNSEEN
    if facts.job is not None and entry is None and facts.lately not in (None, facts.job):
        return "waiting", "submitted just now"
    if known.status == "new" and facts.submission is None:
        return "new", ""
    if known.interruption is not None and facts.job is None:
        return "interrupted", str(known.interruption.get("reason") or "the same command continues it")
    return "vanished", _why_vanished(facts, entry)


def _why_vanished(facts: _Facts, entry: Entry | None) -> str:
    said = ""
    if facts.submission is not None and not facts.grown:
        log = Path(facts.submission.log)
        said = queue.last_line(log)
        began = entry is not None and entry.state != "CANCELLED"
        if began and os.access(log.parent, os.X_OK) and not log.exists():
            said = f"its log was never written: do the compute nodes see {log.parent}?"
        said = f": {said}" if said else ""
    if entry is not None and entry.state != "COMPLETED":
        return entry.state + said
    if facts.state.interruption is not None:
        return str(facts.state.interruption.get("reason") or "interrupted")
    if facts.job is not None:
        return ("job ended without a record in the journal" if entry else "job gone from SLURM's queue") + said
    return f"process gone: {facts.note.get('pid')} on {facts.note.get('host')}" if facts.note else "process gone"


def one_line(text: str) -> str:
    """The first line that is not empty."""
    return next((" ".join(line.split()) for line in text.splitlines() if line.strip()), "")

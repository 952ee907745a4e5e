"""The append-only record of a run, which is authoritative.

A run directory holds ``journal.jsonl``: one JSON object a line, each with ``event`` and ``time`` (unix seconds):
``start``, ``epoch``, ``end``, ``failure``, ``interrupted``, ``pruned``. A run that was resumed has several starts, and
may repeat epochs; readers take the last record of an epoch. Numbers that are not finite are written as ``null``, since
NaN and Infinity are not JSON.

A line counts once its newline is on the disk. A crash may leave a garbled last line, or text after the last newline.
Readers ignore both, and the next append cuts them off.
"""

import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edkd.errors import EdkdError
from edkd.rundir import files, lock
from edkd.rundir.paths import RunDir

Record = dict[str, Any]
Status = Literal["new", "running", "interrupted", "failed", "pruned", "finished"]

_EPOCH = b'"event": "epoch"'  # in the line of an epoch


class Journal:
    """A run's journal, for appending; the file appears with the first record."""

    def __init__(self, run_dir: Path) -> None:
        self.path = RunDir(run_dir).journal

    def append(self, record: Record) -> None:
        """Write one record as one line and return when it is on the disk; ``time`` is added where absent.

        Either the whole line is in the file afterwards, or nothing of it. Raises `EdkdError` if the file cannot be
        written, and `TypeError` for a value that JSON does not know.
        """
        stamped = {"event": record["event"], "time": time.time()} | record
        line = encode(stamped)
        try:
            created = not self.path.exists()
            with self.path.open("ab+", buffering=0) as file:
                file.seek(0)
                size = _sound_size(file.read())
                file.truncate(size)
                try:
                    while line:
                        line = line[file.write(line) :]
                    os.fsync(file.fileno())
                except OSError:
                    file.truncate(size)
                    raise
            if created:
                files.sync_directory(self.path.parent)
        except OSError as error:
            raise EdkdError(f"could not write the journal {self.path}: {error.strerror or error}") from error


def encode(record: Record) -> bytes:
    """The line of a record, with its newline."""
    return json.dumps(_finite(record), allow_nan=False).encode() + b"\n"


def read(run_dir: Path, *, every_epoch: bool = True) -> list[Record]:
    """All records of a run, oldest first; none where there is no journal.

    Without `every_epoch`, only the last epoch is parsed and returned, which suffices for overviews of many runs. Of the
    other epochs, only the first and the last character of the line are checked. A truncated or garbled last line is
    left out. A garbled line elsewhere means damage, not a crash, and raises an `EdkdError` that names it.
    """
    path = RunDir(run_dir).journal
    try:
        lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last newline was never finished
    except FileNotFoundError:
        return []
    except OSError as error:
        raise EdkdError(f"could not read the journal {path}: {error.strerror or error}") from error
    records: list[Record] = []
    skip = False
    for number, line in zip(range(len(lines), 0, -1), reversed(lines)):
        if skip and _EPOCH in line and line.startswith(b"{") and line.endswith(b"}"):
            continue
        record = _parse(line)
        if record is not None:
            records.append(record)
            skip = skip or (not every_epoch and record["event"] == "epoch")
        elif number < len(lines):
            raise EdkdError(
                f"line {number} of {path} is not a journal record; the file was damaged: restore or move it"
            )
    counted = records[::-1]
    while counted and counted[-1]["event"] in ("interrupted", "failure"):
        counted.pop()
    is_over = bool(counted) and counted[-1]["event"] in ("end", "pruned")
    # Ctrl-C may have come when all was done, and a second job of a finished run may have failed as it began.
    return counted if is_over else records[::-1]


def epochs(run_dir: Path) -> dict[int, Record]:
    """The last record of each epoch."""
    return {record["epoch"]: record for record in read(run_dir) if record["event"] == "epoch"}


@dataclass
class RunState:
    """The state of a run, from its journal and its lock."""

    status: Status
    run: str | None = None  # the hash of its configuration
    name: str | None = None
    epochs_total: int | None = None  # planned, from the configuration
    last_epoch: Record | None = None  # the epoch record that was written last
    first_start: Record | None = None
    start: Record | None = None  # the last start
    end: Record | None = None  # set for a finished run
    failure: Record | None = None  # set for a failed run
    interruption: Record | None = None  # set if the run last stopped on request
    error: str | None = None  # one line about the failure
    holder: lock.Holder | None = None  # who holds the run directory now

    @property
    def epoch(self) -> int:
        """The number of the last epoch; 0 before the first."""
        return 0 if self.last_epoch is None else int(self.last_epoch["epoch"])


def state(run_dir: Path) -> RunState:
    """The state of a run. Raises `EdkdError` for a journal that is damaged elsewhere than in its epochs.

    ``finished`` and ``pruned`` are as journalled. Any other run is ``running`` while a process holds its directory.
    Without a holder it is ``new`` (no record yet), ``failed`` (as journalled) or ``interrupted``.
    """
    holder = lock.is_held(run_dir)  # before the journal: a run that ends in between is then finished, not interrupted
    found = _summarise(read(run_dir, every_epoch=False))
    found.holder = holder or lock.is_held(run_dir)
    if found.holder is not None and found.status not in ("finished", "pruned"):
        found.status = "running"
    return found


def _summarise(records: list[Record]) -> RunState:
    found = RunState(status="new")
    for record in records:
        event = record["event"]
        found.interruption = record if event == "interrupted" else None
        if event == "epoch":
            found.last_epoch = record
        elif event == "start":
            found.first_start = found.first_start or record
            found.start = record
        if event in ("start", "epoch", "interrupted"):
            found.status, found.end, found.failure = "interrupted", None, None
        elif event == "failure":
            found.status, found.end, found.failure = "failed", None, record
        elif event == "pruned":
            found.status, found.end, found.failure = "pruned", None, None
        elif event == "end":
            found.status, found.end, found.failure = "finished", record, None
    if found.failure is not None:
        found.error = found.failure.get("error")
    if found.start is not None:
        found.run, found.name = found.start.get("run"), found.start.get("name")
        schedule = (found.start.get("config") or {}).get("schedule") or {}
        found.epochs_total = schedule.get("epochs")
    return found


def _parse(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except ValueError:  # UnicodeDecodeError is one
        return None
    return record if isinstance(record, dict) and isinstance(record.get("event"), str) else None


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value


def _sound_size(data: bytes) -> int:
    """The size of a journal up to the end of its last whole record."""
    end = data.rfind(b"\n") + 1
    begin = data.rfind(b"\n", 0, max(end - 1, 0)) + 1  # start of the last line
    return end if _parse(data[begin:end]) is not None else begin

"""Pack the journals of a folder of runs into compact files for a repository, and unpack them.

<folder>/<pair>/<distiller>-s<seed>-<hash>.jsonl.gz, a folder for each data set. A packed run keeps all starts (with
versions, device, commit, tags, data and teacher), the last record of each epoch, and the outcome. Facts about the
machine are removed: its host and process, absolute paths, and where runs were stored and tracked. The same journal
gives the same bytes.
"""

import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from edkd.console import counted
from edkd.errors import EdkdError
from edkd.rundir import files, journal
from edkd.rundir.journal import Record
from edkd.rundir.paths import RunDir, find_runs

SUFFIX = ".jsonl.gz"

_EPOCH = b'"event":"epoch"'  # in the line of an epoch
_MACHINE = ("host", "pid", "slurm")  # removed from records
_PLACES = ("output", "tracking")  # removed from the configuration
# An absolute path begins with a slash, but not after a word (cpu/x86), a colon or slash (http://), or a cut path (…/).
_ABSOLUTE = re.compile(r"(?<![\w.:/…])(?:/[^/\s'\",;:]+)+/?")


@dataclass
class Packing:
    """What `pack` did, and what it left out."""

    written: list[Path] = field(default_factory=list)
    unchanged: int = 0
    left_out: list[str] = field(default_factory=list)  # a line with the reason for each run
    elsewhere: Counter[str] = field(default_factory=Counter)  # number of runs by other data set

    def reasons(self) -> list[str]:
        """Why runs were left out."""
        others = [
            f"{counted(number, 'run')} of {key}: another data set" for key, number in sorted(self.elsewhere.items())
        ]
        return [*self.left_out, *others]

    def line(self, to: Path) -> str:
        """A line with the numbers of runs."""
        packed, left_out = counted(len(self.written), "run"), len(self.left_out) + self.elsewhere.total()
        return f"{packed} packed, {self.unchanged} there already, {left_out} left out; in {to}"


def pack(output: Path, to: Path, *, dataset: str, everything: bool) -> Packing:
    """Pack the finished runs of a data set, or with `everything` all that have begun; report the others with reasons.

    A packed run is packed again if its journal has changed since. Raises EdkdError if `output` has no runs or
    `to` cannot be written.
    """
    done = Packing()
    for run_dir in find_runs(output):
        if run_dir.parent.parent.name != dataset:
            done.elsewhere[run_dir.parent.parent.name] += 1
            continue
        name = f"{run_dir.parent.name}/{run_dir.name}"
        path = Path(to) / f"{name}{SUFFIX}"
        try:
            data = dump(_worth(run_dir, everything=everything))
            there = _is_there(path, data)
        except EdkdError as error:
            done.left_out.append(f"{name}: {error}")
            continue
        if there:
            done.unchanged += 1
        else:
            files.write_bytes(path, data)
            done.written.append(path)
    return done


def unpack(packed: Path, output: Path) -> int:
    """Unpack the finished runs that an output folder lacks; return their number.

    Only journals are written, not weights: the runs count as done. Raises EdkdError for a damaged file, and if
    `output` cannot be written.
    """
    count = 0
    for path in find(packed):
        records = read(path)
        if records[-1]["event"] != "end":
            continue
        run_dir = (
            Path(output) / "runs" / records[0]["tags"]["dataset"] / path.parent.name / path.name.removesuffix(SUFFIX)
        )
        if RunDir(run_dir).journal.exists():
            continue
        files.write_bytes(RunDir(run_dir).journal, "".join(f"{json.dumps(record)}\n" for record in records).encode())
        count += 1
    return count


def _worth(run_dir: Path, *, everything: bool) -> list[Record]:
    """The records to pack. Raises EdkdError, with the reason, for a run that is not to be packed."""
    records = journal.read(run_dir)
    if not any(record["event"] == "start" for record in records):
        raise EdkdError("not begun")
    if records[-1]["event"] != "end" and not everything:
        state = journal.state(run_dir)
        why = f": {state.error}" if state.error else ""
        raise EdkdError(f"{state.status} after epoch {state.epoch} of {state.epochs_total}{why}")
    return compact(records)


def _is_there(path: Path, data: bytes) -> bool:
    """Whether these bytes are packed at `path` already. Raises EdkdError if another run is."""
    if not path.exists():
        return False
    try:
        there = read(path)
    except EdkdError:
        return False  # damaged: packed anew
    new = parse(data)
    if there[0]["time"] != new[0]["time"]:
        raise EdkdError(f"another run of the same configuration is packed there; remove {path} to replace it")
    return there == new


def compact(records: Iterable[Record]) -> list[Record]:
    """The records of a journal that are worth keeping, in their order, without traces of the machine."""
    history = list(records)
    hosts = {record["host"] for record in history if record.get("host")}
    latest = {record["epoch"]: number for number, record in enumerate(history) if record["event"] == "epoch"}
    kept = [
        record
        for number, record in enumerate(history)
        # Other records, such as a failure before a later start, are no part of the result.
        if record["event"] == "start" or number in (latest.get(record.get("epoch", 0)), len(history) - 1)
    ]
    return [_without_machine(record, hosts) for record in kept]


def dump(records: Iterable[Record]) -> bytes:
    """The bytes of a packed run."""
    lines = (json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False) for record in records)
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=buffer, mtime=0) as file:
        file.write("".join(f"{line}\n" for line in lines).encode())
    return buffer.getvalue()


def read(path: Path, *, every_epoch: bool = True) -> list[Record]:
    """The records of a packed run, with only the last epoch unless `every_epoch`. Raises EdkdError if damaged."""
    try:
        records = parse(path.read_bytes(), every_epoch=every_epoch)
        if not records or not all(isinstance(record["event"], str) for record in records):
            raise ValueError("no journal")
        if records[0]["event"] != "start":
            raise ValueError("no start")
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        why = " ".join(str(error).split())
        raise EdkdError(f"{path} is no packed run ({why}): restore it from git, or remove it") from error
    return records


def parse(data: bytes, *, every_epoch: bool = True) -> list[Record]:
    """The records in the bytes of a packed run. Raises OSError, EOFError, zlib.error or ValueError for other bytes."""
    lines = [line for line in gzip.decompress(data).split(b"\n") if line]
    if not every_epoch:
        epochs = [number for number, line in enumerate(lines) if _EPOCH in line]
        for number in reversed(epochs[:-1]):
            del lines[number]
    records: list[Record] = from_json(b"[" + b",".join(lines) + b"]")  # the same numbers as `json`, and faster
    return records


def find(folder: Path) -> list[Path]:
    """All packed runs below a folder, sorted; none where there is no such folder."""
    return sorted(Path(folder).rglob(f"*{SUFFIX}"))


def _without_machine(record: Record, hosts: set[str]) -> Record:
    kept = {key: value for key, value in record.items() if key not in _MACHINE}
    if "config" in kept:
        kept["config"] = {key: value for key, value in kept["config"].items() if key not in _PLACES}
    if isinstance(kept.get("error"), str):
        for host in hosts:
            kept["error"] = re.sub(rf"(?<![\w-]){re.escape(host)}(?![\w-])", "…", kept["error"])
    scrubbed: Record = _without_paths(kept)
    return scrubbed


def _without_paths(value: Any) -> Any:
    if isinstance(value, str):
        if value.startswith("/"):
            return f"…/{value.rstrip('/').rpartition('/')[2]}"
        return _ABSOLUTE.sub(lambda found: f"…/{found[0].rstrip('/').rpartition('/')[2]}", value)
    if isinstance(value, dict):
        return {key: _without_paths(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_paths(inner) for inner in value]
    return value

"""Results that a repository holds: the packed journals of a folder of runs, and back (see `edkd.rundir.packed`).

<folder>/<pair>/<distiller>-s<seed>-<hash>.jsonl.gz, a folder for each data set.
"""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from edkd.console import counted
from edkd.errors import EdkdError
from edkd.rundir import files, journal, packed
from edkd.rundir.journal import Record
from edkd.rundir.paths import RunDir, find_runs


@dataclass
class Packing:
    """What `pack` did, and what it left out: `unfinished` and `refused` have a line with the reason for each run."""

    written: list[Path] = field(default_factory=list)
    unchanged: int = 0
    unfinished: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    elsewhere: Counter[str] = field(default_factory=Counter)  # runs of other data sets

    def reasons(self) -> list[str]:
        """Why runs were left out."""
        others = [
            f"{counted(count, 'run')} of {key}: another data set" for key, count in sorted(self.elsewhere.items())
        ]
        return [*self.unfinished, *self.refused, *others]

    def line(self, to: Path) -> str:
        """In numbers."""
        left_out = len(self.unfinished) + len(self.refused) + sum(self.elsewhere.values())
        return (
            f"{counted(len(self.written), 'run')} packed, {self.unchanged} there already, {left_out} left out; in {to}"
        )


def pack(output: Path, to: Path, *, dataset: str, everything: bool) -> Packing:
    """Pack the finished runs of a data set, or with `everything` all that have begun, and say which were not, and why.

    A run that is there is packed anew if its journal has changed since. Raises EdkdError if `output` has no runs or
    `to` cannot be written.
    """
    done = Packing()
    for run_dir in find_runs(output):
        if run_dir.parent.parent.name != dataset:
            done.elsewhere[run_dir.parent.parent.name] += 1
            continue
        name = f"{run_dir.parent.name}/{run_dir.name}"
        path = Path(to) / f"{name}{packed.SUFFIX}"
        try:
            data = packed.dump(_worth(run_dir, everything=everything))
            there = _is_there(path, data)
        except _UnfinishedError as error:
            done.unfinished.append(f"{name}: {error}")
        except EdkdError as error:
            done.refused.append(f"{name}: {error}")
        else:
            if there:
                done.unchanged += 1
            else:
                _write(path, data)
                done.written.append(path)
    return done


def unpack(folder: Path, output: Path) -> int:
    """Give an output folder the finished runs that it lacks and a folder of packed runs has; returns their number.

    They get their journals, so that they count as done, and no weights. Raises EdkdError for a damaged file, and if
    `output` cannot be written.
    """
    count = 0
    for path in packed.find(folder):
        records = packed.read(path)
        if records[-1]["event"] != "end":
            continue
        run_dir = Path(output) / "runs" / records[0]["tags"]["dataset"] / path.parent.name / _stem(path)
        if RunDir(run_dir).journal.exists():
            continue
        _write(RunDir(run_dir).journal, "".join(f"{json.dumps(record)}\n" for record in records).encode())
        count += 1
    return count


class _UnfinishedError(EdkdError):
    """A run is not done yet."""


def _worth(run_dir: Path, *, everything: bool) -> list[Record]:
    """The records to pack. Raises EdkdError, with the reason, for a run that is not to be packed."""
    records = journal.read(run_dir)
    if not any(record["event"] == "start" for record in records):
        raise _UnfinishedError("not begun")
    if records[-1]["event"] != "end" and not everything:
        state = journal.state(run_dir)
        why = f": {state.error}" if state.error else ""
        raise _UnfinishedError(f"{state.status} after epoch {state.epoch} of {state.epochs_total}{why}")
    return packed.compact(records)


def _is_there(path: Path, data: bytes) -> bool:
    """Whether these bytes are packed at `path` already. Raises EdkdError if another run is."""
    if not path.exists():
        return False
    try:
        there = packed.read(path)
    except EdkdError:
        return False  # damaged: packed anew
    new = packed.parse(data)
    if there[0]["time"] != new[0]["time"]:
        raise EdkdError(f"another run of the same configuration is packed there; remove {path} to replace it")
    return there == new


def _write(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EdkdError(f"cannot write {path}: {error.strerror}; name another folder") from error
    files.write_bytes(path, data)


def _stem(path: Path) -> str:
    return path.name.removesuffix(packed.SUFFIX)

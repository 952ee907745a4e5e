"""A run's journal in compact form, one gzip-ed JSON-lines file, that a repository can hold.

Of the journal stay all starts, the last record of each epoch, and what came of the run; with them versions, device,
commit, tags, data and teacher. What belongs to the machine goes: its host and process, absolute paths, and where runs
were stored and tracked. The same journal gives the same bytes.
"""

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from edkd.errors import EdkdError
from edkd.rundir.journal import Record

SUFFIX = ".jsonl.gz"

_MACHINE = ("host", "pid", "slurm")  # of a start
_PLACES = ("output", "tracking")  # of its configuration
# An absolute path: what begins with a slash that ends no word, as in cpu/x86 or http://, nor a path cut before.
_ABSOLUTE = re.compile(r"(?<![\w.:/…])(?:/[^/\s'\",;:]+)+/?")


def compact(records: Iterable[Record]) -> list[Record]:
    """The records of a journal that are worth keeping, in their order, without traces of the machine."""
    history = list(records)
    hosts = {record["host"] for record in history if record.get("host")}
    latest = {record["epoch"]: number for number, record in enumerate(history) if record["event"] == "epoch"}
    kept = [
        record
        for number, record in enumerate(history)
        # A failure, say, that a later start continued is no part of the result.
        if record["event"] == "start" or number in (latest.get(record.get("epoch", 0)), len(history) - 1)
    ]
    return [_without_machine(record, hosts) for record in kept]


def dump(records: Iterable[Record]) -> bytes:
    """The file's bytes."""
    lines = (json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False) for record in records)
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=buffer, mtime=0) as file:
        file.write("".join(f"{line}\n" for line in lines).encode())
    return buffer.getvalue()


def read(path: Path) -> list[Record]:
    """The records of a packed run. Raises EdkdError for a file that is damaged or something else."""
    try:
        records = parse(path.read_bytes())
        if not records or not all(isinstance(record["event"], str) for record in records):
            raise ValueError("no journal")
        if records[0]["event"] != "start":
            raise ValueError("no start")
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, str(error)) from error
    return records


def parse(data: bytes) -> list[Record]:
    """The records in the bytes of a packed run. Raises OSError, EOFError, zlib.error or ValueError for other bytes."""
    return [json.loads(line) for line in gzip.decompress(data).decode().split("\n") if line]


def find(folder: Path) -> list[Path]:
    """All packed runs below a folder, sorted; none where there is no such folder."""
    return sorted(Path(folder).rglob(f"*{SUFFIX}"))


def _damaged(path: Path, why: str) -> EdkdError:
    return EdkdError(f"{path} is no packed run ({' '.join(why.split())}): restore it from git, or remove it")


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

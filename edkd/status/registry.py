"""Which runs belong to which sweep: a file for each sweep, for one run may belong to several.

<output>/sweeps/<id>.json     {"sweep", "time", "runs": [<dataset>/<pair>/<run>, ...]}, teachers first
"""

import contextlib
import json
import time
from collections.abc import Iterable
from pathlib import Path

from edkd.errors import EdkdError
from edkd.rundir import files

FOLDER = "sweeps"


def record(output: Path, sweep: str, names: Iterable[str]) -> None:
    """Write down the runs of a sweep, by the names of their directories below `output`/runs.

    Raises EdkdError if that cannot be written.
    """
    path = Path(output) / FOLDER / f"{sweep}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(path, json.dumps({"sweep": sweep, "time": time.time(), "runs": list(names)}, indent=1) + "\n")
    except OSError as error:
        raise EdkdError(f"cannot write {path}: {error.strerror}; output={output} sets the folder") from error


def forget(output: Path, sweep: str) -> None:
    """Remove the record of a sweep of which there is nothing."""
    with contextlib.suppress(OSError):
        (Path(output) / FOLDER / f"{sweep}.json").unlink()


def runs_of(output: Path, sweep: str) -> list[str]:
    """The names that were recorded for a sweep; none where there is no such record."""
    try:
        found = json.loads((Path(output) / FOLDER / f"{sweep}.json").read_bytes())
        return [str(name) for name in found["runs"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def known(output: Path) -> set[str]:
    """The sweeps that were recorded."""
    return {path.stem for path in (Path(output) / FOLDER).glob("*.json")}

"""What lies below an output folder: the runs, with the names of their files, and which of them a sweep has.

One run may belong to several sweeps, so each sweep has a file that names its runs, teachers first:
<output>/sweeps/<id>.json     {"sweep", "time", "runs": [<dataset>/<pair>/<run>, ...]}
A search for values has Optuna's study beside it, <id>.optuna.log.
"""

import contextlib
import json
import os
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from edkd.errors import EdkdError
from edkd.rundir import files

CONFIG = "config.yaml"
JOURNAL = "journal.jsonl"
DIRECTORY_NAME = re.compile(r"(?P<distiller>.+)-s(?P<seed>-?\d+)-(?P<hash>[0-9a-f]{8})")

NAME = re.compile(r"\w[\w.-]{0,99}", re.ASCII)
"""Allowed names of data sets, networks and methods, which become parts of folder and file names.

A pair's folder has two of them in its name, and file systems take 255 bytes.
"""


class RunDir:
    """A run's directory, `<output>/runs/<dataset>/<pair>/<distiller>-s<seed>-<hash>`, and its files."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.config = self.path / CONFIG  # the frozen configuration
        self.journal = self.path / JOURNAL  # what happened, a record a line
        self.log = self.path / "run.log"
        self.checkpoint = self.path / "checkpoint.pt"  # from which an interrupted run continues
        self.last = self.path / "last.pt"  # the weights after the last epoch
        self.best = self.path / "best.pt"  # the weights of the best epoch
        self.submission = self.path / "slurm.json"  # the SLURM job that was submitted last
        self.lock = self.path / "run.lock"
        self.holder = self.path / "holder.json"  # the process that holds the lock
        self.code = self.path / "code.diff"  # uncommitted changes of the code
        self.mlflow_lock = self.path / "mlflow.lock"  # one process at a time syncs a run

    @property
    def journal_size(self) -> int:
        """The journal's size in bytes (0 if absent), which grows whenever something happens."""
        try:
            return self.journal.stat().st_size
        except OSError:
            return 0


def find_runs(output: Path) -> list[Path]:
    """The directories of all runs below an output folder, sorted. Raises EdkdError if it has no `runs`."""
    root = Path(output) / "runs"
    if not root.is_dir():
        raise EdkdError(f"no runs in {root}; --output DIR names the folder that holds runs/")
    pairs = [pair for dataset in _folders(root) for pair in _folders(dataset)]
    return sorted(run for pair in pairs for run in _folders(pair) if DIRECTORY_NAME.fullmatch(run.name))


def checkpoints(run_dir: Path) -> list[Path]:
    """The files of a run's last two checkpoints, and damaged ones. A finished run needs none of them."""
    return sorted(Path(run_dir).glob("checkpoint.*"))


def record_sweep(output: Path, sweep: str, names: Iterable[str]) -> None:
    """Write down the runs of a sweep, by the names of their directories below `output`/runs.

    Raises EdkdError if that cannot be written.
    """
    path = _record(output, sweep)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(path, json.dumps({"sweep": sweep, "time": time.time(), "runs": list(names)}, indent=1) + "\n")
    except OSError as error:
        raise EdkdError(f"cannot write {path}: {error.strerror}; output={output} sets the folder") from error


def study_file(output: Path, sweep: str) -> Path:
    """Optuna's study of a sweep that searches for values."""
    return _record(output, sweep).with_suffix(".optuna.log")


def forget_sweep(output: Path, sweep: str) -> None:
    """Remove the record of a sweep that submitted no run."""
    with contextlib.suppress(OSError):
        _record(output, sweep).unlink()


def runs_of_sweep(output: Path, sweep: str) -> list[str]:
    """The names that were recorded for a sweep; none where there is no such record."""
    try:
        return [str(name) for name in json.loads(_record(output, sweep).read_bytes())["runs"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def recorded_sweeps(output: Path) -> set[str]:
    """The sweeps that were recorded."""
    return {path.stem for path in _record(output, "*").parent.glob("*.json")}


def _record(output: Path, sweep: str) -> Path:
    return Path(output) / "sweeps" / f"{sweep}.json"


def _folders(parent: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError), os.scandir(parent) as entries:
        yield from (Path(entry.path) for entry in entries if entry.is_dir())

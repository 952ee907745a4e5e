"""Where runs lie below an output folder, and what their files are called."""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from edkd.errors import EdkdError

CONFIG = "config.yaml"
JOURNAL = "journal.jsonl"
DIRECTORY_NAME = re.compile(r"(?P<distiller>.+)-s(?P<seed>-?\d+)-(?P<hash>[0-9a-f]{8})")

NAME = re.compile(r"\w[\w.-]*", re.ASCII)
"""What data sets, networks and methods may be called, of which names of folders and files are made."""


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
        self.code = self.path / "code.diff"  # what the code had besides its commit
        self.mlflow_lock = self.path / "mlflow.lock"  # one process at a time syncs a run

    @property
    def journal_size(self) -> int:
        """Bytes in the journal: more of them later mean that something has happened since."""
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
    """What a run continues from: its last two checkpoints, and damaged ones. A finished run needs none of them."""
    return sorted(Path(run_dir).glob("checkpoint.*"))


def _folders(parent: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError), os.scandir(parent) as entries:
        yield from (Path(entry.path) for entry in entries if entry.is_dir())

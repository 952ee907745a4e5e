"""What an output folder needs no more: what it is, how much it takes, and its removal."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edkd.errors import EdkdError
from edkd.rundir import journal, lock
from edkd.rundir.paths import RunDir, checkpoints
from edkd.status.select import Selection
from edkd.status.state import State
from edkd.teachers import store


@dataclass(frozen=True)
class Leftover:
    """A file that is needed no more."""

    path: Path
    kind: str  # in the plural
    run: Path | None = None  # the directory of the run that it belongs to

    @property
    def size(self) -> int:
        """The bytes that it takes on the disk, fewer than its length where it has holes."""
        try:
            return self.path.stat().st_blocks * 512
        except FileNotFoundError:  # another process has removed it
            return 0

    def remove(self) -> bool:
        """Remove it, unless a process has begun to work on its run. Raises EdkdError where that is not allowed."""
        if self.run is not None and lock.is_held(self.run) is not None:
            return False
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise EdkdError(f"could not remove {self.path}: {error.strerror or error}") from error
        return True


def find_leftovers(output: Path, sweep: str | None) -> list[Leftover]:
    """The leftovers of the runs of a sweep; where none is named, of all runs and of the teacher store.

    Raises EdkdError for a folder without runs and for an unknown sweep.
    """
    states = {view.directory: view.state for view in Selection(output, sweep=sweep).look()}
    found = [leftover for directory, state in states.items() for leftover in _of_run(directory, state)]
    if sweep is None:
        folder = output / "teachers"
        in_use = _teachers(directory for directory, state in states.items() if state == "running")
        former = store.tables_of_former_teachers(folder, in_use)
        found += [Leftover(path, "caches of former teachers") for path in former]
    return found


def _of_run(directory: Path, state: State) -> Iterator[Leftover]:
    if state in ("running", "waiting"):  # a job that waits may begin on a node whose locks cannot be seen here
        return
    for path in sorted(directory.glob(".*.tmp")):
        yield Leftover(path, "files that were never wholly written", directory)
    if state == "done" and RunDir(directory).last.exists():
        for path in checkpoints(directory):
            yield Leftover(path, "checkpoints of finished runs", directory)


def _teachers(run_dirs: Iterable[Path]) -> set[str]:
    """The teachers of runs, by the SHA-256 of their weights files."""
    starts = [journal.state(directory).start or {} for directory in run_dirs]
    return {start["teacher"]["sha256"] for start in starts if start.get("teacher") is not None}

"""Finds the files that an output folder no longer needs, with their sizes, and removes them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edkd.errors import EdkdError
from edkd.rundir import lock
from edkd.rundir.paths import RunDir, checkpoints
from edkd.status.select import Selection
from edkd.status.state import State
from edkd.teachers import tables


@dataclass(frozen=True)
class Leftover:
    """A file that is no longer needed."""

    path: Path
    kind: str  # in the plural
    run: Path | None = None  # the directory of the run that it belongs to

    @property
    def size(self) -> int:
        """The bytes that the file takes on the disk, fewer than its length if it has holes."""
        try:
            return self.path.stat().st_blocks * 512
        except FileNotFoundError:  # another process has removed it
            return 0

    def remove(self) -> bool:
        """Remove the file, or return False if a process holds its run. Raises EdkdError if it cannot be removed."""
        if self.run is not None and lock.is_held(self.run) is not None:
            return False
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise EdkdError(f"could not remove {self.path}: {error.strerror or error}") from error
        return True


def find_leftovers(output: Path, sweep: str | None) -> list[Leftover]:
    """The leftovers of a sweep's runs; without a sweep, those of all runs and of the teacher store.

    Raises EdkdError for a folder without runs and for an unknown sweep.
    """
    views = Selection(output, sweep=sweep).look()
    found = [leftover for view in views for leftover in _of_run(view.directory, view.state)]
    if sweep is None:
        running = [view.known.start or {} for view in views if view.state == "running"]
        in_use = {start["teacher"]["sha256"] for start in running if start.get("teacher") is not None}
        former = tables.of_former_teachers(output / "teachers", in_use)
        found += [Leftover(path, "caches of former teachers") for path in former]
    return found


def _of_run(directory: Path, state: State) -> Iterator[Leftover]:
    if state in ("running", "waiting"):  # a job that waits may begin on a node whose locks cannot be seen here
        return
    for path in sorted(directory.glob(".*.tmp")):
        yield Leftover(path, "incompletely written files", directory)
    if state == "done" and RunDir(directory).last.exists():
        for path in checkpoints(directory):
            yield Leftover(path, "checkpoints of finished runs", directory)

"""Prints the end of a run's log, and of its SLURM job's log if that may explain more."""

import itertools
import os
import sys
import time
from pathlib import Path

from edkd.errors import EdkdError
from edkd.rundir.paths import RunDir
from edkd.status.state import RunStatus, look

POLL = 0.5  # seconds between looks at a log that is followed
_LOOK = 20  # reads of the log for each look at the run's state


def show(run_dir: Path, lines: int) -> None:
    """Print the last lines of a run's log.

    The output of its SLURM job follows if the run is not done, and the job wrote later or the run has no log.
    Raises EdkdError if there is no log yet.
    """
    (view,) = look([run_dir])
    found = [path for path in (RunDir(run_dir).log, *_of_job(view)) if path.is_file() and path.stat().st_size]
    if not found:
        verb = "" if view.state in ("failed", "vanished") else "is "
        raise EdkdError(f"no log yet: {view.name} {verb}{view.state}{f' ({view.why})' if view.why else ''}")
    for path in found:
        if len(found) > 1:
            print(f"==> {path} <==")
        print(_end(path.read_bytes(), lines), end="", flush=True)


def follow(run_dir: Path, lines: int) -> None:
    """Print the end of a run's log, and what is added to it while the run is new, waiting or running."""
    path = RunDir(run_dir).log
    shown: int | None = None  # bytes of the log that were printed or skipped
    for looks in itertools.count():
        over = looks % _LOOK == 0 and not _goes_on(run_dir)  # before reading, so that the last lines are read
        if path.exists():
            data = path.read_bytes()
            print(_end(data, lines) if shown is None else data[shown:].decode(errors="replace"), end="", flush=True)
            shown = len(data)
        if over:
            return show(run_dir, lines) if shown is None else None
        if looks == 0 and shown is None:
            try:
                show(run_dir, lines)
            except EdkdError as error:
                print(f"{error}; following it", file=sys.stderr, flush=True)
        time.sleep(POLL)
    return None


def _goes_on(run_dir: Path) -> bool:
    (view,) = look([run_dir])
    return view.state in ("new", "waiting", "running")


def _of_job(view: RunStatus) -> list[Path]:
    """The log of the run's last SLURM job, unless the run is done or its own log is newer."""
    if view.log is None or view.state == "done" or not os.access(view.log.parent, os.X_OK):  # it may be another user's
        return []
    try:
        written = RunDir(view.directory).log.stat().st_mtime
    except OSError:
        written = 0.0
    return [view.log] if view.log.is_file() and view.log.stat().st_mtime >= written else []


def _end(data: bytes, lines: int) -> str:
    return b"".join(data.splitlines(keepends=True)[-lines:]).decode(errors="replace")

"""The end of a run's log, and of its SLURM job's where that may say more."""

import os
import sys
import time
from pathlib import Path
from typing import BinaryIO

from edkd.errors import EdkdError
from edkd.rundir.paths import RunDir
from edkd.status.state import RunStatus, look

POLL = 0.5  # seconds between looks at a log that is followed
_LOOK = 20  # looks at the log for one at the run

_BLOCK = 16 * 1024  # bytes read at a time from the end of a log


def show(run_dir: Path, lines: int) -> None:
    """Print the last lines of a run's log.

    The output of its SLURM job follows if the run is not done and the job wrote last, or if the run never got as far as
    a log. Raises EdkdError if there is no log yet.
    """
    (view,) = look([run_dir])
    found = [path for path in (RunDir(run_dir).log, *_of_job(view)) if path.is_file() and path.stat().st_size]
    if not found:
        verb = "" if view.state in ("failed", "vanished") else "is "
        raise EdkdError(f"no log yet: {view.name} {verb}{view.state}{f' ({view.why})' if view.why else ''}")
    for path in found:
        if len(found) > 1:
            print(f"==> {path} <==")
        with path.open("rb") as file:
            print(_end(file, lines), end="", flush=True)


def follow(run_dir: Path, lines: int) -> None:
    """Print the end of a run's log and what is added to it until the run is done, failed or vanished."""
    path = RunDir(run_dir).log
    looks = 0
    while not path.exists() and (looks % _LOOK != 0 or _goes_on(run_dir)):
        if looks == 0:
            _show_what_there_is(run_dir, lines)
        looks += 1
        time.sleep(POLL)
    if not path.exists():
        return show(run_dir, lines)
    looks = 0
    with path.open("rb") as file:
        print(_end(file, lines), end="", flush=True)
        while True:
            over = looks % _LOOK == 0 and not _goes_on(run_dir)  # before reading: what is added until then is read
            print(file.read().decode(errors="replace"), end="", flush=True)
            if over:
                return None
            looks += 1
            time.sleep(POLL)


def _show_what_there_is(run_dir: Path, lines: int) -> None:
    """What there is to say of a run that has no log of its own yet."""
    try:
        show(run_dir, lines)
    except EdkdError as error:
        print(f"{error}; following it", file=sys.stderr, flush=True)


def _goes_on(run_dir: Path) -> bool:
    (view,) = look([run_dir])
    return view.state in ("new", "waiting", "running")


def _of_job(view: RunStatus) -> list[Path]:
    """The output and the errors of the run's last SLURM job, where they may say more than its own log."""
    if view.log is None or view.state == "done":
        return []
    try:
        written = RunDir(view.directory).log.stat().st_mtime
    except OSError:
        written = 0.0
    errors = view.log.with_suffix(".err")
    both = [view.log, errors] if errors != view.log else [view.log]
    return [path for path in both if path.is_file() and path.stat().st_mtime >= written]


def _end(file: BinaryIO, lines: int) -> str:
    """The last lines of a file, which is left at its end."""
    position = file.seek(0, os.SEEK_END)
    data = b""
    while position > 0 and data.count(b"\n") <= lines:
        step = min(_BLOCK, position)
        position -= step
        file.seek(position)
        data = file.read(step) + data
    file.seek(0, os.SEEK_END)
    last = data.splitlines(keepends=True)[-lines:]
    return b"".join(last).decode(errors="replace")

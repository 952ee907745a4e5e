"""The lock on a run directory: one process at a time, and who it is.

A held directory has ``run.lock``, which the kernel locks, and ``holder.json``, the holder's note about itself: a JSON
object {"host", "pid", "since" (unix seconds), "slurm_job_id"}.
"""

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from edkd.errors import EdkdError
from edkd.rundir import files
from edkd.rundir.paths import RunDir

Holder = dict[str, Any]

_PATIENCE = 0.5  # seconds: longer than `is_held` in another process keeps the lock


class HeldError(EdkdError):
    """Another process holds the run directory."""


@contextlib.contextmanager
def hold(run_dir: Path) -> Iterator[None]:
    """Lock the run directory (made where absent) against every other process until the block ends.

    The kernel releases the lock however the process dies. Raises `HeldError`, an `EdkdError` that names the
    holder, if another process has the directory.
    """
    run_dir = Path(run_dir)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = FileLock(RunDir(run_dir).lock, thread_local=False, fallback_to_soft=False)
        lock.acquire(timeout=_PATIENCE, poll_interval=0.02)
    except Timeout:
        raise HeldError(f"run directory {run_dir} is in use by {_describe(last_holder(run_dir))}") from None
    except OSError as error:
        raise EdkdError(f"could not lock the run directory {run_dir}: {error.strerror or error}") from error
    try:
        note = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": time.time(),
            "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
        }
        files.write_bytes(RunDir(run_dir).holder, json.dumps(note).encode() + b"\n")
        yield
    finally:
        # Remove the note before releasing the lock: afterwards it may be the next holder's note. (A note without a
        # lock would be harmless: it is read as the note of a crashed holder.)
        with contextlib.suppress(OSError):
            RunDir(run_dir).holder.unlink()
        lock.release()


def is_held(run_dir: Path) -> Holder | None:
    """The process that holds the run directory, as {"host", "pid", "since", "slurm_job_id"}; None where none does.

    Does not disturb the holder: it tries the lock only if there is a holder's note, and never waits for it. The lock
    that it tries is a shared one, so that two who look at the same time do not take each other for the holder.
    """
    holder = last_holder(run_dir)
    if holder is None:
        return None
    try:
        with RunDir(run_dir).lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except OSError:  # the lock is held, or unreadable here
        return holder
    return None


def last_holder(run_dir: Path) -> Holder | None:
    """The process in the holder's note, which may have died; None without a note. Same form as `is_held`."""
    try:
        holder = json.loads(RunDir(run_dir).holder.read_bytes())
    except (OSError, ValueError):
        return None
    return holder if isinstance(holder, dict) else None


def _describe(holder: Holder | None) -> str:
    if holder is None:
        return "another process; wait for it or stop it"
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder.get("since") or 0))
    job = f" (SLURM job {holder['slurm_job_id']})" if holder.get("slurm_job_id") else ""
    return f"pid {holder.get('pid')} on host {holder.get('host')} since {since}{job}; wait for it or stop it"

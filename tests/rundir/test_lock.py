"""The lock keeps two processes out of one run directory, and dies with its holder."""

import errno
import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edkd.errors import EdkdError
from edkd.rundir import lock


def hold_elsewhere(run_dir: Path, **environment: str) -> subprocess.Popen[str]:
    """Another process that holds the directory until it is killed or its input closes."""
    program = (
        "import sys; from pathlib import Path; from edkd.rundir import lock\n"
        "with lock.hold(Path(sys.argv[1])):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(run_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(lock.__file__).parents[2])} | environment,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_told_who_holds_the_directory(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert lock.is_held(run_dir) is None
    process = hold_elsewhere(run_dir, SLURM_JOB_ID="4711")
    try:
        message = rf"{run_dir} is in use by pid {process.pid} on host \S+ since 20.* \(SLURM job 4711\); wait for it or"
        with pytest.raises(EdkdError, match=message), lock.hold(run_dir):
            raise AssertionError("two holders")
        holder = lock.is_held(run_dir)
        assert holder is not None and holder["pid"] == process.pid
    finally:
        process.communicate(timeout=20)
    assert lock.is_held(run_dir) is None
    assert not (run_dir / "holder.json").exists()
    with pytest.raises(ZeroDivisionError), lock.hold(run_dir):
        assert lock.is_held(run_dir) is not None
        raise ZeroDivisionError
    assert lock.is_held(run_dir) is None


def test_the_lock_dies_with_a_killed_process(tmp_path: Path) -> None:
    process = hold_elsewhere(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=20)
    assert (tmp_path / "holder.json").exists()
    assert lock.is_held(tmp_path) is None
    with lock.hold(tmp_path):
        holder = lock.is_held(tmp_path)
        assert holder is not None and holder["pid"] == os.getpid()
        with pytest.raises(EdkdError, match=f"in use by pid {os.getpid()} "), lock.hold(tmp_path):
            raise AssertionError("two holders")


def test_looking_does_not_keep_a_holder_out(tmp_path: Path) -> None:
    """While another process asks as fast as it can, every attempt to hold the directory succeeds."""
    program = (
        "import sys; from pathlib import Path; from edkd.rundir import lock\n"
        "print('asking', flush=True)\n"
        "while True: lock.is_held(Path(sys.argv[1]))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(lock.__file__).parents[2])},
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        for _ in range(50):
            # The note of a crashed holder: with it there, every question tries the lock.
            (tmp_path / "holder.json").write_text('{"pid": 1, "host": "gone", "since": 0}')
            time.sleep(0.001)
            with lock.hold(tmp_path):
                pass
    finally:
        process.kill()
        process.communicate(timeout=20)


def test_two_who_look_at_once_do_not_take_each_other_for_the_holder(tmp_path: Path) -> None:
    with lock.hold(tmp_path):
        note = (tmp_path / "holder.json").read_text()
    (tmp_path / "holder.json").write_text(note)  # of a holder that was killed
    with (tmp_path / "run.lock").open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_SH)  # as `is_held` in another process
        assert lock.is_held(tmp_path) is None


def test_a_directory_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(EdkdError, match=r"could not lock the run directory .*: Not a directory"),
        lock.hold(tmp_path / "file" / "run"),
    ):
        raise AssertionError("held")


def test_a_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(file: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", flock)  # Lustre, mounted without the option flock
    line = re.escape(f"could not lock the run directory {tmp_path}: Function not implemented")
    with pytest.raises(EdkdError, match=line), lock.hold(tmp_path):
        pytest.fail("two processes could hold it")

"""The processes of a test run: started, waited for, and all of them stopped, however the run ends."""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

MARK = "EDKD_TEST_FOLDER"  # the environment variable that all processes of a folder carry
PATIENCE = 240.0  # seconds: a machine under load takes long, and nothing here waits without need


def wait_for(what: str, condition: Callable[[], Any], *, patience: float = PATIENCE, pause: float = 0.05) -> Any:
    """Wait until the condition gives something true, and return that; AssertionError says what did not come."""
    deadline = time.monotonic() + patience
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {patience:g} s in vain for {what}")
        time.sleep(pause)


def free_ports(count: int) -> list[int]:
    """Ports on which nothing listens, all below those that the kernel gives to outgoing connections."""
    ports: list[int] = []
    with contextlib.ExitStack() as held:
        while len(ports) < count:
            port = random.SystemRandom().randrange(12000, 32000)
            listener = held.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                listener.bind(("", port))
                ports.append(port)
    return ports


class Crew:
    """Processes that belong to one temporary folder.

    Each is started in a session of its own, leads its log in `folder/log`, and carries the folder's name in its
    environment, as do its children. A watchman outlives this process and ends them all should it be killed.
    """

    def __init__(self, name: str) -> None:
        # munged refuses sockets below a folder that others may not enter, and long paths: not tmp_path, not TMPDIR.
        self.folder = Path(tempfile.mkdtemp(prefix=f"edkd-{name}-", dir="/tmp"))
        self.folder.chmod(0o755)
        (self.folder / "log").mkdir()
        self.started: dict[str, subprocess.Popen[bytes]] = {}
        self.environment = {**os.environ, MARK: str(self.folder)}
        self._watchman = subprocess.Popen(
            [sys.executable, __file__, str(self.folder)], stdin=subprocess.PIPE, start_new_session=True
        )

    def start(self, name: str, command: Sequence[str | Path]) -> None:
        """Start a process, replacing one of that name that has ended."""
        with (self.folder / "log" / f"{name}.out").open("ab") as log:
            self.started[name] = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=self.environment,
            )
        with (self.folder / "pids").open("a") as pids:
            pids.write(f"{self.started[name].pid} {_born(self.started[name].pid)}\n")

    def stop(self, name: str, *, how: signal.Signals = signal.SIGTERM, patience: float = 30.0) -> None:
        """Stop a process and wait for its end, in the last resort by SIGKILL."""
        process = self.started.pop(name, None)
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(how)
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(patience)

    def members(self) -> dict[int, dict[str, str]]:
        """The environment of every living process of this folder, by its id; children and jobs included."""
        return members(self.folder)

    def dismiss(self) -> None:
        """Stop everything, the last started first, remove the folder, and make sure that nothing is left."""
        for name in reversed(list(self.started)):
            self.stop(name)
        end_all(self.folder)
        if self._watchman.poll() is None:
            assert self._watchman.stdin is not None
            self._watchman.stdin.close()  # it finds nothing to do but to remove the folder
            self._watchman.wait(PATIENCE)
        left = self.members()
        if left:
            raise RuntimeError(f"processes of {self.folder} survived: {sorted(left)}")


def members(folder: Path) -> dict[int, dict[str, str]]:
    """See `Crew.members`."""
    found: dict[int, dict[str, str]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        pid = int(entry.name)
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if (entry / "comm").read_text().startswith("slurmstepd"):
                node = _kept_node(entry, folder)
                environment = {MARK: str(folder), "SLURMD_NODENAME": node} if node else {}
            else:
                lines = (entry / "environ").read_bytes().decode().split("\0")
                environment = dict(line.split("=", 1) for line in lines if "=" in line)
            if environment.get(MARK) == str(folder) and pid != os.getpid() and _born(pid):
                found[pid] = environment
    return found


def _kept_node(process: Path, folder: Path) -> str | None:
    """The node whose jobs a slurmstepd keeps. It has wiped its environment, but writes into the node's log."""
    for file in (process / "fd").iterdir():
        log = Path(os.path.realpath(file))
        if log.parent == folder / "log" and log.name.startswith("slurmd."):
            return log.name.split(".")[1]
    return None


def end_all(folder: Path) -> None:
    """SIGKILL whatever of the folder's processes still lives."""
    recorded: list[int] = []
    with contextlib.suppress(OSError):
        for line in (folder / "pids").read_text().splitlines():
            pid, born = map(int, line.split())
            if _born(pid) == born:
                recorded.append(pid)
    deadline = time.monotonic() + 30
    left = {*recorded, *members(folder)}
    while left and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
        left = {pid for pid in recorded if _born(pid)} | set(members(folder))


def _born(pid: int) -> int:
    """When a process was started, in the kernel's ticks; 0 for one that has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])


if __name__ == "__main__":  # the watchman: its standard input ends when the test run does
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdin.buffer.read()
    end_all(Path(sys.argv[1]))
    if "EDKD_SLURM_KEEP" not in os.environ:
        shutil.rmtree(sys.argv[1], ignore_errors=True)

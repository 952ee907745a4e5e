"""Commands that share a time: each in a process group of its own, stopped as Ctrl-C would when the time is over."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from types import FrameType

POLL = 0.5  # seconds
RESERVE = 30.0  # seconds that are kept for a command to stop; of a short time, a tenth


class Budget:
    """So many minutes from now; None: as long as it takes."""

    def __init__(self, minutes: float | None) -> None:
        seconds = float("inf") if minutes is None else minutes * 60
        self.reserve = min(RESERVE, seconds / 10)
        self.until = time.monotonic() + seconds - self.reserve

    def left(self) -> float:
        """Seconds until commands are stopped; at or below 0 it is time."""
        return self.until - time.monotonic()

    def run(self, command: Sequence[str]) -> int | None:
        """Run a command; its exit code, or None if it was stopped, or not begun, because the time was over.

        Ctrl-C stops the command too, and is then raised here.
        """
        if self.left() <= 0:
            return None
        process = subprocess.Popen(command, start_new_session=True)
        try:
            while self.left() > 0:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return process.wait(timeout=POLL)
            self._stop(process)
        except BaseException:
            self._stop(process)
            raise
        return None

    def _stop(self, process: "subprocess.Popen[bytes]") -> None:
        """End the command and all that it has started, kindly at first."""
        for sent in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            until = time.monotonic() + max(self.reserve / 2, 2.0)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, sent)
            while time.monotonic() < until:
                if process.poll() is not None and not _alive(process.pid):
                    return
                time.sleep(0.05)


@contextlib.contextmanager
def stopping_kindly() -> Iterator[None]:
    """Inside, SIGTERM is Ctrl-C, and commands take Ctrl-C even where this process was told to ignore it."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True

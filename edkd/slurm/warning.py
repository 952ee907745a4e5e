"""SLURM's warning, SIGUSR2, noted instead of acted upon: whether it came, and whether a run shall stop for it."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing.sharedctypes import RawValue
from types import FrameType

from edkd.runs.preemption import Stopped

WARNING = signal.SIGUSR2
FINISH_EPOCH = 0.5  # part of the time between the warning and the end in which an epoch may still be finished
LAST_MOMENT = 0.75  # part of that time after which a run that has met no safe point is broken off where it is


class Warned:
    """Whether and when SLURM's warning came.

    The processes of a run with several devices are given this by the one that starts them, and see what that has noted.
    """

    def __init__(self, delay: float) -> None:
        self.delay, self.began = delay, time.monotonic()
        self._at = RawValue("d", 0.0)  # in shared memory; 0 is none

    @property
    def at(self) -> float | None:
        """When the warning came, by the clock of `time.monotonic`, which all processes of a machine share."""
        return self._at.value or None

    @property
    def ran(self) -> float:
        """The seconds from the start to the warning."""
        return (self.at or time.monotonic()) - self.began

    @property
    def deadline(self) -> float:
        """When SLURM ends the job, by the clock of `time.monotonic`."""
        return self.began + self.ran + self.delay

    def note(self) -> None:
        """The warning has come; further ones change nothing."""
        if self.at is None:
            self._at.value = time.monotonic()
            signal.setitimer(signal.ITIMER_REAL, max(0.001, LAST_MOMENT * self.delay))

    def stop_asked(self, left: float) -> bool:
        """At a safe point: whether to stop there, with `left` seconds to the end of the epoch."""
        if self.at is None:
            return False
        return left <= 0 or time.monotonic() - self.at + left > FINISH_EPOCH * self.delay

    def disarm(self) -> None:
        """From here on nothing is broken off."""
        signal.setitimer(signal.ITIMER_REAL, 0)


@contextlib.contextmanager
def warnings_noted(delay: float) -> Iterator[Warned]:
    """Note SLURM's warning instead of acting on it; `delay` seconds later SLURM ends the job.

    The signal is blocked rather than handled: children, forked or started, inherit that and are not disturbed, while
    a thread waits for it. The handler is for threads that were there before, to which the kernel may give the signal.
    """
    before = signal.getsignal(WARNING), signal.getsignal(signal.SIGALRM)
    warned = Warned(delay)
    done = threading.Event()

    def noted(number: int, frame: FrameType | None) -> None:
        warned.note()

    def break_off(number: int, frame: FrameType | None) -> None:
        raise Stopped

    def wait() -> None:
        while signal.sigwait({WARNING}) and not done.is_set():
            warned.note()

    signal.signal(WARNING, noted)
    signal.signal(signal.SIGALRM, break_off)
    signal.pthread_sigmask(signal.SIG_BLOCK, {WARNING})
    waiting = threading.Thread(target=wait, name="edkd-warning", daemon=True)
    waiting.start()
    try:
        yield warned
    finally:
        warned.disarm()
        done.set()
        signal.pthread_kill(waiting.ident or 0, WARNING)
        waiting.join()
        signal.signal(WARNING, before[0])
        signal.signal(signal.SIGALRM, before[1])
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {WARNING})

"""Records SLURM's warning, SIGUSR2: whether and when it came, and whether a run should stop at a safe point."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing.sharedctypes import RawValue
from types import FrameType

from edkd.runs.preemption import Stopped

WARNING = signal.SIGUSR2
FINISH_EPOCH = 0.5  # fraction of the time between the warning and the job's end in which an epoch may still finish
LAST_MOMENT = 0.75  # fraction of that time after which a run that has met no safe point is stopped where it is


class Warned:
    """Whether and when SLURM's warning came.

    The processes of a run with several devices share it: the one that starts the others records the warning for all.
    """

    def __init__(self, delay: float) -> None:
        self.delay, self.began = delay, time.monotonic()
        self._at = RawValue("d", 0.0)  # in shared memory; 0: no warning yet

    @property
    def at(self) -> float | None:
        """When the warning came, by the clock of `time.monotonic`, which all processes of a machine share."""
        return self._at.value or None

    @property
    def ran(self) -> float:
        """The seconds from the start to the warning, or until now if there is none."""
        return (self.at or time.monotonic()) - self.began

    @property
    def deadline(self) -> float:
        """When SLURM ends the job, by the clock of `time.monotonic`."""
        return self.began + self.ran + self.delay

    def note(self) -> None:
        """Record the warning and start the timer of `LAST_MOMENT`; further warnings change nothing."""
        if self.at is None:
            self._at.value = time.monotonic()
            signal.setitimer(signal.ITIMER_REAL, max(0.001, LAST_MOMENT * self.delay))

    def stop_asked(self, left: float) -> bool:
        """Return whether to stop at a safe point with `left` seconds to the end of the epoch."""
        if self.at is None:
            return False
        return left <= 0 or time.monotonic() - self.at + left > FINISH_EPOCH * self.delay

    def disarm(self) -> None:
        """Stop the timer: nothing is interrupted from here on."""
        signal.setitimer(signal.ITIMER_REAL, 0)


@contextlib.contextmanager
def warnings_noted(delay: float) -> Iterator[Warned]:
    """Record SLURM's warning; SLURM ends the job `delay` seconds after it.

    The signal is blocked, and a thread waits for it. Child processes, forked or started, inherit the block and are not
    interrupted. The handler is for older threads, which do not block the signal and may receive it from the kernel.
    """
    before = signal.getsignal(WARNING), signal.getsignal(signal.SIGALRM)
    warned = Warned(delay)
    done = threading.Event()

    def noted(number: int, frame: FrameType | None) -> None:
        warned.note()

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Stopped

    def wait() -> None:
        while signal.sigwait({WARNING}) and not done.is_set():
            warned.note()

    signal.signal(WARNING, noted)
    signal.signal(signal.SIGALRM, interrupt)
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

"""Safe points, after a step or an epoch: a run stops there on request, and later resumes as if it had not stopped."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

AGREE = 1.0  # seconds of training between two agreements of a run's processes on whether to stop

Asked = Callable[[float], bool]
"""Called at a safe point with the seconds left of the epoch by its pace, 0 at its end; returns whether to stop."""
Agree = Callable[[Sequence[int]], list[int]]
"""Gives all processes of a run the values of the first."""


class Stopped(BaseException):
    """A run stopped on request. Like KeyboardInterrupt, it is not an error for `except Exception` to handle."""


class Ended(Stopped):
    """SLURM is ending the processes of a job; it has already decided whether to start them again."""


class SafePoints:
    """Asks at each safe point of a run whether it shall stop there, and raises `Stopped` if so.

    Within an epoch, a checkpoint is made when `every` seconds have passed, and when the run stops. Without `every`, a
    stop loses the work of the epoch: the checkpoint is that of the epoch before. The first epoch resumes after `done`
    steps. With several processes, `agree` gives all of them the first one's answer, and the step after which to ask
    next. So all stop after the same step.
    """

    def __init__(self, asked: Asked | None, agree: Agree | None, *, every: float | None, done: int) -> None:
        self.asked, self.agree, self.every = asked, agree, every
        self.began = self.saved = time.monotonic()
        self.done, self.evaluation = done, 0.0
        self.next = 0  # the first step of the epoch after which to ask again

    def after_step(self, done: int, steps: int, save: Callable[[], None]) -> None:
        """Ask after step `done` of `steps`, except after the last: the end of the epoch follows."""
        if done == steps or done < self.next:
            return
        now = time.monotonic()
        pace = (now - self.began) / (done - self.done)
        stop: int = self.asked is not None and self.asked(pace * (steps - done) + self.evaluation)
        due: int = self.every is not None and (stop or now - self.saved >= self.every)
        if self.agree is not None:
            stop, due, self.next = self.agree([stop, due, done + math.ceil(AGREE / pace)])
        if due:
            save()
            self.saved = time.monotonic()
        if stop:
            raise Stopped

    def after_epoch(self, record: Mapping[str, Any]) -> None:
        """Ask after an epoch that is in the journal and in the checkpoint."""
        self.began = self.saved = time.monotonic()
        self.done, self.evaluation, self.next = 0, record["seconds"]["test"], 0
        stop: int = self.asked is not None and self.asked(0.0)
        if self.agree is not None:
            (stop,) = self.agree([stop])
        if stop:
            raise Stopped

"""Where a run may stop on request, and continue later as if nothing had been: after a step, after an epoch."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

AGREE = 1.0  # seconds of steps after which the processes of a run agree on whether to go on

Asked = Callable[[float], bool]
"""Asked at a safe point with the seconds that the epoch will still take by its pace, 0 at its end: stop here?"""
Agree = Callable[[Sequence[int]], list[int]]
"""Gives all processes of a run the values of the first."""


class Stopped(BaseException):
    """A run was asked to stop, and did; like KeyboardInterrupt no error that some `except Exception` should handle."""


class Ended(Stopped):
    """SLURM is ending the processes of a job; whether it starts them again, it has decided."""


class SafePoints:
    """Asks at each safe point of a run whether it shall stop there, and raises `Stopped` if so.

    Within an epoch a checkpoint is made `every` so many seconds, and where the run stops. Without `every`, what the
    epoch has computed is lost then: the checkpoint is that of the epoch before. The first epoch goes on after `done`
    steps. Of several processes, which `agree`, the first one is asked, and all stop after the same step; it also says
    when to ask next.
    """

    def __init__(self, asked: Asked | None, agree: Agree | None, *, every: float | None, done: int) -> None:
        self.asked, self.agree, self.every = asked, agree, every
        self.began = self.saved = time.monotonic()
        self.done, self.evaluation = done, 0.0
        self.next = 0  # the step of the epoch after which is asked again

    def after_step(self, done: int, steps: int, save: Callable[[], None]) -> None:
        """After step `done` of `steps`; after the last, the end of the epoch is next."""
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
        """After an epoch that is in the journal and in the checkpoint."""
        self.began = self.saved = time.monotonic()
        self.done, self.evaluation, self.next = 0, record["seconds"]["test"], 0
        stop: int = self.asked is not None and self.asked(0.0)
        if self.agree is not None:
            (stop,) = self.agree([stop])
        if stop:
            raise Stopped

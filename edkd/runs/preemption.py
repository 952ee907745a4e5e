"""Where a run may stop on request, and continue later as if nothing had been: after a step, after an epoch."""

import time
from collections.abc import Callable, Mapping
from typing import Any

Asked = Callable[[float], bool]
"""Asked at a safe point with the seconds that the epoch will still take by its pace, 0 at its end: stop here?"""


class Stopped(BaseException):
    """A run was asked to stop, and did; like KeyboardInterrupt no error that some `except Exception` should handle."""


class SafePoints:
    """Asks at each safe point of a run whether it shall stop there, and raises `Stopped` if so.

    After a step, what the epoch has computed so far is lost: the checkpoint is that of the epoch before.
    """

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.began, self.evaluation = time.monotonic(), 0.0

    def after_step(self, done: int, steps: int) -> None:
        """After step `done` of `steps`; after the last, the end of the epoch is next."""
        if done == steps:
            return
        training = (time.monotonic() - self.began) / done * (steps - done)
        if self.asked(training + self.evaluation):
            raise Stopped

    def after_epoch(self, record: Mapping[str, Any]) -> None:
        """After an epoch that is in the journal and in the checkpoint."""
        self.began, self.evaluation = time.monotonic(), record["seconds"]["test"]
        if self.asked(0.0):
            raise Stopped

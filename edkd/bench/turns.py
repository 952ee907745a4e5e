"""Measuring several things in turns, so that whatever slows the machine down slows all of them."""

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor

from edkd.bench.table import Timing

LEAST = 3  # repetitions, whatever the time


def in_turns(timings: Sequence[Timing], seconds_of: Callable[[Timing], float], most: int, until: float) -> None:
    """Add up to `most` repetitions of a step's seconds to each timing; each repetition begins with another timing.

    until: no repetition begins after this time (seconds of the monotonic clock) once `LEAST` are done.
    """
    for repetition in range(most if timings else 0):
        first = repetition % len(timings)
        for timing in [*timings[first:], *timings[:first]]:
            timing.seconds.append(seconds_of(timing))
        if repetition + 1 >= LEAST and time.monotonic() > until:
            break


def process() -> Executor:
    """An executor with one spawned process, which runs one task after another."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))

"""The power of a paired t-test: the smallest difference that n runs detect, and the n that a difference needs."""

from __future__ import annotations

import math
from functools import lru_cache

from statsmodels.stats.power import TTestPower

from analysis.statistics.paired import LEVEL

POWER = 0.8  # the probability to find a difference that exists


def detectable(n: int, sd: float) -> float:
    """The smallest paired difference that a two-sided t-test of n differences finds with probability POWER.

    `sd` is the standard deviation of the differences. NaN for n < 2 and where `sd` is not positive.
    """
    return _effect(n) * sd if n >= 2 and sd > 0 else math.nan


def needed(difference: float, sd: float) -> int | None:
    """The n with which a difference of this size is found with probability POWER; None without difference or sd."""
    if not (sd > 0 and abs(difference) > 0):
        return None
    effect = abs(difference) / sd
    if effect >= _effect(2):
        return 2
    solved = TTestPower().solve_power(effect, power=POWER, alpha=(1 - LEVEL) / 2, alternative="larger")
    return math.ceil(float(solved))


@lru_cache
def _effect(n: int) -> float:
    """The detectable difference in units of the standard deviation.

    One tail of the two-sided test is left out: the probability to find the wrong sign is below 1e-5 at a power of 0.8,
    and SciPy's non-central t gives NaN for it at small n.
    """
    solved = TTestPower().solve_power(nobs=n, power=POWER, alpha=(1 - LEVEL) / 2, alternative="larger")
    return float(solved)

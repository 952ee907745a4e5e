"""The power of a paired t-test: the smallest difference that n runs detect, and the n that a difference needs."""

from __future__ import annotations

import math
from functools import lru_cache

from statsmodels.stats.power import TTestPower


def detectable(n: int, sd: float, power: float = 0.8, level: float = 0.95) -> float:
    """The smallest paired difference that a two-sided t-test of n differences finds with probability `power`.

    `sd` is the standard deviation of the differences. NaN for n < 2 and where `sd` is not positive.
    """
    return _effect(n, power, level) * sd if n >= 2 and sd > 0 else math.nan


def needed(difference: float, sd: float, power: float = 0.8, level: float = 0.95) -> int | None:
    """The n with which a difference of this size is found with probability `power`; None without difference or sd."""
    if not (sd > 0 and abs(difference) > 0):
        return None
    effect = abs(difference) / sd
    if effect >= _effect(2, power, level):
        return 2
    solved = TTestPower().solve_power(effect, power=power, alpha=(1 - level) / 2, alternative="larger")
    return math.ceil(float(solved))


@lru_cache
def _effect(n: int, power: float, level: float) -> float:
    """The detectable difference in units of the standard deviation.

    One tail of the two-sided test is left out: the probability to find the wrong sign is below 1e-5 at a power of 0.8,
    and SciPy's non-central t gives NaN for it at small n.
    """
    solved = TTestPower().solve_power(nobs=n, power=power, alpha=(1 - level) / 2, alternative="larger")
    return float(solved)

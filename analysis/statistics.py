"""Statistics over seeds, as pure functions over arrays. Accuracies and differences are in percent (points)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats  # type: ignore[import-untyped]


class Summary(NamedTuple):
    """What a cell of the table says of its n values; NaN where n is too small to say it."""

    n: int
    mean: float
    sd: float
    low: float
    high: float


def mean(values: ArrayLike) -> float:
    """Arithmetic mean of values [n]; NaN for n = 0."""
    x = np.asarray(values, dtype=np.float64)
    return float(x.mean()) if x.size else float("nan")


def sd(values: ArrayLike) -> float:
    """Sample standard deviation (divisor n − 1) of values [n]; NaN for n < 2: one run has no spread."""
    x = np.asarray(values, dtype=np.float64)
    return float(x.std(ddof=1)) if x.size > 1 else float("nan")


def t_interval(values: ArrayLike, level: float) -> tuple[float, float]:
    """Student's confidence interval of the mean, `mean ± t(level, n − 1)·sd/√n`; NaN for n < 2.

    `level` is the coverage, e.g. 0.95. The values are taken as independent and roughly normal, one per seed.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.size < 2:
        return float("nan"), float("nan")
    half = float(stats.t.ppf((1 + level) / 2, x.size - 1)) * sd(x) / float(np.sqrt(x.size))
    return mean(x) - half, mean(x) + half


def summarise(values: ArrayLike, level: float) -> Summary:
    """All of the above for values [n]."""
    x = np.asarray(values, dtype=np.float64)
    return Summary(int(x.size), mean(x), sd(x), *t_interval(x, level))


def paired_differences(
    first: Mapping[tuple[int, str], float], second: Mapping[tuple[int, str], float]
) -> NDArray[np.float64]:
    """`first − second` for every (seed, teacher) that both have, in the order of the seeds; [0] if they share none.

    Runs of one seed share initial weights, order and augmentation, so much of the seed's noise cancels here. What two
    teachers make of their students does not.
    """
    return np.array([first[key] - second[key] for key in sorted(first.keys() & second.keys())], dtype=np.float64)

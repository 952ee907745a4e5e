"""Statistics over seeds, as pure functions over arrays. Accuracies and differences are in percent (points)."""

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


def summarise(values: ArrayLike, level: float) -> Summary:
    """Of values [n]: mean, sample standard deviation (divisor n − 1) and Student's confidence interval of the mean.

    The interval is `mean ± t(level, n − 1)·sd/√n` and `level` its coverage, e.g. 0.95. The values are taken as
    independent and roughly normal, one per seed. One run has no spread, so n < 2 gives NaN.
    """
    x = np.asarray(values, dtype=np.float64)
    nan = float("nan")
    mean = float(x.mean()) if x.size else nan
    if x.size < 2:
        return Summary(int(x.size), mean, nan, nan, nan)
    sd = float(x.std(ddof=1))
    half = float(stats.t.ppf((1 + level) / 2, x.size - 1)) * sd / float(np.sqrt(x.size))
    return Summary(int(x.size), mean, sd, mean - half, mean + half)


def paired_differences(
    first: Mapping[tuple[int, str], float], second: Mapping[tuple[int, str], float]
) -> NDArray[np.float64]:
    """`first − second` for every (seed, teacher) that both have, in the order of the seeds; [0] if they share none.

    Runs of one seed share initial weights, order and augmentation, so much of the seed's noise cancels here. What two
    teachers make of their students does not.
    """
    return np.array([first[key] - second[key] for key in sorted(first.keys() & second.keys())], dtype=np.float64)

"""Statistics over seeds: a method's mean and interval, and the paired difference of two methods on a pair."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from statsmodels.stats.multitest import multipletests

Floats = NDArray[np.float64]

LEVEL = 0.95  # the coverage of intervals; the level of tests is 1 − LEVEL
SAME = 1e-9  # points; smaller differences are rounding errors


class Moments(NamedTuple):
    """Number, mean, standard deviation and interval; arrays of one shape."""

    n: NDArray[np.int64]
    mean: Floats
    sd: Floats
    low: Floats
    high: Floats


class Differences(NamedTuple):
    """Paired differences `gaps` [pairs, runs, contrasts], NaN where a run is missing; `seeds` [pairs, runs]."""

    pairs: list[str]
    seeds: NDArray[np.int64]
    gaps: Floats


def cells(tidy: pd.DataFrame) -> pd.DataFrame:
    """n, mean, sample standard deviation and Student's interval of each (pair, method, protocol).

    The values are taken as independent and roughly normal. There is no sd below n = 2, and no interval below n = 2 or
    where all values are equal.
    """
    groups = tidy.groupby(["pair", "method", "protocol"], sort=False)["value"]
    table = groups.agg(n="count", mean="mean", sd="std")
    table["sd"] = table["sd"].mask(table["sd"] < SAME, 0.0)
    table["low"], table["high"] = _interval(table["n"], table["mean"], table["sd"])
    return table.reset_index()


def comparisons(tidy: pd.DataFrame, protocol: str, contrasts: Sequence[tuple[str, str]] | None = None) -> pd.DataFrame:
    """Paired t-test and interval of `first − second` on each pair, over the (seed, teacher) that both methods have.

    Runs of one seed share initial weights, order and augmentation, so much of the seed's noise cancels in the
    difference; the effect of different teachers does not. `contrasts` are (first, second), None: all pairs of
    methods. `p_holm` is corrected over all rows that have a p (n ≥ 2 and differences that are not all equal).
    """
    if contrasts is None:
        contrasts = list(combinations(tidy["method"][tidy["protocol"] == protocol].unique(), 2))
    pairs, seeds, gaps = differences(tidy, protocol, contrasts)
    found = moments(gaps)
    with np.errstate(divide="ignore", invalid="ignore"):
        _, p = stats.mstats.ttest_1samp(np.ma.masked_invalid(gaps), 0.0, axis=1)
    p = np.where(found.sd > 0, np.ma.filled(p, np.nan), np.nan)
    where = [(c, k) for c in range(len(contrasts)) for k in range(len(pairs)) if found.n[k, c]]
    contrast, pair = np.array(where, dtype=np.int64).reshape(-1, 2).T
    rows = pd.DataFrame(
        {
            "pair": [pairs[k] for k in pair],
            "first": [contrasts[c][0] for c in contrast],
            "second": [contrasts[c][1] for c in contrast],
            "n": found.n[pair, contrast],
            "difference": found.mean[pair, contrast],
            "sd": found.sd[pair, contrast],
            "low": found.low[pair, contrast],
            "high": found.high[pair, contrast],
            "p": p[pair, contrast],
            "values": [gaps[k, ~np.isnan(gaps[k, :, c]), c].tolist() for c, k in where],
            "seeds": [" ".join(map(str, seeds[k][~np.isnan(gaps[k, :, c])])) for c, k in where],
        }
    )
    return rows.assign(p_holm=holm(rows["p"].to_numpy()))


def holm(p: Floats) -> Floats:
    """p [n], adjusted by Holm over the entries that are not NaN."""
    adjusted = np.full(p.shape, np.nan)
    tested = ~np.isnan(p)
    if tested.any():
        adjusted[tested] = multipletests(p[tested], method="holm")[1]
    return adjusted


def differences(tidy: pd.DataFrame, protocol: str, contrasts: Sequence[tuple[str, str]]) -> Differences:
    """`first − second` of each contrast, for every pair, seed and teacher."""
    part = tidy[tidy["protocol"] == protocol]
    pairs = part["pair"].unique().tolist()
    wide = part.pivot(index=["pair", "seed", "teacher"], columns="method", values="value")
    first, second = (wide.reindex(columns=[names[side] for names in contrasts]).to_numpy(float) for side in (0, 1))
    pair = np.array([pairs.index(name) for name in wide.index.get_level_values("pair")], dtype=np.int64)
    run = wide.groupby(level="pair", sort=False).cumcount().to_numpy()
    shape = len(pairs), run.max(initial=-1) + 1
    seeds, gaps = np.zeros(shape, dtype=np.int64), np.full((*shape, len(contrasts)), np.nan)
    seeds[pair, run] = wide.index.get_level_values("seed")
    gaps[pair, run] = first - second
    return Differences(pairs, seeds, gaps)


def moments(gaps: Floats) -> Moments:
    """The moments over the second axis of gaps [pairs, runs] or [pairs, runs, contrasts], ignoring NaN."""
    values = np.ma.masked_invalid(gaps)
    n = values.count(axis=1)
    mean = values.mean(axis=1).filled(np.nan)
    sd = values.std(axis=1, ddof=1).filled(np.nan)
    sd = np.where(sd < SAME, 0.0, sd)
    return Moments(n, mean, sd, *_interval(n, mean, sd))


def _interval(n: ArrayLike, mean: ArrayLike, sd: ArrayLike) -> tuple[Floats, Floats]:
    """Student's interval of the mean, elementwise; NaN for n < 2 and where the sd is 0."""
    n, sd = np.asarray(n), np.asarray(sd)
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = stats.t.interval(LEVEL, n - 1, loc=mean, scale=sd / np.sqrt(n))
    return low, high

"""Statistics over seeds and pairs, as pure functions over a tidy frame. Accuracies and differences are in percent.

A tidy frame has one row per finished run and protocol: `pair`, `method`, `seed`, `teacher` (the identity of its
weights), `protocol` ("last", "best": chosen on the test set, "selected": chosen on held-out images) and `value`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats  # type: ignore[import-untyped]
from statsmodels.stats.multitest import multipletests  # type: ignore[import-untyped]
from statsmodels.stats.power import TTestPower  # type: ignore[import-untyped]

from edkd.console import counted

Floats = NDArray[np.float64]

SAME = 1e-9  # points; what is closer than this differs by rounding errors alone
TIE = 0.005  # points; half of what one image of a test set of 10,000 counts
FEWEST_PAIRS = 5  # fewer give no interval: in simulations one of 95 % covered as little as 49 % (2 pairs) to 87 % (4)


class Pooled(NamedTuple):
    """What all pairs together say of `first − second`; NaN where there are too few pairs to say it."""

    pairs: int
    mean: float
    low: float
    high: float
    improvement: float
    wins: int
    ties: int
    losses: int
    p_wilcoxon: float


class _Moments(NamedTuple):
    """Number, mean, standard deviation and interval; arrays of one shape."""

    n: NDArray[np.int64]
    mean: Floats
    sd: Floats
    low: Floats
    high: Floats


class _Differences(NamedTuple):
    """Paired differences `gaps` [pairs, runs, contrasts], NaN where a run is missing; `seeds` [pairs, runs]."""

    pairs: list[str]
    seeds: NDArray[np.int64]
    gaps: Floats


def cells(tidy: pd.DataFrame, level: float = 0.95) -> pd.DataFrame:
    """n, mean, sample standard deviation and Student's interval of each (pair, method, protocol).

    The values are taken as independent and roughly normal. There is no sd below n = 2, and no interval below n = 2 or
    where all values are equal.
    """
    groups = tidy.groupby(["pair", "method", "protocol"], sort=False)["value"]
    table = groups.agg(n="count", mean="mean", sd="std")
    table["sd"] = table["sd"].mask(table["sd"] < SAME, 0.0)
    table["low"], table["high"] = _interval(table["n"], table["mean"], table["sd"], level)
    return table.reset_index()


def comparisons(
    tidy: pd.DataFrame, protocol: str, contrasts: Sequence[tuple[str, str]] | None = None, level: float = 0.95
) -> pd.DataFrame:
    """Paired t-test and interval of `first − second` on each pair, over the (seed, teacher) that both methods have.

    Runs of one seed share initial weights, order and augmentation, so much of the seed's noise cancels in the
    difference; what two teachers make of their students does not. `contrasts` are (first, second), None: all pairs of
    methods. `p_holm` is corrected over all rows that have a p (n ≥ 2 and differences that are not all equal).
    """
    if contrasts is None:
        contrasts = list(combinations(tidy["method"][tidy["protocol"] == protocol].unique(), 2))
    pairs, seeds, gaps = _differences(tidy, protocol, contrasts)
    found = _moments(gaps, level)
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
            "p_holm": np.nan,
            "seeds": [" ".join(map(str, seeds[k][~np.isnan(gaps[k, :, c])])) for c, k in where],
        }
    )
    tested = rows["p"].notna()
    if tested.any():
        rows.loc[tested, "p_holm"] = multipletests(rows["p"][tested], method="holm")[1]
    return rows


def pooled(
    tidy: pd.DataFrame,
    protocol: str,
    first: str,
    second: str,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Pooled:
    """The mean over pairs of the mean paired difference `first − second`.

    `low` and `high` come from a hierarchical bootstrap (pairs, then the runs of each drawn pair) with the expanded
    percentiles of Hesterberg (2015, arXiv:1411.5279): plain percentiles are too narrow for few pairs.
    In simulations of 5 to 13 pairs with 1 to 4 runs, 91 % (5 pairs, 1 run) to 99.7 % of the intervals of 95 % covered.
    `improvement` is the probability of improvement: the mean over pairs of the share of paired runs in which `first`
    is better, equal runs counted half.
    A pair is a tie where the t interval of its difference includes 0, or, where it has none, if |difference| < 0.005;
    otherwise the sign decides. `p_wilcoxon` is the exact two-sided p of the signed ranks of the pairs' differences.
    """
    gaps = _differences(tidy[tidy["method"].isin([first, second])], protocol, [(first, second)]).gaps[:, :, 0]
    gaps = gaps[~np.isnan(gaps).all(axis=1)]
    count = len(gaps)
    if not count:
        return Pooled(0, math.nan, math.nan, math.nan, math.nan, 0, 0, 0, math.nan)
    n, mean, _, low, high = _moments(gaps, level)
    runs = [row[~np.isnan(row)] for row in gaps]
    tie = np.where(np.isnan(low), np.abs(mean) < TIE, (low <= 0) & (high >= 0))
    interval = (math.nan, math.nan)
    if count >= FEWEST_PAIRS:
        means = _bootstrap_weights(tuple(n.tolist()), resamples, seed) @ np.concatenate(runs)
        tail = float(stats.norm.sf(stats.t.isf((1 - level) / 2, count - 1) * math.sqrt(count / (count - 1))))
        low_mean, high_mean = np.quantile(means, [tail, 1 - tail]).tolist()
        interval = (low_mean, high_mean)
    improvement = np.mean([np.mean((row > 0) + 0.5 * (row == 0)) for row in runs])
    ranked = mean.round(9)  # equal differences are equal to the last bit
    ranked = ranked[ranked != 0]
    return Pooled(
        count,
        float(mean.mean()),
        *interval,
        float(improvement),
        wins=int((~tie & (mean > 0)).sum()),
        ties=int(tie.sum()),
        losses=int((~tie & (mean < 0)).sum()),
        # Without `exact`, SciPy permutes where ranks are tied, which takes seconds; `exact` rounds to the larger p.
        p_wilcoxon=float(stats.wilcoxon(ranked, method="exact").pvalue) if ranked.size else math.nan,
    )


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


def permits(rows: pd.DataFrame, power: float = 0.8, level: float = 0.95) -> list[str]:
    """What the n of these `comparisons` permits and what not, in sentences; empty for no rows."""
    said = []
    alone, flat = int((rows["n"] == 1).sum()), int((rows["sd"] == 0).sum())
    if alone:
        which = "Every difference is" if alone == len(rows) else f"{alone} of {len(rows)} differences are"
        said.append(
            f"{which} from one run per method (n = 1): one run shows no spread, "
            "so it permits no interval, no p and no conclusion."
        )
    if flat:
        said.append(
            f"{flat} of {counted(len(rows), 'difference')} had the same value in every run: without a spread there is "
            "no interval and no p."
        )
    for n, group in rows[rows["sd"] > 0].groupby("n"):
        said.append(_sensitivity(int(str(n)), group, power, level))
    pairs = rows["pair"].unique()
    teachers = [str(pair).split("-", 1)[0] for pair in pairs]
    sharing = sum(teachers.count(teacher) > 1 for teacher in teachers)
    if sharing:
        said.append(
            f"{sharing} of {len(pairs)} pairs share a teacher network with another pair, so the pairs are not "
            "independent; intervals and tests over pairs treat them as if they were."
        )
    count = int(rows.groupby(["first", "second"])["pair"].nunique().max()) if len(rows) else 0
    if count > 1:
        floor = 2.0 ** (1 - count)
        never = f", so it cannot reach {_percent(1 - level)}" if floor > 1 - level else ""
        said.append(f"Over {count} pairs a two-sided Wilcoxon test cannot give p below {floor:.4f}{never}.")
    return said


def _sensitivity(n: int, group: pd.DataFrame, power: float, level: float) -> str:
    sd, difference = float(group["sd"].median()), float(group["difference"].abs().median())
    median = f", the median of {len(group)} comparisons" if len(group) > 1 else ""
    need = needed(difference, sd, power, level)
    observed = f"the {'median ' if median else ''}observed difference of {difference:.2f} points"
    return (
        f"With n = {n} and a standard deviation of the differences of {sd:.2f} points{median}, a paired t-test at the "
        f"{_percent(1 - level)} level, before Holm's correction, detects a difference of "
        f"{detectable(n, sd, power, level):.2f} points with {_percent(power)} power"
        + (f"; {observed} would need n = {need}." if need else ".")
    )


def verdict(tidy: pd.DataFrame, protocol: str, ours: str, baselines: Sequence[str], level: float = 0.95) -> list[str]:
    """What the statistics say of `ours` against `baselines`, in at most three sentences."""
    every = {name: pooled(tidy, protocol, ours, name, level) for name in baselines}
    found = {name: result for name, result in every.items() if result.pairs}
    if not found:
        return [f"{ours} has no run with the seed and teacher of a run of {_and(baselines)}: nothing is compared."]
    rows = comparisons(tidy, protocol, [(ours, name) for name in found], level)
    if (rows["n"] == 1).all():
        reason = "Every comparison is of one run per method (n = 1), which permits no conclusion."
        return [f"{_observed(ours, found, rows, level, interval=False)}.", reason]
    closest, conclusion = min(found, key=lambda name: found[name].mean), ""
    if found[closest].pairs > 1:
        conclusion = {
            "better": f", so {ours} is better on average",
            "worse": f", so {ours} is worse on average",
            "open": ": the interval includes 0, and no difference is shown",
            "unknown": f": fewer than {FEWEST_PAIRS} pairs permit no interval over pairs and no conclusion on average",
        }[_standing(found[closest])]
    said = [f"{_observed(ours, found, rows, level, interval=True)}{conclusion}."]
    others = {
        standing: [name for name, result in found.items() if name != closest and _standing(result) == standing]
        for standing in ("better", "worse", "open")
    }
    parts = [
        text + _and(others[standing])
        for standing, text in (
            ("better", "better than "),
            ("worse", "worse than "),
            ("open", "not shown to differ from "),
        )
        if others[standing]
    ]
    if parts:
        said.append(f"On average over pairs it is {_and(parts)} (not corrected for the number of baselines).")
    tested = rows[rows["p_holm"].notna()]
    if len(tested):
        clear = tested[tested["p_holm"] < 1 - level]
        favour = int((clear["difference"] > 0).sum())
        are = "is" if len(clear) == 1 else "are"
        said.append(
            f"On single pairs, {len(clear)} of {counted(len(tested), 'comparison')} {are} significant at the "
            f"{_percent(1 - level)} level after Holm's correction"
            + (f": {favour} in favour of {ours}, {len(clear) - favour} against it." if len(clear) else ".")
        )
    return said


def _observed(ours: str, found: Mapping[str, Pooled], rows: pd.DataFrame, level: float, *, interval: bool) -> str:
    """The mean difference from the baseline that comes closest, without the full stop."""
    name = min(found, key=lambda name: found[name].mean)
    result = found[name]
    head = f"{ours} − {name} is {_points(result.mean)} points"
    if len(found) > 1:
        head = f"The smallest difference from {len(found)} baselines, {head}"
    if result.pairs == 1:
        row = rows[rows["second"] == name].iloc[0]
        shown, low, high = f"n = {row['n']}", float(row["low"]), float(row["high"])
        head += f" on {row['pair']}"
    else:
        shown, low, high = f"win/tie/loss {result.wins}/{result.ties}/{result.losses}", result.low, result.high
        head += f" on average over {result.pairs} pairs"
    if interval and not math.isnan(low):
        shown = f"{_percent(level)} interval {_points(low)} to {_points(high)}; {shown}"
    return f"{head} ({shown})"


def _standing(result: Pooled) -> str:
    if math.isnan(result.low):
        return "unknown"
    return "better" if result.low > 0 else "worse" if result.high < 0 else "open"


def _differences(tidy: pd.DataFrame, protocol: str, contrasts: Sequence[tuple[str, str]]) -> _Differences:
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
    return _Differences(pairs, seeds, gaps)


def _moments(gaps: Floats, level: float) -> _Moments:
    """Over the second axis of gaps [pairs, runs] or [pairs, runs, contrasts], without its NaN."""
    values = np.ma.masked_invalid(gaps)
    n = values.count(axis=1)
    mean = values.mean(axis=1).filled(np.nan)
    sd = values.std(axis=1, ddof=1).filled(np.nan)
    sd = np.where(sd < SAME, 0.0, sd)
    return _Moments(n, mean, sd, *_interval(n, mean, sd, level))


def _interval(n: ArrayLike, mean: ArrayLike, sd: ArrayLike, level: float) -> tuple[Floats, Floats]:
    """Student's interval of the mean, elementwise; NaN for n < 2 and where the sd is 0."""
    n, sd = np.asarray(n), np.asarray(sd)
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = stats.t.interval(level, n - 1, loc=mean, scale=sd / np.sqrt(n))
    return low, high


@lru_cache(maxsize=16)
def _bootstrap_weights(runs: tuple[int, ...], resamples: int, seed: int) -> Floats:
    """What each run counts in each resample's mean over pairs, [resamples, sum(runs)]; `runs` is their number by pair.

    Each resample draws as many pairs as there are, and for each drawn pair its runs anew, both with replacement. That
    is a multinomial number of draws of each pair, and of each of its runs.
    """
    draw = np.random.default_rng(seed)
    pairs = len(runs)
    drawn = draw.multinomial(pairs, np.full(pairs, 1 / pairs), size=resamples)
    counts = [draw.multinomial(drawn[:, k] * n, np.full(n, 1 / n)) / (n * pairs) for k, n in enumerate(runs)]
    return np.concatenate(counts, axis=1)


def _points(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _percent(share: float) -> str:
    return f"{100 * share:g} %"


def _and(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


# What analysis.tables uses.


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


def paired_differences(first: Mapping[tuple[int, str], float], second: Mapping[tuple[int, str], float]) -> Floats:
    """`first − second` for every (seed, teacher) that both have, in the order of the seeds; [0] if they share none.

    Runs of one seed share initial weights, order and augmentation, so much of the seed's noise cancels here. What two
    teachers make of their students does not.
    """
    return np.array([first[key] - second[key] for key in sorted(first.keys() & second.keys())], dtype=np.float64)

"""The forest plot: the paired differences of two methods, pair by pair and pooled."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Polygon

from analysis.figures.intervals import estimates, limits
from analysis.figures.style import (
    FAINT,
    INK,
    PLAIN,
    QUIET,
    SMALL,
    WIDTH,
    arrow,
    freeze,
    page,
    probability,
    signed,
    styled,
)
from analysis.statistics import LEVEL, Pooled

_ROW = 0.27  # inches


@styled()
def forest(
    comparisons: pd.DataFrame,
    pooled: Pooled,
    *,
    first: str,
    second: str,
    titles: Mapping[str, str],
    quantity: str,
    title: str,
) -> Figure:
    """Draw `first − second` in points: one row a pair, and a diamond for all pairs.

    `comparisons` are rows of `statistics.comparisons` (pair, first, second, n, difference, low, high, p_holm, values)
    and may hold other methods, too. A row shows the difference of every seed as a small dot, and their mean with its
    interval above them; one seed alone is an open circle without an interval. An interval that is much wider than the
    others ends in an arrow at the edge. The columns at the right repeat the numbers, p adjusted by Holm. `quantity`
    says what is compared, e.g. "test top-1 at the last epoch".
    """
    there = (comparisons["first"] == first) & (comparisons["second"] == second)
    rows = comparisons[there].dropna(subset=["difference"])
    if rows.empty:
        raise ValueError(f"nothing to draw: no pair has a paired difference of {first} and {second}")
    last = len(rows) + 0.4  # where the pooled row lies
    figure = page(WIDTH, _ROW * (last + 1) + 0.75, title, note=_note(pooled))
    axes = figure.subplots()
    points = [*(value for values in rows["values"] for value in values), *rows["difference"], pooled.mean, 0.0]
    ends = ([*rows["low"], pooled.low], [*rows["high"], pooled.high])
    axes.set(xlim=limits(points, *ends), ylim=(last + 0.6, -0.7))
    axes.axvline(0, color=INK, linewidth=0.8, zorder=1)
    heights = np.arange(len(rows)) - np.where(rows["n"] > 1, 0.12, 0)  # above the dots of the seeds
    estimates(axes, heights, rows.assign(mean=rows["difference"]), [PLAIN] * len(rows), upright=False, size=5)
    for y, row in enumerate(rows.to_dict("records")):
        if row["n"] > 1:
            axes.scatter(row["values"], [y + 0.2] * row["n"], 2.8**2, QUIET, alpha=0.8, linewidths=0)
        estimate = _estimate(row["difference"], row["low"], row["high"])
        _columns(axes, y, (estimate, f"{row['n']:.0f}", _p(row["p_holm"])), va="center")
    axes.axhline(len(rows) - 0.3, color=FAINT, linewidth=0.8)
    if math.isnan(pooled.low):
        axes.plot(pooled.mean, last, "D", markerfacecolor="white", markeredgecolor=INK, markersize=5)
    else:
        corners = [(pooled.low, last), (pooled.mean, last - 0.25), (pooled.high, last), (pooled.mean, last + 0.25)]
        axes.add_patch(Polygon(corners, closed=True, facecolor=INK, edgecolor=INK, linewidth=0.6))
    _columns(axes, last, (_estimate(pooled.mean, pooled.low, pooled.high), "", _p(pooled.p_wilcoxon)), va="center")
    head = "adjusted p" if rows["p_holm"].notna().any() else "p"  # with one run a pair, only the last row has a p
    _columns(axes, -0.7, (f"mean [{100 * LEVEL:g} % interval]", "n", head), va="bottom", color=QUIET)
    for x, text, side in ((0.0, f"← {titles[second]} better", "left"), (1.0, f"{titles[first]} better →", "right")):
        axes.text(
            x, -0.7, text, transform=axes.get_yaxis_transform(), fontsize=SMALL, color=QUIET, va="bottom", ha=side
        )
    axes.set_yticks([*range(len(rows)), last], [*map(arrow, rows["pair"]), _all(pooled.pairs)])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(f"{titles[first]} − {titles[second]}, points of {quantity}")
    return freeze(figure)


def _columns(axes: Axes, y: float, texts: Sequence[str], **how: Any) -> None:
    """Write mean with interval, n and p at the right of a row."""
    for offset, text in zip((8, 104, 120), texts):
        axes.annotate(
            text, (1, y), (offset, 0), axes.get_yaxis_transform(), textcoords="offset points", fontsize=SMALL, **how
        )


def _estimate(mean: float, low: float, high: float) -> str:
    return signed(mean) + ("" if math.isnan(low) else f" [{signed(low)}, {signed(high)}]")


def _p(p: float) -> str:
    return "" if math.isnan(p) else probability(p).removeprefix("p ").removeprefix("= ")


def _all(pairs: int) -> str:
    return "the one pair" if pairs == 1 else f"all {pairs} pairs"


def _note(pooled: Pooled) -> str:
    counts = f"{pooled.wins} won, {pooled.ties} tied, {pooled.losses} lost"
    improvement = "" if math.isnan(pooled.improvement) else f"; probability of improvement {pooled.improvement:.2f}"
    wilcoxon = "" if math.isnan(pooled.p_wilcoxon) else "; last row's p: Wilcoxon over pairs, not adjusted"
    marks = "Small dots: single seeds; open circle: one seed alone, no interval; arrow: the interval goes on."
    return f"{marks}\nPairs: {counts}{improvement}{wilcoxon}."

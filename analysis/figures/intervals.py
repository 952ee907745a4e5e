"""Intervals, and axes on which one very wide interval does not flatten all else."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from matplotlib.axes import Axes


def limits(points: Iterable[float], lows: Iterable[float], highs: Iterable[float]) -> tuple[float, float]:
    """The range of an axis that shows all `points`, and their intervals unless these are much wider than the others.

    The interval of two seeds is seven times as wide as that of five; shown in full, it flattens all else.
    """
    p, low, high = (np.asarray(list(values), dtype=np.float64) for values in (points, lows, highs))
    p = p[~np.isnan(p)]
    half = (high - low)[~np.isnan(high - low)] / 2
    reach = max(0.5 * float(np.ptp(p)), 2 * float(np.median(half)) if half.size else 0.0, 0.05)
    ends = [*low[~np.isnan(low)], *high[~np.isnan(high)], *p]
    bottom, top = max(min(ends), float(p.min()) - reach), min(max(ends), float(p.max()) + reach)
    pad = 0.07 * (top - bottom) or 0.5
    return bottom - pad, top + pad


def interval(axes: Axes, at: float, low: float, high: float, colour: str, *, upright: bool, width: float = 1.2) -> None:
    """A line from `low` to `high`; where it leaves the axis, an arrow at the edge says so. The limits must be set."""
    bottom, top = axes.get_ylim() if upright else axes.get_xlim()
    ends = [max(low, bottom), min(high, top)]
    across = [at, at]
    axes.plot(
        *((across, ends) if upright else (ends, across)),
        color=colour,
        linewidth=width,
        solid_capstyle="butt",
        zorder=1.5,
    )
    for leaves, edge, marker in (
        (low < bottom, bottom, "v" if upright else "<"),
        (high > top, top, "^" if upright else ">"),
    ):
        if leaves:
            x, y = (at, edge) if upright else (edge, at)
            axes.plot(x, y, marker, color=colour, markersize=3, clip_on=False, markeredgewidth=0)

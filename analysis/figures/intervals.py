"""Means with intervals, and axes on which one very wide interval does not flatten all else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import ArrayLike


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


def estimates(
    axes: Axes,
    at: ArrayLike,
    rows: pd.DataFrame,
    colours: Sequence[str],
    markers: Sequence[str] | str = "o",
    *,
    upright: bool,
    size: float = 4,
    width: float = 1.2,
) -> None:
    """Draw each row's `mean` as a mark at position `at`, open where `n` is 1, on a line from `low` to `high`.

    Where a line leaves the axis, an arrow at the edge says so. The axis' limits must be set.
    """
    at, colour = np.asarray(at, dtype=np.float64), np.asarray(colours)
    mean, low, high = (rows[name].to_numpy(np.float64) for name in ("mean", "low", "high"))
    bottom, top = axes.get_ylim() if upright else axes.get_xlim()
    lines = axes.vlines if upright else axes.hlines
    there = ~np.isnan(low)
    ends = np.maximum(low, bottom)[there], np.minimum(high, top)[there]
    lines(at[there], *ends, colour[there], linewidth=width, zorder=1.5)
    for leaves, edge, marker in (
        (low < bottom, bottom, "v" if upright else "<"),
        (high > top, top, "^" if upright else ">"),
    ):
        if leaves.any():
            where = (at[leaves], np.full(leaves.sum(), edge))
            x, y = where if upright else where[::-1]
            axes.scatter(x, y, 3**2, colour[leaves], marker=marker, clip_on=False, linewidths=0)
    marker_of = np.broadcast_to(markers, at.shape)
    fill = np.where(rows["n"] > 1, colour, "white")
    for marker in dict.fromkeys(marker_of.tolist()):
        same = marker_of == marker
        x, y = (at[same], mean[same]) if upright else (mean[same], at[same])
        axes.scatter(x, y, size**2, fill[same], marker=marker, linewidths=1, edgecolors=colour[same], zorder=2)

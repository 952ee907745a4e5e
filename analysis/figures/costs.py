"""Accuracy against its cost: hours or memory of a run."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.figures.intervals import estimates, limits
from analysis.figures.labels import beside
from analysis.figures.style import (
    DIRECT,
    GREY_NOTE,
    STEPS,
    arrow,
    chosen,
    coloured,
    freeze,
    looks,
    marks,
    panels,
    present,
    styled,
)

_LABELS = {"hours": "hours a run", "memory": "peak memory, 10⁶ bytes"}

_READING = "Lines: intervals; arrow: the interval goes on; open mark: one run alone."


@styled()
def costs(
    spent: pd.DataFrame,
    *,
    against: Literal["hours", "memory"],
    titles: Mapping[str, str],
    quantity: str,
    title: str,
    highlight: Collection[str] | None = None,
    ours: str | None = None,
) -> Figure:
    """Draw accuracy (percent) against hours, or against peak memory (10⁶ bytes), one panel a pair.

    `spent` has one row a pair and method: pair, method, n, mean, low, high (accuracy, as `statistics.cells` gives it),
    hours (mean of the runs' wall time) and memory. Only the column drawn `against` is needed; a missing value leaves
    its dot out. Lines are intervals; one run alone is an open mark. Only hours of one machine may be compared; `title`
    should say which. `quantity` labels the vertical axis, e.g. "test top-1 at the last epoch". `highlight`
    names the methods that have a colour (None: all), the others are grey; `ours` is the one whose colour stands out.
    Hours are in minutes if all are below 1.
    """
    rows = chosen(spent, titles, ["mean", against], f"accuracy with {against} recorded")
    label = _LABELS[against]
    if against == "hours" and rows["hours"].max() < 1:
        rows, label = rows.assign(hours=rows["hours"] * 60), "minutes a run"
    methods, pairs, look = present(rows, titles), list(rows["pair"].unique()), looks(titles, highlight, ours)
    shown = coloured(methods, highlight)
    if len(shown) < len(methods):  # the grey ones first, under the others
        rows = rows.sort_values("method", key=lambda names: names.isin(shown), kind="stable")
    direct = len(methods) <= DIRECT
    note = _READING + (GREY_NOTE if len(shown) < len(methods) else "")
    handles = () if direct else marks(shown, titles, ours)
    figure, grid = panels(len(pairs), 4, 1.75, title, below=label, note=note, handles=handles)
    for pair, axes in zip(pairs, grid):
        part = rows[rows["pair"] == pair]
        axes.set_ylim(limits(part["mean"], part["low"], part["high"]))
        colours, markers = [look[m].colour for m in part["method"]], [look[m].marker for m in part["method"]]
        estimates(axes, part[against], part, colours, markers, upright=True)
        axes.set_title(arrow(pair, "\n→ "), loc="left")
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=STEPS))
        axes.margins(x=0.2 if direct else 0.1)
        axes.grid()
    figure.supylabel(f"{quantity}, %", fontsize=8)
    freeze(figure)
    if not direct:
        return figure
    for pair, axes in zip(pairs, grid):
        part = rows[rows["pair"] == pair]
        names, colours = [titles[m] for m in part["method"]], [look[m].colour for m in part["method"]]
        points = list(zip(part[against], part["mean"]))
        lines = [
            (x, float(y)) for x, a, b in zip(part[against], part["low"], part["high"]) for y in np.linspace(a, b, 15)
        ]
        beside(axes, points + [point for point in lines if not np.isnan(point[1])], names, colours)
    return figure

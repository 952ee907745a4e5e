"""The accuracy of students against their agreement with the teacher, their KL to it and their calibration."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.figures.labels import beside
from analysis.figures.style import (
    DIRECT,
    FAINT,
    GREY_NOTE,
    STEPS,
    chosen,
    coloured,
    freeze,
    looks,
    marks,
    panels,
    present,
    styled,
)

_AXES = {
    "agreement": "agreement with the teacher, %",
    "kl_teacher": "KL(teacher ‖ student), nats",
    "ece": "expected calibration error, %",
}


@styled()
def teacher_agreement(
    measured: pd.DataFrame,
    *,
    titles: Mapping[str, str],
    quantity: str,
    title: str,
    highlight: Collection[str] | None = None,
    ours: str | None = None,
) -> Figure:
    """Draw accuracy against agreement (percent), KL to the teacher (nats) and calibration error (percent).

    `measured` has one row a dot: pair, method, top1 (percent), agreement, kl_teacher, ece; a missing value leaves a dot
    out of its panel. A row may be a run or a mean over seeds. `quantity` says which and labels the vertical axis,
    e.g. "test top-1 at the last epoch, mean of the seeds". Marks differ by method;
    `highlight` names the methods that have a colour (None: all), the others are grey. The colour of
    `ours` stands out.
    """
    rows = chosen(measured, titles, ["top1"], "accuracy").dropna(subset=list(_AXES), how="all")
    rows = chosen(rows, titles, ["top1"], "agreement, KL to the teacher or calibration error")
    methods, look = present(rows, titles), looks(titles, highlight, ours)
    shown = coloured(methods, highlight)
    direct = len(rows) <= DIRECT
    note = "Grey lines join the dots of a pair." + (GREY_NOTE if len(shown) < len(methods) else "")
    figure, grid = panels(len(_AXES), 3, 2.6, title, note=note, handles=() if direct else marks(shown, titles, ours))
    for axes, (column, label) in zip(grid, _AXES.items()):
        for _, part in rows.dropna(subset=[column]).groupby("pair", sort=False):
            part = part.sort_values(column)
            axes.plot(part[column], part["top1"], color=FAINT, linewidth=0.8, zorder=0.5)
        for method in sorted(methods, key=lambda method: method in shown):
            part = rows[rows["method"] == method]
            axes.plot(
                part[column],
                part["top1"],
                look[method].marker,
                color=look[method].colour,
                markersize=4,
                alpha=0.8,
                markeredgewidth=0,
            )
        axes.set_xlabel(label)
        axes.sharey(grid[0]) if axes is not grid[0] else axes.set_ylabel(f"{quantity}, %")
        axes.tick_params(labelleft=axes is grid[0])
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=STEPS))
        axes.margins(0.15 if direct else 0.06)
        axes.grid()
    freeze(figure)
    if not direct:
        return figure
    for axes, column in zip(grid, _AXES):
        there = rows.dropna(subset=[column])
        names, colours = [titles[m] for m in there["method"]], [look[m].colour for m in there["method"]]
        beside(axes, list(zip(there[column], there["top1"])), names, colours)
    return figure

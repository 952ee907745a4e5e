"""Training curves: test top-1 against the epoch."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis.figures.labels import apart
from analysis.figures.style import (
    DIRECT,
    GREY_NOTE,
    QUIET,
    SMALL,
    STEPS,
    Look,
    arrow,
    chosen,
    coloured,
    freeze,
    looks,
    panels,
    present,
    styled,
)


@styled()
def training_curves(
    curves: pd.DataFrame,
    *,
    titles: Mapping[str, str],
    title: str,
    highlight: Collection[str] | None = None,
    ours: str | None = None,
    from_epoch: int = 0,
) -> Figure:
    """Draw test top-1 (percent) against the epoch, one panel a pair.

    `curves` has one row a run and epoch (pair, method, seed, epoch, top1). A method's line is the mean of its seeds at
    each epoch, and its band reaches from the lowest seed to the highest. One seed alone and grey methods have no band;
    nor has any method if more than seven are coloured. Epochs before `from_epoch` are left out: final differences are
    small beside the rise before them, so the epoch of the first drop of the learning rate is a good choice.
    `highlight` names the methods that have a colour (None: all); the others are grey. The colour of
    `ours` stands out.
    """
    rows = chosen(curves[curves["epoch"] >= from_epoch], titles, ["top1"], f"test top-1 from epoch {from_epoch} on")
    methods, pairs = present(rows, titles), list(rows["pair"].unique())
    shown = coloured(methods, highlight)
    direct = len(shown) <= DIRECT
    look = looks(titles, highlight, ours)
    handles = [Line2D([], [], color=look[m].colour, linestyle=look[m].dashes, label=titles[m]) for m in shown]
    note = (
        "Line: mean of the seeds; band: from the lowest seed to the highest." if direct else "Line: mean of the seeds."
    )
    note += GREY_NOTE if len(shown) < len(methods) else ""
    figure, grid = panels(len(pairs), 3, 1.7, title, below="epoch", note=note, handles=() if direct else handles)
    seeds = rows.groupby(["pair", "method", "epoch"])["top1"].agg(["mean", "min", "max"])
    several = rows.groupby(["pair", "method"])["seed"].nunique() > 1
    behind_first = sorted(methods, key=lambda m: m in shown)
    ends: list[dict[str, float]] = []
    for pair, axes in zip(pairs, grid):
        lines = {m: line.droplevel("method") for m, line in seeds.loc[pair].groupby(level="method")}
        there = [m for m in behind_first if m in lines]
        banded = {m for m in there if direct and m in shown and several[pair, m]}
        ends.append({m: _curve(axes, lines[m], look[m], banded=m in banded) for m in there})
        axes.set_title(arrow(pair), loc="left")
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=STEPS))
        axes.grid(axis="y")
    figure.supylabel("test top-1, %", fontsize=8)
    freeze(figure)
    if direct:
        for axes, last in zip(grid, ends):
            _name(axes, {m: y for m, y in last.items() if m in shown}, look, titles)
    return figure


def _curve(axes: Axes, seeds: pd.DataFrame, look: Look, *, banded: bool) -> float:
    """Draw a method's line and band, of mean, min and max by epoch; returns the line's last value."""
    if banded:
        axes.fill_between(seeds.index, seeds["min"], seeds["max"], color=look.colour, alpha=0.2, linewidth=0)
    alone = "o" if len(seeds) == 1 else ""
    axes.plot(
        seeds.index, seeds["mean"], color=look.colour, linestyle=look.dashes, linewidth=1, marker=alone, markersize=3
    )
    return float(seeds["mean"].iloc[-1])


def _name(axes: Axes, ends: Mapping[str, float], look: Mapping[str, Look], titles: Mapping[str, str]) -> None:
    """Write the methods' titles at the right, each as near to the end of its line as the others allow."""
    left, right = axes.get_xlim()
    extent, dpi = axes.get_window_extent(), axes.figure.dpi
    width, height = extent.width / dpi, extent.height / dpi  # inches
    room = 0.062 * max([len(titles[method]) for method in ends], default=0) + 0.15  # for names of this size
    axes.set_xticks([tick for tick in axes.get_xticks() if left <= tick <= right])
    axes.set_xlim(left, left + (right - left) / (1 - room / width))
    low, high = axes.get_ylim()
    step = 1.25 * SMALL / 72 / height * (high - low)
    names_at = right + 0.12 / width * (axes.get_xlim()[1] - left)
    for (method, end), y in zip(ends.items(), apart(list(ends.values()), step, low + step / 2, high)):
        axes.annotate(
            titles[method],
            (max(float(line.get_xdata()[-1]) for line in axes.lines), end),  # type: ignore[index, arg-type]
            (names_at, y),
            color=look[method].colour,
            fontsize=SMALL,
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": QUIET,
                "linewidth": 0.4,
                "shrinkA": 0,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            },
        )

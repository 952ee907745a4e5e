"""Figures with one row a method: accuracies by pair, and what the choice of the best epoch adds."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.figures.intervals import estimates, limits
from analysis.figures.style import (
    DIRECT,
    FAINT,
    INK,
    PLAIN,
    QUIET,
    SMALL,
    STANDOUT,
    STEPS,
    arrow,
    chosen,
    freeze,
    panels,
    present,
    signed,
    styled,
)
from analysis.statistics import LEVEL

_READING = (
    "Dot and line: mean and {:g} % interval; arrow: the interval goes on; open circle: one run alone, no interval."
)


@styled()
def accuracies(
    cells: pd.DataFrame,
    *,
    protocol: str,
    titles: Mapping[str, str],
    quantity: str,
    title: str,
    highlight: Collection[str] = (),
    beside: Collection[str] = (),
    subject: str = "",
) -> Figure:
    """Draw the accuracy (percent) of every method, one panel a pair, one row a method, each panel on its own scale.

    `cells` is the frame of `statistics.cells` (pair, method, protocol, n, mean, low, high); only its rows of
    `protocol` are drawn. A dot is a mean, its line the interval; one run alone is an open circle; a method
    without runs on a pair has an empty row. `highlight` names the methods that are drawn in another colour. `beside`
    names rows that are no methods, such as the teacher, drawn in grey. Up to seven rows have means above the dots.
    `quantity` labels the axis, e.g. "test top-1 at the last epoch", and `subject` is the note's first line.
    """
    rows = chosen(cells[cells["protocol"] == protocol], titles, ["mean"], f"accuracy under the protocol {protocol!r}")
    methods, pairs = present(rows, titles), list(rows["pair"].unique())
    columns, direct = 5 if len(pairs) > 12 else 4, len(methods) <= DIRECT
    numbers = rows.loc[~rows["method"].isin(beside), "n"]
    same = numbers.nunique() == 1
    figure, grid = panels(
        len(pairs),
        columns,
        0.65 + (0.22 if direct else 0.15) * len(methods),
        title,
        below=f"{quantity}, %",
        note=f"{subject}{f'; n = {numbers.iloc[0]}' if same else ''}\n{_READING.format(100 * LEVEL)}",
    )
    for number, (pair, axes) in enumerate(zip(pairs, grid)):
        part = rows[rows["pair"] == pair]
        left, right = limits(part["mean"], part["low"], part["high"])
        room = 0.08 * (right - left) * direct  # for the numbers of the outermost dots
        axes.set_xlim(left - room, right + room)
        colours = [STANDOUT if m in highlight else QUIET if m in beside else PLAIN for m in part["method"]]
        heights = part["method"].map(methods.index)
        estimates(axes, heights, part, colours, upright=False)
        for mean, n, height, colour in zip(part["mean"], part["n"], heights, colours) if direct else ():
            axes.annotate(
                f"{mean:.2f}" if same else f"{mean:.2f} (n={n})",
                (mean, height),
                (0, 3.5),
                textcoords="offset points",
                fontsize=SMALL,
                color=colour,
                ha="center",
            )
        axes.set_title(arrow(pair, "\n→ "), loc="left")
        axes.xaxis.set_major_locator(MaxNLocator(3, steps=STEPS))
        _method_rows(axes, [titles[m] for m in methods], named=number % columns == 0)
    return freeze(figure)


@styled()
def best_last_gaps(
    tidy: pd.DataFrame, *, titles: Mapping[str, str], title: str, highlight: Collection[str] = ()
) -> Figure:
    """Draw how much the best test epoch exceeds the last one, in points of top-1: one row a method.

    `tidy` has one row a run and protocol (pair, method, seed, teacher, protocol, value in percent). A dot is one run
    that has both "best" and "last"; dots of one pair lie at one height, the first pair's uppermost. A bar, and the
    number at the right, is the mean of a row's dots.
    """
    known = chosen(tidy[tidy["protocol"].isin(["best", "last"])], titles, ["value"], 'run with "best" and "last"')
    both = known.pivot_table(
        index=["pair", "method", "seed", "teacher"], columns="protocol", values="value", sort=False
    )
    both = both.reindex(columns=["best", "last"]).reset_index()
    rows = chosen(both, titles, ["best", "last"], 'run with "best" and "last"')
    rows = rows.assign(gap=rows["best"] - rows["last"])
    methods, pairs = present(rows, titles), list(rows["pair"].unique())
    figure, (axes,) = panels(1, 1, 0.65 + 0.2 * len(methods), title, note="One dot a run; bar: mean of the row's dots.")
    heights = dict(zip(pairs, np.linspace(-0.3, 0.3, len(pairs)) if len(pairs) > 1 else [0.0]))
    place = rows["method"].map(methods.index)
    colours = [STANDOUT if method in highlight else PLAIN for method in rows["method"]]
    axes.scatter(rows["gap"], place + rows["pair"].map(heights), 2.8**2, colours, alpha=0.7, linewidths=0)
    means = rows["gap"].groupby(place).mean()
    axes.vlines(means, means.index - 0.38, means.index + 0.38, INK, linewidth=1.4, zorder=1.5)
    for y, mean in enumerate(means):
        axes.text(1.02, y, signed(mean), transform=axes.get_yaxis_transform(), fontsize=SMALL, va="center")
    axes.text(1.02, -0.75, "mean", transform=axes.get_yaxis_transform(), fontsize=SMALL, color=QUIET, va="bottom")
    axes.set_xlim(left=min(0.0, float(rows["gap"].min())) - 0.02)
    axes.set_xlabel("best − last epoch, points of test top-1")
    _method_rows(axes, [titles[m] for m in methods], named=True)
    return freeze(figure)


def _method_rows(axes: Axes, names: list[str], *, named: bool) -> None:
    axes.set_yticks(range(len(names)) if named else [], names if named else [])
    axes.set_ylim(len(names) - 0.3, -0.7)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.hlines(range(len(names)), 0, 1, transform=axes.get_yaxis_transform(), color=FAINT, linewidth=0.5, zorder=0)

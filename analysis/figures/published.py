"""Our numbers against the published ones."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.figures.intervals import estimates, limits
from analysis.figures.labels import apart
from analysis.figures.style import COLOURS, QUIET, SMALL, arrow, chosen, freeze, panels, styled

_NAMED = 6  # points that have a name, those with the largest differences
_MARKS = {"last": ("o", COLOURS[0]), "best": ("s", COLOURS[1]), "unknown": ("^", COLOURS[2])}
_WORDS = {
    "last": "last epoch",
    "best": "best test epoch",
    "unknown": "protocol unknown, beside our last epoch",
}

_READING = (
    "Lines: intervals of ours; arrow: the interval goes on; open mark: one run of ours alone. "
    "Names: the largest differences. Published: by the method's authors where they print a number."
)


@styled()
def against_published(beside_ours: pd.DataFrame, *, titles: Mapping[str, str], title: str) -> Figure:
    """Draw our accuracies against published ones: left both (percent), right ours − published (points).

    `beside_ours` has one row a published number that may stand beside ours: pair, method, published (percent), protocol
    ("last", "best" or "unknown", as published; our numbers are by the same protocol, or of the last epoch if it is
    unknown), n, mean, low, high (ours, as `statistics.cells` gives them; one run has no interval and an
    open mark). Marks differ by protocol; the six points with the largest differences have names. A number of an unknown
    epoch is no measure of a difference, and stands at the left alone.
    """
    rows = chosen(beside_ours, titles, ["published", "mean"], "published accuracy beside one of ours")
    rows = rows.assign(gap=rows["mean"] - rows["published"])
    handles = [
        Line2D([], [], linestyle="none", marker=marker, color=colour, markersize=4.5, label=_WORDS[protocol])
        for protocol, (marker, colour) in _MARKS.items()
        if protocol in set(rows["protocol"])
    ]
    figure, (both, gaps) = panels(2, 2, 3.0, title, note=_READING, handles=handles)
    ends = limits([*rows["published"], *rows["mean"]], rows["low"], rows["high"])
    both.plot(ends, ends, color=QUIET, linewidth=0.8, zorder=1, label="identity")
    both.set(xlim=ends, ylim=ends, aspect="equal", xlabel="published test top-1, %", ylabel="ours, %")
    gaps.axhline(0, color=QUIET, linewidth=0.8, zorder=1)
    compared = rows[rows["protocol"] != "unknown"]
    low, high = compared["low"] - compared["published"], compared["high"] - compared["published"]
    gaps.set_ylim(limits([*compared["gap"], 0.0], low, high))
    gaps.set(xlim=ends, xlabel="published test top-1, %", ylabel="ours − published, points")
    for axes, shown in ((both, rows), (gaps, compared.assign(mean=compared["gap"], low=low, high=high))):
        colours, markers = ([_MARKS[protocol][i] for protocol in shown["protocol"]] for i in (1, 0))
        estimates(axes, shown["published"], shown, colours, markers, upright=True, width=0.6)
    largest = compared["gap"].abs().sort_values(ascending=False, kind="stable").index[:_NAMED]
    _name(gaps, compared.loc[largest], titles)
    return freeze(figure)


def _name(axes: Axes, rows: pd.DataFrame, titles: Mapping[str, str]) -> None:
    """Write the names of some points at the right, each as near to the height of its point as the others allow."""
    low, high = axes.get_ylim()
    heights = apart(rows["gap"], 0.12 * (high - low), low + 0.05 * (high - low), high)
    for row, y in zip(rows.to_dict("records"), heights):
        axes.annotate(
            f"{titles[row['method']]}\n{arrow(row['pair'])}",
            (row["published"], row["gap"]),
            (1.04, float(y)),
            textcoords=axes.get_yaxis_transform(),
            fontsize=SMALL,
            va="center",
            arrowprops={
                "arrowstyle": "-",
                "color": QUIET,
                "linewidth": 0.4,
                "shrinkA": 0,
                "shrinkB": 2,
                "relpos": (0, 0.5),
            },
        )

"""Quantities that a method records by class: over the epochs, and class by class after the last one."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from analysis.figures.style import STEPS, WIDTH, arrow, freeze, looks, page, styled

LOW, HIGH = 10, 90  # percentiles of the classes
BANDED = 3  # more pairs than this have no bands, which would cover each other

Values = Mapping[str, Mapping[str, NDArray[np.float64]]]


@styled()
def by_class(values: Values, *, names: Mapping[str, str], title: str) -> Figure:
    """Draw quantities that were averaged over the images of each class: one row of two panels for each quantity.

    `values[quantity][pair]` is [epochs, classes], from epoch 1 on; `names` are the quantities' titles, in order. The
    left panel has the mean of the classes against the epoch and, for up to three pairs, a band from the 10th to the
    90th percentile of the classes. The right panel has the last epoch's values in ascending order.
    """
    quantities = [quantity for quantity in names if values.get(quantity)]
    if not quantities:
        raise ValueError(f"nothing to draw: no {' or '.join(names.values())} by class was recorded")
    pairs = list(dict.fromkeys(pair for quantity in quantities for pair in values[quantity]))
    look = looks({pair: pair for pair in pairs})
    handles = [Line2D([], [], color=look[p].colour, linestyle=look[p].dashes, label=arrow(p)) for p in pairs]
    note = "Left: mean of the classes"
    note += f"; band: from their {LOW}th to their {HIGH}th percentile" if len(pairs) <= BANDED else ""
    note += ". Right: each line has the classes in its own order."
    figure = page(WIDTH, 1.9 * len(quantities), title, note=note, handles=handles, entry=2.3)
    for (left, right), quantity in zip(figure.subplots(len(quantities), 2, squeeze=False, sharey="row"), quantities):
        for pair, table in values[quantity].items():
            drawn = {"color": look[pair].colour, "linestyle": look[pair].dashes}
            epochs = np.arange(1, len(table) + 1)
            if len(pairs) <= BANDED:
                low, high = np.nanpercentile(table, (LOW, HIGH), axis=1)
                left.fill_between(epochs, low, high, color=look[pair].colour, alpha=0.15, linewidth=0)
            left.plot(epochs, np.nanmean(table, axis=1), marker="o" if len(table) == 1 else "", markersize=3, **drawn)
            ordered = np.sort(table[-1])
            right.plot(np.arange(1, len(ordered) + 1), ordered, marker="o", markersize=1.8, linewidth=0.7, **drawn)
        left.set_title(f"{names[quantity]}, by epoch", loc="left")
        right.set_title(f"{names[quantity]}, by class after the last epoch", loc="left")
        for axes in (left, right):
            axes.grid(axis="y")
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=STEPS))
    left.set_xlabel("epoch")
    right.set_xlabel("classes, in order of size")
    return freeze(figure)

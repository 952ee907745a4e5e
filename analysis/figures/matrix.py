"""The heat map of every method against every other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from analysis.figures.style import INK, freeze, page, probability, signed, styled

_READING = "In a cell: mean difference; pairs won/tied/lost by the row; adjusted p."


@styled()
def matrix(pooled: pd.DataFrame, *, titles: Mapping[str, str], quantity: str, title: str) -> Figure:
    """Draw the mean difference over pairs of each method (row) to each other one (column), in points.

    `pooled` has one row for two methods: first, second, mean (of first − second), wins, ties, losses (of first over
    second, counted over pairs) and p_holm (adjusted over all of these rows). The cell of second against first mirrors
    it, so one row for the two is enough. A cell shows mean, wins/ties/losses and adjusted p, and is blue where the
    row's method is better; cells that are missing are empty. `quantity` is, e.g., "test top-1 at the
    last epoch".
    """
    cells = {}
    for first, second, cell in _both_ways(pooled):
        if first in titles and second in titles:
            cells[first, second] = cell
    if not cells:
        raise ValueError(f"nothing to draw: no two of {', '.join(titles) or 'no method'} are compared")
    methods = [m for m in titles if any(m in key for key in cells)]
    size = len(methods)
    limit = 1.25 * max(abs(cell["mean"]) for cell in cells.values()) or 1.0  # the darkest colours would hide the text
    colours, norm = colormaps["RdBu"], Normalize(-limit, limit)
    side = 0.39 if size > 8 else 0.62  # inches of a cell
    figure = page(max(side * size + 1.7, 4.4), side * size + 0.6, title, note=_READING)
    axes = figure.subplots()
    values = np.array([[cells[a, b]["mean"] if (a, b) in cells else np.nan for b in methods] for a in methods])
    image = axes.imshow(values, cmap=colours, norm=norm, aspect="equal")
    names = [titles[m] for m in methods]
    axes.set_xticks(range(size), names, rotation=45, ha="left", rotation_mode="anchor")
    axes.set_yticks(range(size), names)
    axes.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
    axes.set_xticks(np.arange(size + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(size + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.2)
    axes.tick_params(which="minor", length=0)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, shrink=0.7, aspect=25)
    bar.outline.set_visible(False)
    bar.set_label(f"row − column, points of\n{quantity}")
    freeze(figure)  # before the texts, which need no room
    for y, a in enumerate(methods):
        for x, b in enumerate(methods):
            if (a, b) in cells:
                cell = cells[a, b]
                red, green, blue, _ = colours(norm(cell["mean"]))
                dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.53
                text = (
                    f"{signed(cell['mean'])}\n{cell['wins']}/{cell['ties']}/{cell['losses']}\n{_short(cell['p_holm'])}"
                )
                axes.text(
                    x,
                    y,
                    text,
                    ha="center",
                    va="center",
                    fontsize=7 if size <= 8 else 5,
                    color="white" if dark else INK,
                )
    return figure


def _both_ways(pooled: pd.DataFrame) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for row in pooled.dropna(subset=["mean"]).to_dict("records"):
        yield row["first"], row["second"], {str(k): v for k, v in row.items()}
        mirrored = {"mean": -row["mean"], "wins": row["losses"], "ties": row["ties"], "losses": row["wins"]}
        yield row["second"], row["first"], {**mirrored, "p_holm": row["p_holm"]}


def _short(p: float) -> str:
    return probability(p).replace(" = ", " ").replace("p < 0.001", "p<.001").replace("p 0.", "p .")

"""Places for names beside what they name, without two names on one spot."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.transforms import Bbox
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import isotonic_regression

from analysis.figures.style import SMALL

# Places of a text's centre around its mark: beside it, above and below, at its corners, and then farther away. `gap`
# and `rise` are the horizontal and the vertical gap between the text's box and the mark, in points.
_PLACES = [
    (dx, dy, gap, rise)
    for gap, rise in ((5, 4), (10, 8), (16, 13))
    for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))
]


def apart(values: ArrayLike, gap: float, low: float, high: float) -> NDArray[np.float64]:
    """Positions in [low, high] that are nearest to `values` [n] (least squares), at least `gap` from each other.

    With `gap · i` subtracted from the i-th smallest value, this is isotonic regression.
    If n positions do not fit between `low` and `high`, the uppermost lie above `high`.
    """
    x = np.asarray(values, dtype=np.float64)
    order = np.argsort(x, kind="stable")
    fitted = isotonic_regression(x[order] - gap * np.arange(x.size)).x
    fitted = np.maximum(np.minimum(fitted, high - gap * (x.size - 1)), low) + gap * np.arange(x.size)
    placed = np.empty_like(x)
    placed[order] = fitted
    return placed


def beside(axes: Axes, points: Sequence[tuple[float, float]], texts: Sequence[str], colours: Sequence[str]) -> None:
    """Write a text beside each of the first points, where it covers least of the others and of all `points`.

    `points` are in data coordinates; those without a text are only kept free. The figure's layout must be frozen.
    """
    renderer = FigureCanvasAgg(axes.figure.figure).get_renderer()
    scale = renderer.points_to_pixels(1.0)
    places = axes.transData.transform(list(points))
    taken = [Bbox.from_extents(x - 3, y - 3, x + 3, y + 3) for x, y in places]
    inside = axes.get_window_extent(renderer)
    for point, (x, y), text, colour in zip(points, places, texts, colours):
        label = axes.annotate(
            text, point, (0, 0), textcoords="offset points", color=colour, fontsize=SMALL, ha="center", va="center"
        )
        label.set_annotation_clip(False)
        size = label.get_window_extent(renderer)
        best, least = (0.0, 0.0), math.inf
        for dx, dy, gap, rise in _PLACES:
            offset = dx * (gap * scale + size.width / 2), dy * (rise * scale + size.height / 2)
            box = Bbox.from_bounds(
                x + offset[0] - size.width / 2, y + offset[1] - size.height / 2, size.width, size.height
            )
            outside = size.width * size.height - _shared(box, inside)
            cost = sum(_shared(box, other) for other in taken) + 2 * outside + gap
            if cost < least:
                best, least, chosen = offset, cost, box
        label.set_position((best[0] / scale, best[1] / scale))
        taken.append(chosen)


def _shared(one: Bbox, other: Bbox) -> float:
    """The area that two boxes share, in square pixels."""
    both = Bbox.intersection(one, other)
    return 0.0 if both is None else float(both.width * both.height)

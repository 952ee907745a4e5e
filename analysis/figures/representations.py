"""A student beside its teacher: their features in two dimensions, and the correlations of their logits."""

from __future__ import annotations

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analysis.figures.style import COLOURS, FAINT, MARKERS, SMALL, freeze, page, panels, styled

FEW, SHOWN = 10, 7  # up to FEW classes are all coloured; of more classes, only SHOWN are

Array = NDArray[np.float64]


@styled()
def embedding(
    student: Array, teacher: Array, target: NDArray[np.int64], *, names: tuple[str, str], title: str
) -> Figure:
    """Draw the test images by their features in two dimensions, the student's and the teacher's, a panel each.

    `student` and `teacher` are [images, 2], `target` [images] the classes; `names` head the panels. Up to ten classes
    have a colour and a mark each; of more classes, seven evenly spaced ones have, and the others are grey.
    """
    classes = np.unique(target)
    shown = classes if len(classes) <= FEW else classes[np.linspace(0, len(classes) - 1, SHOWN).round().astype(int)]
    note = "A mark: a test image by its features before the classifier; a number: its class."
    note += " Grey: the other classes." if len(classes) > FEW else ""
    note += " How near two images are means something, how far apart two groups are does not."
    figure, grid = panels(2, 2, 3.3, title, note=note)
    for axes, points, name in zip(grid, (student, teacher), names):
        _scatter(axes, points, target, shown)
        axes.set_title(name, loc="left")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
    return freeze(figure)


def _scatter(axes: Axes, points: Array, target: NDArray[np.int64], shown: NDArray[np.int64]) -> None:
    others = points[~np.isin(target, shown)]
    axes.scatter(others[:, 0], others[:, 1], s=1.5, color=FAINT, linewidths=0, rasterized=True)
    for number, name in enumerate(shown):
        part = points[target == name]
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        axes.scatter(part[:, 0], part[:, 1], s=5, color=colour, marker=marker, linewidths=0, rasterized=True)
    for name in shown:  # above all marks
        x, y = np.median(points[target == name], axis=0)
        text = axes.text(x, y, str(name), fontsize=SMALL + 1.5, fontweight="bold", ha="center", va="center")
        text.set_path_effects([patheffects.withStroke(linewidth=2.2, foreground="white")])


@styled()
def correlation(student: Array, teacher: Array, *, title: str) -> Figure:
    """Draw how the correlations of a student's logits differ from its teacher's, both [classes, classes].

    White marks two classes whose logits correlate over the test images as much as the teacher's do.
    """
    difference = student - teacher
    limit = float(np.nanmax(np.abs(difference))) or 1.0
    pairs = difference[np.triu_indices_from(difference, 1)]
    note = f"Mean absolute difference of two classes: {np.nanmean(np.abs(pairs)):.3f}, largest: {limit:.2f}."
    figure = page(4.4, 3.7, title, note=note)
    axes = figure.subplots()
    image = axes.imshow(difference, cmap="RdBu", vmin=-limit, vmax=limit, interpolation="nearest")
    axes.set_xlabel("class")
    axes.set_ylabel("class")
    bar = figure.colorbar(image, ax=axes, shrink=0.85, aspect=25)
    bar.outline.set_visible(False)
    bar.set_label("correlation of logits, student − teacher")
    return freeze(figure)

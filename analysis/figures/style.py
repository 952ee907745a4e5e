"""What all figures share: type sizes, colours and marks, the grid of panels, legends, and how a figure is saved."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from edkd.rundir.files import write_bytes

WIDTH = 7.2  # inches: the text of an A4 page
SMALL = 6.5  # points: the smallest type
# Okabe and Ito, "Color Universal Design", 2008, without its yellow, which is too light for thin lines on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v")  # five marks times six colours, and that of ours, tell 31 methods apart
DASHES: tuple[Any, ...] = ("solid", (0, (5, 1.5)), (0, (1.5, 1)), (0, (5, 1, 1, 1)))
INK, QUIET, FAINT = "#222222", "#777777", "#DDDDDD"
PLAIN, STANDOUT = COLOURS[0], COLOURS[1]
GREY = "#BBBBBB"  # of methods in the background
STEPS = [1, 2, 2.5, 5, 10]  # of ticks
DIRECT = 7  # more methods than this have a legend: their names would cover the marks

_STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so text has the same size everywhere
    "font.size": 8,
    "axes.titlesize": 7.5,
    "axes.titley": 1.0,  # fixed, because the search for it takes time
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "text.color": INK,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "lines.linewidth": 1.1,
    "savefig.dpi": 200,
    "svg.fonttype": "none",  # text stays text: it can be searched, and the file is small
    "svg.hashsalt": "edkd",  # otherwise identifiers in the file are random
}


class Look(NamedTuple):
    """How a method is drawn in every figure that tells methods apart by their marks."""

    colour: str
    marker: str
    dashes: Any


@contextmanager
def styled() -> Iterator[None]:
    """The settings under which figures are made and saved, whatever the user's matplotlibrc contains."""
    with style.context(["default", _STYLE]):
        yield


def looks(
    titles: Mapping[str, str], highlight: Collection[str] | None = None, ours: str | None = None
) -> dict[str, Look]:
    """A look for each method, by its place in `titles`.

    Methods outside `highlight` are grey (None: no method). `ours` alone has the colour that stands out, as elsewhere.
    """
    colours = [colour for colour in COLOURS if ours is None or colour != STANDOUT]
    return {
        method: Look(GREY, "o", "solid")
        if highlight is not None and method not in highlight
        else Look(
            STANDOUT if method == ours else colours[i % len(colours)],
            MARKERS[i % len(MARKERS)],
            DASHES[i // len(colours) % len(DASHES)],
        )
        for i, method in enumerate(titles)
    }


def coloured(methods: Collection[str], highlight: Collection[str] | None) -> list[str]:
    """The methods that have a colour (all if `highlight` is None)."""
    return [method for method in methods if highlight is None or method in highlight]


def chosen(frame: pd.DataFrame, titles: Mapping[str, str], needed: Sequence[str], what: str) -> pd.DataFrame:
    """The rows of the methods of `titles` that have all of the `needed` values. Raises ValueError if there is none."""
    rows = frame[frame["method"].isin(list(titles))].dropna(subset=list(needed))
    if rows.empty:
        raise ValueError(f"nothing to draw: no {what} of {', '.join(titles) or 'no method'}")
    return rows


def present(rows: pd.DataFrame, titles: Mapping[str, str]) -> list[str]:
    """The methods that have rows, in the order of `titles`."""
    there = set(rows["method"])
    return [method for method in titles if method in there]


def arrow(pair: str, between: str = " → ") -> str:
    """The title of a pair: `vgg13 → vgg8`."""
    return pair.replace("-", between, 1)


def signed(value: float, digits: int = 2) -> str:
    """A difference with its sign, the minus as long as the plus; a rounded zero has no sign."""
    text = f"{value:+.{digits}f}".replace("-", "−")
    return text[1:] if float(f"{value:.{digits}f}") == 0 else text


def probability(p: float) -> str:
    """`p = 0.03`, `p < 0.001`, or `p –` where there is none."""
    if math.isnan(p):
        return "p –"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def page(
    width: float,
    body: float,
    title: str,
    *,
    below: str = "",
    note: str = "",
    handles: Sequence[Line2D] = (),
    entry: float = 1.0,
) -> Figure:
    """An empty figure with `body` inches of height for panels, a title above and three things below them.

    These are `below`, the label of all horizontal axes; `note`, how to read the marks; and a legend of `handles`, each
    `entry` inches wide. Each has its own strip, because the layout engine would put a legend and a common label in one
    place.
    """
    columns = max(1, int(width / entry))
    lines = [line for text in note.split("\n") for line in textwrap.wrap(text, int(19 * width))]
    strips = [0.2 * bool(below), 0.17 * len(lines), 0.17 * math.ceil(len(handles) / columns)]
    foot = sum(strips) + 0.06
    height = body + foot + 0.34
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(rect=(0, foot / height, 1, body / height))  # type: ignore[union-attr, call-arg]
    figure.text(0.06 / width, 1 - 0.08 / height, title, fontsize=9.5, fontweight="bold", va="top")
    top = foot / height
    if below:
        figure.text(0.5, top - 0.03 / height, below, ha="center", va="top")
    top -= strips[0] / height
    if lines:
        figure.text(
            0.06 / width, top - 0.03 / height, "\n".join(lines), fontsize=SMALL, color=QUIET, va="top", linespacing=1.4
        )
    top -= strips[1] / height
    if handles:
        figure.legend(
            handles=list(handles),
            loc="upper center",
            bbox_to_anchor=(0.5, top),
            ncols=min(columns, len(handles)),
            handlelength=2,
            columnspacing=1,
            borderpad=0.3,
            borderaxespad=0,
            labelspacing=0.35,
        )
    return figure


def panels(
    count: int,
    columns: int,
    height: float,
    title: str,
    *,
    below: str = "",
    note: str = "",
    handles: Sequence[Line2D] = (),
) -> tuple[Figure, list[Axes]]:
    """`count` panels of `height` inches in rows of up to `columns` on a `page`."""
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    figure = page(WIDTH if columns > 1 else 4.4, rows * height, title, below=below, note=note, handles=handles)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[count:]:
        axes.remove()
    return figure, list(grid[:count])


def freeze(figure: Figure) -> Figure:
    """Fix the figure's layout, so that labels can be placed by measured sizes, and return the figure.

    The solver's positions differ in their last bits from run to run, and an SVG names its clip paths by them. Rounding
    to a millionth of the figure makes them the same each time.
    """
    solver = figure.get_layout_engine()
    assert solver is not None  # every `page` has one
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        if not axis.get_label_text():
            axis.set_label_coords(0, 0)  # saves the search for a place, which takes time
    solver.execute(figure)  # draws nothing, unlike `draw_without_rendering`
    if any(axes.get_aspect() != "auto" for axes in figure.axes):
        solver.execute(figure)  # it needs a second round
    figure.set_layout_engine("none")
    for axes in figure.axes:
        axes.set_position([round(float(edge), 6) for edge in axes.get_position(original=True).bounds])  # type: ignore[arg-type]
    return figure


GREY_NOTE = " Grey: the other methods."


def marks(methods: Collection[str], titles: Mapping[str, str], ours: str | None) -> list[Line2D]:
    """The legend's entries for `methods` that are drawn as marks."""
    look = looks(titles, ours=ours)
    return [
        Line2D([], [], linestyle="none", marker=look[m].marker, color=look[m].colour, markersize=4.5, label=titles[m])
        for m in methods
    ]


def save(figure: Figure, folder: Path, name: str) -> tuple[Path, Path]:
    """Write `folder/name.png` (200 dpi) and `folder/name.svg` (text as text); returns their paths.

    The same figure gives the same bytes: the files hold no date and no random identifier. The folder is made where it
    is absent. Raises EdkdError where it cannot be written.
    """
    paths = folder / f"{name}.png", folder / f"{name}.svg"
    with styled():
        for path, metadata in zip(paths, ({}, {"Date": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=path.suffix[1:], metadata=metadata)
            write_bytes(path, buffer.getvalue())
    return paths

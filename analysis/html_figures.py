"""The figures of the HTML report, as SVG to be put into a page."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.figure import Figure
from statsmodels.stats.multitest import multipletests  # type: ignore[import-untyped]

from analysis import figures, literature
from analysis import statistics as st
from analysis.figures.by_class import Values
from analysis.figures.style import styled

QUANTITY = {
    "last": "test top-1 at the last epoch",
    "best": "test top-1 at the best test epoch",
    "selected": "test top-1 at the epoch chosen on held-out images",
}
# Of a figure's natural width. A narrower screen scrolls, for smaller text cannot be read.
_WIDEST, _NARROWEST = 1.1, 0.78


SYMBOLS = {"beta": "β"}  # of quantities by class


class Drawn(NamedTuple):
    """Figures as SVG elements, and a line for each that has nothing to show."""

    svgs: list[str]
    not_drawn: list[str]


def draw(
    tidy: pd.DataFrame,
    used: pd.DataFrame,
    curves: pd.DataFrame,
    by_class: Mapping[str, Values],
    *,
    protocol: str,
    ours: str,
    others: Sequence[str],
) -> Drawn:
    """Draw every figure that has data. `used` has a row a run that is in `tidy`, `curves` a row a run and epoch;
    `by_class` are the values that a method recorded of each class, see `figures.by_class`.

    `ours` is compared with each of `others`; these are the methods as `tidy` names them.
    """
    titles = {name: name for name in (*others, ours)}
    cells, rows = st.cells(tidy), st.comparisons(tidy, protocol, [(ours, name) for name in others])
    same: dict[str, Any] = {"titles": titles, "quantity": QUANTITY[protocol]}

    def forest(other: str, title: str) -> Figure:
        pooled = st.pooled(tidy, protocol, ours, other)
        return figures.forest(rows, tidy, pooled, protocol=protocol, first=ours, second=other, title=title, **same)

    makers: dict[str, Callable[[str], Figure]] = {
        f"Accuracies, {protocol} epoch": lambda title: figures.accuracies(
            cells, protocol=protocol, highlight=[ours], title=title, **same
        ),
        **{f"{ours} − {other}": partial(forest, other) for other in others},
        "Every method against every other": lambda title: figures.matrix(
            matrix(tidy, protocol, list(titles)), title=title, **same
        ),
        "Training curves": lambda title: figures.training_curves(
            curves, titles=titles, title=title, from_epoch=_first_drop(used)
        ),
        **{f"{name}: {_and(values)} by class": partial(_by_class, values) for name, values in by_class.items()},
        "Best epoch − last epoch": lambda title: figures.best_last_gaps(
            tidy, titles=titles, highlight=[ours], title=title
        ),
        "Ours against published": lambda title: figures.against_published(
            beside_published(used, cells), titles=titles, title=title
        ),
        "Nearness to the teacher and calibration": lambda title: figures.teacher_agreement(
            _measured(used), titles=titles, quantity="last test top-1, mean of seeds", title=title
        ),
        "Accuracy against hours": lambda title: _hours(used, cells, titles, title),
    }
    drawn = Drawn([], [])
    for number, (title, make) in enumerate(makers.items()):
        try:
            drawn.svgs.append(_svg(make(title), title, f"f{number}-"))
        except ValueError as error:
            drawn.not_drawn.append(f"{title}: {error}")
    return drawn


def _by_class(values: Values, title: str) -> Figure:
    return figures.by_class(values, names={name: SYMBOLS.get(name, name) for name in values}, title=title)


def _and(names: Iterable[str]) -> str:
    return " and ".join(SYMBOLS.get(name, name) for name in names)


def matrix(tidy: pd.DataFrame, protocol: str, methods: Sequence[str]) -> pd.DataFrame:
    """All two of `methods` over their pairs, p of the Wilcoxon test adjusted by Holm over all rows."""
    found = [(a, b, st.pooled(tidy, protocol, a, b)) for a, b in combinations(methods, 2)]
    rows = pd.DataFrame(
        [{"first": a, "second": b, **result._asdict()} for a, b, result in found if result.pairs],
        columns=["first", "second", *st.Pooled._fields],
    )
    rows["p_holm"] = float("nan")
    tested = rows["p_wilcoxon"].notna()
    if tested.any():
        rows.loc[tested, "p_holm"] = multipletests(rows["p_wilcoxon"][tested], method="holm")[1]
    return rows


def beside_published(used: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """The cells with a published number of their protocol (the last epoch's, where it is unknown); of few runs none.

    The number is the method's authors' own where there is one, else the one of the EDKD table.
    """
    keys = dict(zip(used["method"], used["distiller"]))
    rows = []
    for cell in cells.to_dict("records") if literature.comparable(used) else ():
        known = literature.number(cell["pair"], keys[cell["method"]])
        if known is None or cell["protocol"] != ("last" if known.protocol == "unknown" else known.protocol):
            continue
        value = known.table if known.authors is None else known.authors
        rows.append({**cell, "published": value, "protocol": known.protocol})
    return pd.DataFrame(rows, columns=[*cells.columns, "published"])


def _first_drop(used: pd.DataFrame) -> int:
    """The epoch of the first drop of the learning rate, 0 where runs differ in it or end before."""
    first = {params.get("schedule.milestones", "").strip("[]").split(",")[0] for params in used["params"]}
    epoch = first.pop() if len(first) == 1 else ""
    return int(epoch) if epoch.isdigit() and int(epoch) < used["last_epoch"].min() else 0


def _measured(used: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds of what a run's last record says of the student's nearness to its teacher."""
    columns = ["agreement", "kl_teacher", "ece"]
    told = pd.DataFrame(
        [[metrics.get(f"test/{name}") for name in columns] for metrics in used["metrics"]],
        columns=columns,
        index=used.index,
        dtype=float,
    )
    frame = pd.concat([used[["pair", "method"]], used["last_top1"].rename("top1"), told], axis=1)
    return frame.groupby(["pair", "method"], sort=False).mean().reset_index()


def _hours(used: pd.DataFrame, cells: pd.DataFrame, titles: Mapping[str, str], title: str) -> Figure:
    used = used[used["imported"] == ""]  # of the others neither device nor hours are known
    devices = sorted({tags.get("device", "an unknown device") for tags in used["tags"]})
    if len(devices) != 1:
        raise ValueError(f"hours of {', '.join(devices) or 'other code'} cannot be compared")
    hours = used.groupby(["pair", "method"])["hours"].mean().reset_index()
    spent = cells[cells["protocol"] == "last"].merge(hours, on=["pair", "method"])
    return figures.costs(
        spent, against="hours", titles=titles, quantity=QUANTITY["last"], title=f"{title}, {devices[0]}"
    )


def _svg(figure: Figure, title: str, prefix: str) -> str:
    """The figure as an element of a page: without a document's head, its identifiers unlike another figure's."""
    buffer = io.StringIO()
    with styled():
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r' (?:xmlns:xlink|version)="[^"]*"', "", text).replace("xlink:href", "href")
    text = re.sub(r'(\bid="|\bhref="#|url\(#)', rf"\g<1>{prefix}", text)
    width = float(figure.get_size_inches()[0]) * 96  # pixels
    size = f"width: {_WIDEST * width:.0f}px; max-width: max(100%, {_NARROWEST * width:.0f}px)"
    return re.sub(r'width="[^"]*pt" height="[^"]*pt"|height="[^"]*pt" width="[^"]*pt"', "", text, count=1).replace(
        "<svg", f'<svg role="img" aria-label="{html.escape(title)}" style="{size}"', 1
    )

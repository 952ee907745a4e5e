"""The figures of the HTML report, as SVG to be put into a page."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from analysis import figures, literature, load, numbers, tables
from analysis import statistics as st
from analysis.figures.by_class import Values
from analysis.figures.style import styled
from edkd.console import counted

QUANTITY = {
    "last": "test top-1 at the last epoch",
    "best": "test top-1 at the best test epoch",
    "selected": "test top-1 at the epoch chosen on held-out images",
}
_STUDENT, _TEACHER = tables.ALONE, "teacher alone"  # as the table names them
_FORESTS = 4  # forest plots, against the strongest other methods
# Display widths relative to the natural one. A narrower screen scrolls, because smaller text cannot be read.
_WIDEST, _NARROWEST = 1.1, 0.78


SYMBOLS = {"beta": "β"}  # of quantities by class


class Drawn(NamedTuple):
    """Figures by title, and a line for each that has nothing to show."""

    figures: dict[str, Figure]
    not_drawn: list[str]


def draw(
    tidy: pd.DataFrame,
    used: pd.DataFrame,
    curves: pd.DataFrame,
    by_class: Mapping[str, Values],
    compared: pd.DataFrame,
    over: Mapping[str, st.Pooled],
    beside: pd.DataFrame,
    *,
    protocol: str,
    ours: str,
    subject: str,
) -> Drawn:
    """Draw every figure that has data. `used` has a row for each run in `tidy`, `curves` one for each run and epoch.

    `by_class` has the values that a method recorded by class (see `figures.by_class`). `compared` are the comparisons
    of `ours` with each other method, and `over` has these over all pairs; `tidy` has the methods' names. `beside` are
    `references`, shown only beside few methods. `subject` is the first line of the accuracies' note.
    """
    others, cells = list(over), st.cells(tidy)
    titles = {name: name for name in (*others, ours)}
    compared_with = [name for name in others if over[name].pairs]
    closest = sorted(compared_with, key=lambda name: (-over[name].pairs, over[name].mean))[:_FORESTS]
    same: dict[str, Any] = {"titles": titles, "quantity": QUANTITY[protocol]}
    coloured = [*closest, ours] if len(others) > _FORESTS else None

    def forest(other: str, title: str) -> Figure:
        return figures.forest(compared, over[other], first=ours, second=other, title=title, **same)

    makers: dict[str, Callable[[str], Figure]] = {
        f"Accuracies, {protocol} epoch": lambda title: figures.accuracies(
            pd.concat([cells, beside]),
            protocol=protocol,
            titles=titles if len(others) > _FORESTS else {_STUDENT: _STUDENT, **titles, _TEACHER: _TEACHER},
            quantity=QUANTITY[protocol],
            highlight=[ours],
            beside=[_STUDENT, _TEACHER],
            subject=subject,
            title=title,
        ),
        **{f"{ours} − {other}": partial(forest, other) for other in others if other in closest},
        "Every method against every other": lambda title: figures.matrix(
            matrix(tidy, protocol, list(titles)), title=title, **same
        ),
        "Training curves": lambda title: figures.training_curves(
            curves,
            titles=titles,
            title=title,
            from_epoch=_first_drop(used),
            highlight=coloured,
            ours=ours,
        ),
        **{f"{name}: {_and(values)} by class": partial(_by_class, values) for name, values in by_class.items()},
        "Best epoch − last epoch": lambda title: figures.best_last_gaps(
            tidy, titles=titles, highlight=[ours], title=title
        ),
        "Ours against published": lambda title: figures.against_published(
            beside_published(used, cells), titles=titles, title=title
        ),
        "Nearness to the teacher and calibration": lambda title: figures.teacher_agreement(
            _measured(used),
            titles=titles,
            quantity="last test top-1, mean of seeds",
            title=title,
            highlight=coloured,
            ours=ours,
        ),
        "Accuracy against time": lambda title: _costs(
            "hours", used, cells, titles=titles, title=title, highlight=coloured, ours=ours
        ),
        "Accuracy against memory": lambda title: _costs(
            "memory", used, cells, titles=titles, title=title, highlight=coloured, ours=ours
        ),
    }
    drawn = Drawn({}, [])
    if len(compared_with) > _FORESTS:
        fewer = f"{counted(len(compared_with) - _FORESTS, 'method')} that do less well or share fewer pairs"
        drawn.not_drawn.append(f"{ours} against {fewer}: see the matrix")
    apart = [name for name in others if name not in compared_with]
    if apart:
        drawn.not_drawn.append(f"{ours} against {', '.join(apart)}: no common seed, teacher and kind of epoch")
    for title, make in makers.items():
        try:
            drawn.figures[title] = make(title)
        except ValueError as error:
            drawn.not_drawn.append(f"{title}: {error}")
    return drawn


def references(used: pd.DataFrame) -> pd.DataFrame:
    """The cells of each pair's student alone, and of its teacher as its students' runs recorded it.

    A student alone is drawn for the seeds that the pair's methods have, unlike in the table; those that have several
    configurations are left out.
    """
    distilled = used[~used["alone"]]
    alone = numbers.students_alone(used).drop(columns="pair")
    students = alone.merge(distilled[["pair", "student", "seed"]].drop_duplicates(), on=["student", "seed"])
    teachers = distilled.dropna(subset="teacher_top1").drop_duplicates(["pair", "teacher_top1"])
    teachers = teachers.assign(last_top1=teachers["teacher_top1"], best_top1=teachers["teacher_top1"])
    both = [load.tidy(students.assign(alone=False, method=_STUDENT)), load.tidy(teachers.assign(method=_TEACHER))]
    return st.cells(pd.concat(both))


def _by_class(values: Values, title: str) -> Figure:
    return figures.by_class(values, names={name: SYMBOLS.get(name, name) for name in values}, title=title)


def _and(names: Iterable[str]) -> str:
    return " and ".join(SYMBOLS.get(name, name) for name in names)


def matrix(tidy: pd.DataFrame, protocol: str, methods: Sequence[str]) -> pd.DataFrame:
    """Each two of `methods` over their pairs, with p of the Wilcoxon test adjusted by Holm over all rows."""
    names = list(combinations(methods, 2))
    found = pd.DataFrame(st.over_pairs(tidy, protocol, names), columns=st.Pooled._fields)
    found = found.assign(first=[a for a, _ in names], second=[b for _, b in names])[found["pairs"] > 0]
    return found.assign(p_holm=st.holm(found["p_wilcoxon"].to_numpy(float)))


def beside_published(used: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """The cells that have a published number of their protocol (unknown: the last epoch's), if `literature.comparable`.

    The number is the method's authors' own where there is one, else the one of the EDKD table. Cells of other values
    than the defaults have none.
    """
    usual = used[~used["alone"] & (used["changed"].map(len) == 0)]
    keys = dict(zip(zip(usual["pair"], usual["method"]), usual["distiller"]))
    rows = []
    for cell in cells.to_dict("records") if literature.comparable(used) else ():
        known = literature.number(cell["pair"], keys.get((cell["pair"], cell["method"]), ""))
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
    """Means over seeds of top-1, agreement with the teacher, KL to it and calibration error, from the last metrics."""
    columns = ["agreement", "kl_teacher", "ece"]
    nearness = pd.DataFrame(
        [[metrics.get(f"test/{name}") for name in columns] for metrics in used["metrics"]],
        columns=columns,
        index=used.index,
        dtype=float,
    )
    frame = pd.concat([used[["pair", "method"]], used["last_top1"].rename("top1"), nearness], axis=1)
    return frame.groupby(["pair", "method"], sort=False).mean().reset_index()


def _costs(
    against: Literal["hours", "memory"], used: pd.DataFrame, cells: pd.DataFrame, *, title: str, **same: Any
) -> Figure:
    used = used[used["imported"] == ""]  # an imported run's device and hours are unknown
    if any(tags.get("device", "").startswith("cpu") for tags in used["tags"]):
        on = {"hours": "depend on what else it computed", "memory": "depends on what its process did before"}[against]
        raise ValueError(f"{against} on a CPU {on}: no comparison")
    devices = sorted({tags.get("device", "an unrecorded device") for tags in used["tags"]})
    if len(devices) != 1:
        raise ValueError(f"{against} of {', '.join(devices) or 'other code'} cannot be compared")
    cost = used.groupby(["pair", "method"], sort=False)[against].mean().reset_index()
    spent = cost.merge(cells[cells["protocol"] == "last"], on=["pair", "method"])
    title = f"{title}, {devices[0]}"
    if against == "hours" and _overlap(used):
        title += "; some runs at the same time"
    return figures.costs(spent, against=against, quantity=QUANTITY["last"], title=title, **same)


def _overlap(used: pd.DataFrame) -> bool:
    """Whether two runs ran at the same time, perhaps on one device, which lengthens both."""
    spans = sorted(zip(used["started"] / 3.6e6, used["hours"]))
    ends = np.maximum.accumulate([start + hours for start, hours in spans])
    return any(start < end for (start, _), end in zip(spans[1:], ends))


def svg(figure: Figure, title: str, prefix: str) -> str:
    """The figure as an SVG element for a page: without a document's head, and with `prefix` before each identifier."""
    buffer = io.StringIO()
    with styled():
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})  # `savefig` draws everything twice
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

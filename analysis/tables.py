"""The benchmark table as data: pairs are columns, methods are rows, `last` and `best` are two grids, never one."""

import re
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import pandas as pd

from analysis import literature
from analysis.load import VANILLA
from analysis.numbers import KINDS, Kind
from analysis.statistics import comparisons
from edkd.console import number
from edkd.rundir.settings import Setting

OURS = "edkd"  # the last row
ALONE = "student alone"
EARLIER = {"kd": ("KD", "2015"), "dkd": ("DKD", "2022"), "edkd": ("EDKD", "")}  # runs without the tags title and year
_ONE = " (n=1)"


class Pair(NamedTuple):
    """A column of the table."""

    name: str
    teacher: str
    student: str
    setting: str = ""  # such as "beta=4", if a parameter separates columns

    @property
    def mislabelled(self) -> bool:
        """Whether the first of `literature.NOTES` is about this column."""
        return f"{self.teacher}-{self.student}" == literature.MISLABELLED


class Entry(NamedTuple):
    """A cell of a grid: the number, and lines with published numbers below it; empty if there is no number."""

    text: str = ""
    below: tuple[str, ...] = ()
    bold: bool = False


class Row(NamedTuple):
    """A row of the table: the method, its title with its settings, and its year (infinite if unpublished).

    `ours` is false for a row of imported runs, which are compared with no others.
    """

    method: str
    title: str
    year: float
    ours: bool = True


@dataclass(frozen=True)
class Grid:
    """A block of the table; `rows` are (label, one entry a column), `remark` is true of all of them."""

    title: str
    columns: tuple[Pair, ...]
    rows: tuple[tuple[str, tuple[Entry, ...]], ...]
    remark: str = ""


def columns(runs: pd.DataFrame, pairs: Sequence[str] | None) -> tuple[Pair, ...]:
    """`pairs` if given, else the seven of the published table, in its order, and then any other pair of the runs.

    On other data than CIFAR-100, or if `settings.place` gave the columns settings, only pairs that have runs count. A
    pair has a column for each of its settings.
    """
    distilled = runs[~runs["alone"]].drop_duplicates("pair")
    found: dict[str, list[tuple[tuple[Setting, ...], Pair]]] = {}
    for run in distilled.to_dict("records"):
        setting = " ".join(map(str, run["column"]))
        name = f"{run['teacher']}-{run['student']}"
        found.setdefault(name, []).append((run["column"], Pair(run["pair"], run["teacher"], run["student"], setting)))
    names = pairs or [*literature.SEVEN, *sorted(set(found) - set(literature.SEVEN))]
    if distilled["column"].any() or literature.FULL_DATASET not in {
        name.split("-")[0] for name in distilled["dataset"]
    }:
        names = [name for name in names if name in found]
    return tuple(pair for name in names for _, pair in sorted(found.get(name, [((), Pair(name, *name.split("-", 1)))])))


def rows_of(runs: pd.DataFrame) -> tuple[Row, ...]:
    """The methods of the runs by year of publication and title, then those without a year, and EDKD last.

    Title and year are tags of the runs; the newest run's count. A method without a title has its own name, and methods
    of one title have their names behind it.
    """
    newest_first = runs[~runs["alone"]].sort_values("started", ascending=False, kind="stable")
    rows = []
    for name, group in newest_first.groupby("method"):
        distiller, settings = group["distiller"].iloc[0], group["row"].iloc[0]
        title, year = EARLIER.get(distiller, (distiller, ""))
        tagged = newest_first[(newest_first["distiller"] == distiller) & (newest_first["title"] != "")]
        if not tagged.empty:
            title, year = tagged["title"].iloc[0], tagged["year"].iloc[0]
        namesakes = newest_first[(newest_first["title"] == title) & (newest_first["distiller"] != distiller)]
        named = title if namesakes.empty else f"{title} ({distiller})"
        label = " ".join(map(str, (named, *settings)))
        row = Row(str(name), label, float(year or "inf"), ours=not group["imported"].any())
        rows.append(((distiller == OURS, row.year, title.casefold(), settings), row))
    return tuple(row for _, row in sorted(rows))


def alone_title(method: str) -> str:
    """The title of a row of students alone, which were trained by `method`."""
    return ALONE if method == VANILLA else f"{ALONE}, {method}"


def contrasts(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """The pairs of rows to compare: the last row and every method without a year, each with all rows above it."""
    rows = [row for row in rows if row.ours]
    new = [i for i, row in enumerate(rows) if row.year == float("inf") or row is rows[-1]]
    return [(rows[i], other) for i in reversed(new) for other in rows[:i]]


def leaders(tidy: pd.DataFrame, kind: Kind) -> set[tuple[str, str]]:
    """Each (pair, method) where the method is significantly better, after Holm, than every other one on the pair."""
    rows = comparisons(tidy, kind)
    clear = rows[rows["p_holm"] < 0.05]
    better = Counter(zip(clear["pair"], clear["first"].where(clear["difference"] > 0, clear["second"])))
    methods = tidy[tidy["protocol"] == kind].groupby("pair")["method"].nunique()
    return {(pair, method) for (pair, method), count in better.items() if count == methods[pair] - 1}


def taught_apart(runs: pd.DataFrame) -> list[str]:
    """A line for each contrast and pair with the seeds that are not compared, because the teachers' weights differ."""
    distilled = runs[~runs["alone"] & (runs["imported"] == "")]  # an imported run's seed and teacher are unknown
    teachers = distilled.pivot(index=["pair", "seed"], columns="method", values="taught_by")
    teachers = teachers[teachers.nunique(axis="columns") > 1]
    lines = []
    for first, second in contrasts(rows_of(distilled)) if len(teachers) else ():
        one, other = teachers[first.method], teachers[second.method]
        apart = teachers[one.notna() & other.notna() & (one != other)].reset_index()
        for pair, group in apart.groupby("pair", sort=False):
            seeds = ", ".join(map(str, group["seed"]))
            lines.append(f"{pair}: {first.title} − {second.title}, seed {seeds}: not taught by the same teacher")
    return lines


def no_common_seed(runs: pd.DataFrame) -> list[str]:
    """A line for each pair whose methods and student alone share no seed, so that neither is subtracted."""
    ours = runs[runs["imported"] == ""]
    alone = ours[ours["alone"] & (ours["distiller"] == VANILLA)].groupby("student")["seed"].unique()
    lines = []
    for (pair, student), group in ours[~ours["alone"]].groupby(["pair", "student"], sort=False):
        both = ({*group["seed"]}, {*alone.get(student, ())})
        if both[1] and not both[0] & both[1]:
            methods, student_alone = (", ".join(map(str, sorted(seeds))) for seeds in both)
            seeds = f"(methods: {methods}; {student} alone: {student_alone})"
            lines.append(f"{pair}: methods − {ALONE}: no common seed {seeds}")
    return lines


def grids(
    long: pd.DataFrame, shape: tuple[Pair, ...], rows: Sequence[Row], tidy: pd.DataFrame, *, beside: bool
) -> list[Grid]:
    """A grid for each kind in `long`, followed by its paired differences where there are any; without empty rows.

    `beside` puts the published accuracy of the networks alone into their rows (see `literature.comparable`).
    """
    made = []
    for kind in [kind for kind in KINDS if kind in set(long["kind"])]:
        part = long[long["kind"] == kind]
        cells = part[part["quantity"] == "accuracy"]
        found = {(row["pair"], row["method"]): row for row in part.to_dict("records")}
        body = [("teacher alone", tuple(_teacher(cells, pair, beside) for pair in shape))]
        alone = set(cells["method"][cells["teacher"] == ""])
        for method in sorted(alone, key=lambda name: (name != VANILLA, name)):
            body += [(alone_title(method), tuple(_alone(found, pair, method, beside) for pair in shape))]
        bold = leaders(tidy, kind)
        for row in rows:
            entries = (
                _entry(found.get((pair.name, row.method)), bold=(pair.name, row.method) in bold) for pair in shape
            )
            body += [(row.title, tuple(entries))]
        made.append(_grid(_title(kind, cells), shape, body))
        compared = [(f"{a.title} − {b.title}", f"{a.method}-{b.method}") for a, b in contrasts(rows)]
        compared += [(f"{row.title} − {ALONE}", f"{row.method}-{VANILLA}") for row in rows]
        body = [(label, tuple(_difference(found.get((pair.name, name))) for pair in shape)) for label, name in compared]
        if len(cells) < len(part):
            made.append(_grid(f"Paired differences, {kind} epoch (points of top-1, same seeds)", shape, body))
    return made


def _grid(title: str, shape: tuple[Pair, ...], body: Iterable[tuple[str, tuple[Entry, ...]]]) -> Grid:
    """A grid without empty rows; if all numbers have n = 1, the remark reports it instead of the cells."""
    rows = [(label, entries) for label, entries in body if any(entry.text for entry in entries)]
    counts = {found for _, entries in rows for entry in entries for found in re.findall(r" \(n=\d+\)$", entry.text)}
    if counts != {_ONE}:
        return Grid(title, shape, tuple(rows))
    short = ((label, tuple(e._replace(text=e.text.removesuffix(_ONE)) for e in entries)) for label, entries in rows)
    return Grid(title, shape, tuple(short), "n = 1 throughout")


def reference_grid(shape: tuple[Pair, ...]) -> Grid:
    """The published table itself, for a report whose numbers must not stand beside it."""

    def numbers(method: str, column: Literal["table", "authors"]) -> tuple[Entry, ...]:
        known = (literature.number(pair.name, method) for pair in shape)
        return tuple(Entry(number(getattr(k, column), 2) if k else "") for k in known)

    body = (
        ("teacher alone", tuple(Entry(number(literature.network("teacher", pair.teacher), 2)) for pair in shape)),
        (ALONE, tuple(Entry(number(literature.network("student", pair.student), 2)) for pair in shape)),
        ("KD (last epoch)", numbers("kd", "table")),
        ("DKD (best epoch)", numbers("dkd", "table")),
        ("DKD, its authors (best)", numbers("dkd", "authors")),
        ("EDKD (best epoch)", numbers("edkd", "table")),
    )
    return Grid("Published, full data, 240 epochs: not comparable", shape, body)


def _title(kind: Kind, cells: pd.DataFrame) -> str:
    if kind == "last":
        return "Last epoch (test top-1, %)"
    recorded = "the test set itself" if cells["chosen_on"].str.contains("test").any() else "(not recorded)"
    chosen = "held-out training images (validation)" if kind == "selected" else recorded
    return f"Best epoch, chosen on {chosen} (test top-1, %)"


def _entry(row: Mapping[Hashable, Any] | None, *, bold: bool = False) -> Entry:
    if row is None:
        return Entry()
    spread = "" if row["n"] < 2 else f" ± {row['top1_sd']:.2f}"
    return Entry(f"{row['top1_mean']:.2f}{spread} (n={row['n']})", _below(row), bold)


def _difference(row: Mapping[Hashable, Any] | None) -> Entry:
    """The mean difference, and its interval below it."""
    if row is None:
        return Entry()
    low, high = (f"{row[end]:+.2f}".replace("-", "−") for end in ("top1_ci95_low", "top1_ci95_high"))
    interval = () if pd.isna(row["top1_ci95_low"]) else (f"[{low}, {high}]",)
    return Entry(f"{row['top1_mean']:+.2f} (n={row['n']})".replace("-", "−"), interval)


def _below(row: Mapping[Hashable, Any]) -> tuple[str, ...]:
    """`published 76.01 (+0.12)`, the difference being ours − published; `published [76.01]` if the protocol differs."""
    lines = []
    for name, column, difference in (
        ("published", "published", "minus_published"),
        ("authors", "published_by_authors", "minus_authors"),
    ):
        value, ours = row.get(column), row.get(difference)
        if value is not None and pd.notna(value):
            there = ours is not None and pd.notna(ours)
            lines.append(f"{name} {value:.2f} ({ours:+.2f})".replace("-", "−") if there else f"{name} [{value:.2f}]")
    return tuple(lines)


def _teacher(cells: pd.DataFrame, pair: Pair, beside: bool) -> Entry:
    """The teacher's accuracy as its students' runs recorded it; several numbers if they had different teachers."""
    recorded = cells[cells["pair"] == pair.name]["teacher_top1"]
    values = sorted({number(float(v), 2) for joined in recorded for v in joined.split()})
    return Entry(" / ".join(values), _beside("teacher", pair.teacher) if values and beside else ())


def _alone(found: Mapping[Any, Mapping[Hashable, Any]], pair: Pair, method: str, beside: bool) -> Entry:
    row = found.get((pair.student, method))
    usual = beside and method == VANILLA and row is not None and not row["changed"]
    return _entry(row)._replace(below=_beside("student", pair.student) if usual else ())


def _beside(role: Literal["teacher", "student"], name: str) -> tuple[str, ...]:
    value = literature.network(role, name)
    return () if value is None else (f"published {value:.2f}",)

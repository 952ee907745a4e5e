"""The benchmark table as data: pairs are columns, methods are rows, `last` and `best` are two grids, never one."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from analysis import literature
from analysis.load import VANILLA
from analysis.settings import Setting
from analysis.statistics import comparisons, paired_differences, summarise
from edkd.console import number

Kind = Literal["last", "best", "selected"]  # the protocols of `analysis.statistics`
KINDS: tuple[Kind, ...] = ("last", "best", "selected")
OURS = "edkd"  # the last row
EARLIER = {"kd": ("KD", "2015"), "dkd": ("DKD", "2022"), "edkd": ("EDKD", "")}  # runs without the tags title and year
_ONE = " (n=1)"
LEVEL = 0.95  # coverage of the confidence intervals in the CSV


class Pair(NamedTuple):
    """A column of the table."""

    name: str
    teacher: str
    student: str
    setting: str = ""  # "beta=4" where columns are apart by a parameter

    @property
    def mislabelled(self) -> bool:
        """Whether the first of `literature.NOTES` is about this column."""
        return f"{self.teacher}-{self.student}" == literature.MISLABELLED


class Entry(NamedTuple):
    """A cell of a grid: the number, and lines with published ones under it; empty where there is nothing to say."""

    text: str = ""
    below: tuple[str, ...] = ()
    bold: bool = False


class Row(NamedTuple):
    """A method of the table, by its title and what its runs have set; `year` is infinite for the unpublished."""

    method: str
    title: str
    year: float


@dataclass(frozen=True)
class Grid:
    """A block of the table; `rows` are (label, one entry a column), `remark` is true of all of them."""

    title: str
    columns: tuple[Pair, ...]
    rows: tuple[tuple[str, tuple[Entry, ...]], ...]
    remark: str = ""


def columns(runs: pd.DataFrame, pairs: Sequence[str] | None) -> tuple[Pair, ...]:
    """`pairs` if given, else the seven of the published table, in its order, and then any other pair of the runs.

    A pair has a column for each of its settings where `settings.place` has set columns apart.
    """
    distilled = runs[~runs["alone"]].drop_duplicates("pair")
    found: dict[str, list[tuple[tuple[Setting, ...], Pair]]] = {}
    for run in distilled.to_dict("records"):
        setting = " ".join(map(str, run["column"]))
        name = f"{run['teacher']}-{run['student']}"
        found.setdefault(name, []).append((run["column"], Pair(run["pair"], run["teacher"], run["student"], setting)))
    names = pairs or [*literature.SEVEN, *sorted(set(found) - set(literature.SEVEN))]
    if distilled["column"].any():
        names = [name for name in names if name in found]
    return tuple(pair for name in names for _, pair in sorted(found.get(name, [((), Pair(name, *name.split("-", 1)))])))


def rows_of(runs: pd.DataFrame) -> tuple[Row, ...]:
    """The methods of the runs, ordered by year of publication and title; those without a year last, of them EDKD.

    Title and year are tags of the runs, the newest's where they differ. A method without a title has its own name.
    """
    newest_first = runs[~runs["alone"]].sort_values("started", ascending=False, kind="stable")
    rows = []
    for name, group in newest_first.groupby("method"):
        distiller, settings = group["distiller"].iloc[0], group["row"].iloc[0]
        title, year = EARLIER.get(distiller, (distiller, ""))
        tagged = newest_first[(newest_first["distiller"] == distiller) & (newest_first["title"] != "")]
        if not tagged.empty:
            title, year = tagged["title"].iloc[0], tagged["year"].iloc[0]
        ours, first = distiller == OURS, title.casefold()
        label = " ".join(map(str, (title, *settings)))
        rows.append(((ours, float(year or "inf"), first, settings), Row(str(name), label, float(year or "inf"))))
    return tuple(row for _, row in sorted(rows))


def contrasts(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """What is compared in pairs: the last row, and every method without a year of publication, with all rows above."""
    new = [i for i, row in enumerate(rows) if row.year == float("inf") or row is rows[-1]]
    return [(rows[i], other) for i in reversed(new) for other in rows[:i]]


def commits(runs: pd.DataFrame) -> list[str]:
    """The git commits of the runs, shortened, `+dirty` where the working tree had changes; imported ones have none."""
    ours = runs[runs["imported"] == ""]
    found = sorted(set(zip(ours["git_commit"], ours["git_dirty"])))
    return [(commit[:10] or "unknown") + ("+dirty" if dirty else "") for commit, dirty in found]


def long_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Every number of the table and the paired differences, one row each, sorted by pair, method and kind.

    The kinds are `last`, `best` (chosen on the test set) and `selected` (chosen on held-out training images).
    `runs` holds one finished run per cell and seed. Accuracies in percent; intervals cover 95 %.
    """
    beside = literature.comparable(runs)
    compared = contrasts(rows_of(runs))
    rows = []
    for kind in KINDS:
        groups = {
            (str(pair), str(method)): group.sort_values("seed")
            for (pair, method), group in _measured(runs, kind).groupby(["pair", "method"], sort=False)
        }
        rows += [_cell(group, kind, beside) for group in groups.values()]
        for first, second in compared:
            for pair in runs["pair"].unique():
                if (pair, first.method) in groups and (pair, second.method) in groups:
                    rows += _difference(groups[pair, first.method], groups[pair, second.method], kind)
    return pd.DataFrame(rows).sort_values(
        ["pair", "method", "kind"],
        key=lambda column: column.map(KINDS.index) if column.name == "kind" else column,
        ignore_index=True,
    )


def _measured(runs: pd.DataFrame, kind: Kind) -> pd.DataFrame:
    """The runs that have an accuracy of this kind."""
    if kind == "last":
        return runs
    return runs[(runs["best_by"] == "validation") == (kind == "selected")]


def leaders(tidy: pd.DataFrame, kind: Kind) -> set[tuple[str, str]]:
    """(pair, method) where the method is better than all others on the pair, each time significantly after Holm."""
    rows = comparisons(tidy, kind, level=LEVEL)
    clear = rows[rows["p_holm"] < 1 - LEVEL]
    better = Counter(zip(clear["pair"], clear["first"].where(clear["difference"] > 0, clear["second"])))
    methods = tidy[tidy["protocol"] == kind].groupby("pair")["method"].nunique()
    return {(pair, method) for (pair, method), count in better.items() if count == methods[pair] - 1}


def taught_apart(runs: pd.DataFrame) -> list[str]:
    """What is not compared, though both methods have the seed: students of two teachers of one name."""
    runs = runs[runs["imported"] == ""]  # of the others neither seed nor teacher is known
    lines = []
    for first, second in contrasts(rows_of(runs)):
        for pair, group in runs.groupby("pair", sort=False):
            one, other = (_teachers(group[group["method"] == row.method]) for row in (first, second))
            apart = sorted(seed for seed in one.keys() & other.keys() if one[seed] != other[seed])
            if apart:
                seeds = ", ".join(map(str, apart))
                lines.append(f"{pair}: {first.title} − {second.title}, seed {seeds}: not taught by the same teacher")
    return lines


def _teachers(group: pd.DataFrame) -> dict[int, str]:
    """The identity of each seed's teacher."""
    return {int(seed): str(params.get("teacher_id", "")) for seed, params in zip(group["seed"], group["params"])}


def _cell(group: pd.DataFrame, kind: Kind, beside: bool) -> dict[str, Any]:
    row = _head(group, kind, "accuracy", group["method"].iloc[0])
    epoch = "last" if kind == "last" else "best"
    row |= _spread(group[f"{epoch}_top1"], group["seed"])
    top5 = summarise(group[f"{epoch}_top5"].dropna(), LEVEL)
    row |= {"top5_mean": top5.mean, "top5_sd": top5.sd, "epoch_mean": group[f"{epoch}_epoch"].mean()}
    row |= {"teacher_top1": _join(f"{v:.4f}" for v in sorted(group["teacher_top1"].dropna().unique()))}
    known = literature.number(row["pair"], row["method"]) if beside else None
    if known:
        same = known.protocol == kind
        row |= {"published": known.table, "published_by_authors": known.authors}
        row |= {"published_protocol": known.protocol, "same_protocol": "yes" if same else "no"}
    row |= {"cell": _join(group["cell"].unique()), "git_commits": _join(commits(group))}
    return row | {"run_ids": _join(group["run_id"])}


def _difference(first: pd.DataFrame, second: pd.DataFrame, kind: Kind) -> list[dict[str, Any]]:
    epoch = "last_top1" if kind == "last" else "best_top1"
    a, b = (
        {key: float(value) for key, value in zip(_teachers(group).items(), group[epoch], strict=True)}
        for group in (first, second)
    )
    values = paired_differences(a, b)
    if not values.size:
        return []
    name = f"{first['method'].iloc[0]}-{second['method'].iloc[0]}"
    head = _head(first, kind, "paired difference", name)
    return [head | _spread(values, (seed for seed, _ in sorted(a.keys() & b.keys())))]


def _head(group: pd.DataFrame, kind: Kind, quantity: str, method: str) -> dict[str, Any]:
    run = group.iloc[0]
    chosen = _join(sorted(group["best_by"].unique())) if kind != "last" else ""
    names = {name: run[name] for name in ("dataset", "recipe", "pair", "teacher", "student")}
    return {"quantity": quantity, "kind": kind, "chosen_on": chosen, **names, "method": method}


def _spread(values: ArrayLike, seeds: Iterable[int]) -> dict[str, Any]:
    n, mean, sd, low, high = summarise(values, LEVEL)
    numbers = {"n": n, "top1_mean": mean, "top1_sd": sd, "top1_ci95_low": low, "top1_ci95_high": high}
    return numbers | {"top1_values": _join(f"{v:.4f}" for v in np.asarray(values)), "seeds": _join(seeds)}


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
        body = [("teacher alone", tuple(_teacher(cells, pair, beside) for pair in shape))]
        alone = cells[cells["teacher"] == ""]
        for method in (VANILLA, *sorted(set(alone["method"]) - {VANILLA})):
            name = "student alone" if method == VANILLA else f"student alone, {method}"
            body += [(name, tuple(_alone(alone, pair, method, beside) for pair in shape))]
        bold = leaders(tidy, kind)
        for row in rows:
            entries = (_entry(_find(cells, pair.name, row.method)) for pair in shape)
            bolder = (e._replace(bold=(pair.name, row.method) in bold) for e, pair in zip(entries, shape))
            body += [(row.title, tuple(bolder))]
        made.append(_grid(_title(kind, cells), shape, body))
        gaps = part[part["quantity"] == "paired difference"]
        body = [
            (
                f"{a.title} − {b.title}",
                tuple(_entry(_find(gaps, pair.name, f"{a.method}-{b.method}"), "+") for pair in shape),
            )
            for a, b in contrasts(rows)
        ]
        if not gaps.empty:
            made.append(_grid(f"Paired differences, {kind} epoch (points of top-1, same seeds)", shape, body))
    return made


def _grid(title: str, shape: tuple[Pair, ...], body: Iterable[tuple[str, tuple[Entry, ...]]]) -> Grid:
    """Without empty rows; that every number is of one run is said once."""
    rows = [(label, entries) for label, entries in body if any(entry.text for entry in entries)]
    counts = {found for _, entries in rows for entry in entries for found in re.findall(r" \(n=\d+\)$", entry.text)}
    if counts != {_ONE}:
        return Grid(title, shape, tuple(rows))
    short = ((label, tuple(e._replace(text=e.text.removesuffix(_ONE)) for e in entries)) for label, entries in rows)
    return Grid(title, shape, tuple(short), "n = 1 throughout")


def reference_grid(shape: tuple[Pair, ...]) -> Grid:
    """The published table itself, for the readers of a table whose cells must not stand beside it."""

    def numbers(method: str, column: Literal["table", "authors"]) -> tuple[Entry, ...]:
        known = (literature.number(pair.name, method) for pair in shape)
        return tuple(Entry(number(getattr(k, column), 2) if k else "") for k in known)

    body = (
        ("teacher alone", tuple(Entry(number(literature.network("teacher", pair.teacher), 2)) for pair in shape)),
        ("student alone", tuple(Entry(number(literature.network("student", pair.student), 2)) for pair in shape)),
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


def _find(part: pd.DataFrame, pair: str, method: str) -> pd.Series | None:
    rows = part[(part["pair"] == pair) & (part["method"] == method)]
    return None if rows.empty else rows.iloc[0]


def _entry(row: pd.Series | None, sign: Literal["", "+"] = "") -> Entry:
    if row is None:
        return Entry()
    spread = "" if row["n"] < 2 else f" ± {row['top1_sd']:.2f}"
    return Entry(f"{row['top1_mean']:{sign}.2f}{spread} (n={row['n']})".replace("-", "−"), _below(row))


def _below(row: pd.Series) -> tuple[str, ...]:
    """`published 76.01`, `authors 76.32`; the numbers in brackets where the literature measured another epoch."""
    told = (("published", row.get("published")), ("authors", row.get("published_by_authors")))
    shape = "{} {:.2f}" if row.get("same_protocol") == "yes" else "{} [{:.2f}]"
    return tuple(shape.format(name, value) for name, value in told if value is not None and pd.notna(value))


def _teacher(cells: pd.DataFrame, pair: Pair, beside: bool) -> Entry:
    """The teacher's accuracy as its students' runs recorded it; several numbers if they had different teachers."""
    told = cells[cells["pair"] == pair.name]["teacher_top1"]
    values = sorted({number(float(v), 2) for joined in told for v in joined.split()})
    return Entry(" / ".join(values), _beside("teacher", pair.teacher) if values and beside else ())


def _alone(cells: pd.DataFrame, pair: Pair, method: str, beside: bool) -> Entry:
    text = _entry(_find(cells, pair.student, method)).text
    return Entry(text, _beside("student", pair.student) if text and beside and method == VANILLA else ())


def _beside(role: Literal["teacher", "student"], name: str) -> tuple[str, ...]:
    value = literature.network(role, name)
    return () if value is None else (f"published {value:.2f}",)


def _join(values: Iterable[object]) -> str:
    return " ".join(str(value) for value in values)

"""The tables of the HTML report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import pandas as pd

from analysis import load, numbers, tables
from analysis import statistics as st
from analysis.missing import Missing


class Cell(NamedTuple):
    """A cell's text, and the number by which it sorts: "" if the number is missing, None for text."""

    text: str
    key: float | str | None = None


class Table(NamedTuple):
    """A table of the page."""

    title: str
    columns: tuple[str, ...]
    rows: list[list[Cell]]


def _number(value: float | None, form: str = ".2f") -> Cell:
    if value is None or math.isnan(value):
        return Cell("", "")
    return Cell(f"{value:{form}}".replace("-", "−"), float(value))


def _interval(low: float, high: float, form: str = ".2f") -> Cell:
    start, end = _number(low, form), _number(high, form)
    return Cell(f"{start.text} to {end.text}", start.key) if start.text else start


def _bracketed(cell: Cell) -> Cell:
    return cell._replace(text=f"[{cell.text}]") if cell.text else cell


def accuracies(found: pd.DataFrame) -> Table:
    """The accuracies, with the published numbers as in the table: in brackets those of another protocol."""
    columns = ("pair", "method", "epoch", "n", "mean", "sd", "95 % interval")
    beside = [name for name in ("published", "published_by_authors") if name in found and found[name].notna().any()]
    rows = []
    by_kind = found.sort_values("kind", key=lambda kinds: kinds.map(numbers.KINDS.index), kind="stable")
    for row in by_kind.to_dict("records"):
        line = [Cell(row["pair"]), Cell(row["method"]), Cell(row["kind"]), _number(row["n"], "d")]
        line += [_number(row["top1_mean"]), _number(row["top1_sd"])]
        line += [_interval(row["top1_ci95_low"], row["top1_ci95_high"])]
        other = row.get("same_protocol") == "no"
        rows.append(line + [_bracketed(_number(row[name])) if other else _number(row[name]) for name in beside])
    return Table("Accuracies", (*columns, *(name.removeprefix("published_by_") for name in beside)), rows)


def differences(compared: Mapping[numbers.Kind, pd.DataFrame]) -> Table:
    """The `statistics.comparisons` of each kind."""
    columns = ("pair", "difference of", "epoch", "n", "mean", "sd", "95 % interval", "p", "p, Holm", "seeds")
    rows = []
    for protocol, frame in compared.items():
        for row in frame.to_dict("records"):
            second = tables.ALONE if row["second"] == load.VANILLA else row["second"]
            line = [Cell(row["pair"]), Cell(f"{row['first']} − {second}"), Cell(protocol)]
            line += [_number(row["n"], "d"), _number(row["difference"], "+.2f"), _number(row["sd"])]
            line += [_interval(row["low"], row["high"], "+.2f"), _number(row["p"], ".4f")]
            rows.append([*line, _number(row["p_holm"], ".4f"), Cell(row["seeds"])])
    return Table("Paired differences", columns, rows)


def pooled(ours: str, over: Mapping[str, st.Pooled]) -> Table:
    """The differences of `ours` from each other method over pairs."""
    columns = ("difference of", "pairs", "mean", "95 % interval", "win/tie/loss", "P(improvement)", "p, Wilcoxon")
    rows = []
    for name, found in over.items():
        line = [Cell(f"{ours} − {name}"), _number(found.pairs, "d"), _number(found.mean, "+.2f")]
        line += [_interval(found.low, found.high, "+.2f"), Cell(f"{found.wins}/{found.ties}/{found.losses}")]
        rows.append([*line, _number(found.improvement), _number(found.p_wilcoxon, ".4f")])
    return Table("Differences over pairs", columns, rows)


def missing(found: Iterable[Missing]) -> Table:
    """The runs that would complete the table."""
    rows = [
        [Cell(row.pair), Cell(" ".join((row.method, *row.values))), _number(row.seed, "d"), Cell(row.state)]
        for row in found
    ]
    return Table("Missing runs", Missing._fields[:4], rows)


def provenance(used: pd.DataFrame) -> Table:
    """Where each run comes from; `used` also has the column `hours`."""
    columns = ("run", "began (UTC)", "hours", "commit", "dirty", "configuration", "data")
    columns_of_teacher = ("teacher's top-1", "teacher", "teacher's hash")
    columns_of_machine = ("device", "threads", "versions", "from")
    rows = []
    for run in used.to_dict("records"):
        tags = run["tags"]
        began = "" if run["imported"] else f"{pd.Timestamp(int(run['started']), unit='ms'):%Y-%m-%d %H:%M}"
        versions = {key.removeprefix("versions."): value for key, value in tags.items() if key.startswith("versions.")}
        line = [Cell(run["name"]), Cell(began), _number(run["hours"], ".3f")]
        if run["imported"]:
            line += [Cell(f"of {run['imported']}"), Cell("")]
        else:
            line += [Cell(run["git_commit"][:10]), Cell("yes" if run["git_dirty"] else "no")]
        line += [Cell(tags.get("config_hash", "")), Cell(tags.get("data_sha256", "")[:10])]
        line += [
            _number(run["teacher_top1"]),
            Cell(tags.get("teacher_id", "")),
            Cell(tags.get("teacher_sha256", "")[:10]),
        ]
        line += [Cell(tags.get("device", "")), Cell(tags.get("threads", ""))]
        line += [Cell(", ".join(f"{name} {value}" for name, value in sorted(versions.items())))]
        rows.append([*line, Cell("packed journal" if run["packed"] else "MLflow")])
    return Table("Provenance of every run", (*columns, *columns_of_teacher, *columns_of_machine), rows)

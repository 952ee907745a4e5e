"""`python -m analysis.html_report`: the benchmark as one HTML page that needs no network, `report.html`."""

import argparse
import math
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import pandas as pd

from analysis import attach, html_figures, literature, load, report, tables
from analysis import statistics as st
from analysis.__main__ import chosen, command, facts, parser
from edkd.errors import EdkdError
from edkd.rundir import files, journal, results
from edkd.rundir.journal import Record
from edkd.rundir.paths import find_runs

PROTOCOL = "last"  # of the verdict and the figures: nothing was chosen on the test set
PROTOCOLS = ("last", "selected", "best")


class Cell(NamedTuple):
    """What a table shows, and by which number it sorts: "" for one that is missing, None for text."""

    text: str
    key: float | str | None = None


class Table(NamedTuple):
    """A table of the page."""

    title: str
    columns: tuple[str, ...]
    rows: list[list[Cell]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page; returns the exit code. What the user can mend is said on standard error, without a traceback."""
    options_of = parser("analysis.html_report", __doc__, "report.html")
    options_of.add_argument(
        "--ours", metavar="METHOD", help="the method that is compared with the others (default: the table's last)"
    )
    options = options_of.parse_args(arguments)
    path = options.output / "report.html"
    try:
        page, used = build(options)
        files.write_bytes(path, page.encode())
        attach.to_sweeps(used, options, [path])
    except EdkdError as error:
        print(f"analysis.html_report: {error}", file=sys.stderr)
        return 1
    print(f"Saved in {path}")
    return 0


def build(options: argparse.Namespace) -> tuple[str, pd.DataFrame]:
    """The page of the runs that `options` ask for, and the runs in its numbers. Raises EdkdError."""
    runs, in_numbers = chosen(options)
    used = in_numbers
    dataset, recipe = used["dataset"].iloc[0], used["recipe"].iloc[0]
    titles = {row.method: row.title for row in tables.rows_of(used)}
    names = list(titles.values())
    ours = titles.get(options.ours, options.ours) if options.ours else names[-1]
    if ours not in names:
        raise EdkdError(f"--ours names {options.ours!r}, which has no finished run; there are: {', '.join(names)}")
    others = [name for name in names if name != ours]
    used = used.assign(
        method=used["method"].map(titles).fillna(used["distiller"]),
        hours=[metrics.get("seconds", math.nan) / 3600 for metrics in used["metrics"]],
    )
    distilled = used[~used["alone"]]
    tidy = load.tidy(used)
    compared = {p: st.comparisons(tidy, p, [(ours, name) for name in others]) for p in PROTOCOLS}
    drawn = html_figures.draw(tidy, distilled, _curves(distilled, options), protocol=PROTOCOL, ours=ours, others=others)
    missing = _missing(runs, distilled)
    made_by = command("analysis.html_report", options, dataset, recipe)
    template = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    ).get_template("report.html")
    page = template.render(
        title=report.title(dataset, used),
        verdict=st.verdict(tidy, PROTOCOL, ours, others)
        if others
        else [f"{ours} alone has runs: nothing is compared."],
        facts=facts(used, dataset, recipe),
        permits=st.permits(compared[PROTOCOL]),
        figures=drawn.svgs,
        not_drawn=drawn.not_drawn,
        ours=ours,
        quantity=html_figures.QUANTITY[PROTOCOL],
        cells=_cells(tidy, distilled),
        differences=_differences(compared),
        pooled=_pooled(tidy, ours, others),
        missing=missing,
        fill=_fill(missing, distilled, options.output) if missing.rows else "",
        left_out=[*load.left_out(runs, used), *tables.taught_apart(used)],
        provenance=_provenance(used),
        command=made_by + (f" --ours {shlex.quote(options.ours)}" if options.ours else ""),
    )
    return page, in_numbers


def _number(value: float | None, form: str = ".2f") -> Cell:
    if value is None or math.isnan(value):
        return Cell("", "")
    return Cell(f"{value:{form}}".replace("-", "−"), float(value))


def _interval(row: Mapping[Any, Any], form: str) -> Cell:
    low, high = _number(row["low"], form), _number(row["high"], form)
    return Cell(f"{low.text} to {high.text}", low.key) if low.text else low


def _cells(tidy: pd.DataFrame, used: pd.DataFrame) -> Table:
    cells = st.cells(tidy)
    beside = html_figures.beside_published(used, cells)
    published = {(r["pair"], r["method"], r["protocol"]): r["published"] for r in beside.to_dict("records")}
    columns = ("pair", "method", "epoch", "n", "mean", "sd", "95 % interval", *(["published"] if published else []))
    rows = []
    for row in cells.to_dict("records"):
        line = [Cell(row["pair"]), Cell(row["method"]), Cell(row["protocol"]), _number(row["n"], "d")]
        line += [_number(row["mean"]), _number(row["sd"]), _interval(row, ".2f")]
        if published:
            line.append(_number(published.get((row["pair"], row["method"], row["protocol"]))))
        rows.append(line)
    return Table("Accuracies", columns, rows)


def _differences(compared: Mapping[str, pd.DataFrame]) -> Table:
    columns = ("pair", "difference of", "epoch", "n", "mean", "sd", "95 % interval", "p", "p, Holm", "seeds")
    rows = []
    for protocol, frame in compared.items():
        for row in frame.to_dict("records"):
            line = [Cell(row["pair"]), Cell(f"{row['first']} − {row['second']}"), Cell(protocol)]
            line += [_number(row["n"], "d"), _number(row["difference"], "+.2f"), _number(row["sd"])]
            line += [_interval(row, "+.2f"), _number(row["p"], ".4f"), _number(row["p_holm"], ".4f")]
            rows.append([*line, Cell(row["seeds"])])
    return Table("Paired differences", columns, rows)


def _pooled(tidy: pd.DataFrame, ours: str, others: Sequence[str]) -> Table:
    columns = ("difference of", "pairs", "mean", "95 % interval", "win/tie/loss", "P(improvement)", "p, Wilcoxon")
    rows = []
    for name in others:
        found = st.pooled(tidy, PROTOCOL, ours, name)
        line = [Cell(f"{ours} − {name}"), _number(found.pairs, "d"), _number(found.mean, "+.2f")]
        line += [_interval(found._asdict(), "+.2f"), Cell(f"{found.wins}/{found.ties}/{found.losses}")]
        rows.append([*line, _number(found.improvement), _number(found.p_wilcoxon, ".4f")])
    return Table("Differences over pairs", columns, rows)


def _missing(runs: pd.DataFrame, used: pd.DataFrame) -> Table:
    """The combinations of pairs, methods and seeds that have no run in the numbers, and what became of theirs."""
    done = set(zip(used["pair"], used["distiller"], used["seed"]))
    last = runs.sort_values("started", kind="stable").drop_duplicates(["pair", "distiller", "seed"], keep="last")
    state = {(r["pair"], r["distiller"], r["seed"]): r["status"].lower() for r in last.to_dict("records")}
    grid = product(used["pair"].unique(), used["distiller"].unique(), sorted(used["seed"].unique()))
    rows = [
        [Cell(pair), Cell(method), _number(seed, "d"), Cell(state.get((pair, method, seed), "not begun"))]
        for pair, method, seed in grid
        if (pair, method, seed) not in done
    ]
    return Table("Missing runs", ("pair", "method", "seed", "state"), rows)


def _fill(missing: Table, used: pd.DataFrame, output: Path) -> str:
    """The command for the missing runs, with what the used ones have other than the defaults of `launch.py`."""
    pairs, methods, seeds = (list(dict.fromkeys(row[i].text for row in missing.rows)) for i in range(3))
    words = ["python", "launch.py", "-m", f"distiller={','.join(methods)}", f"pair={','.join(pairs)}"]
    words += [f"seed={','.join(sorted(seeds, key=int))}"]
    values: dict[str, set[str]] = {}
    for params in used["params"]:
        for key, value in params.items():
            values.setdefault(key, set()).add(value)
    params = {key: found.pop() for key, found in values.items() if len(found) == 1}
    if not literature.comparable(used):
        source = params.get("dataset.source._target_", "").rsplit(".", 1)[-1]
        words += [f"dataset={source}"] if source else []
        options = ("train_per_class", "test_per_class", "validation", "padding", "flip", "image_size")
        words += [
            f"dataset.{name}={params[f'dataset.{name}']}"
            for name in options
            if params.get(f"dataset.{name}", "None") not in ("None", "0.0")
            and (name != "image_size" or "dataset.source.image_size" in params)
        ]
        words += [f"{key}={value}".replace(", ", ",") for key, value in params.items() if key.startswith("schedule.")]
    words += (
        [f"engine.precision={params['engine.precision']}"] if params.get("engine.precision", "fp32") != "fp32" else []
    )
    words += [f"output={output}"] if output != Path("outputs") else []
    return shlex.join(words)


def _provenance(used: pd.DataFrame) -> Table:
    columns = ("run", "began (UTC)", "hours", "commit", "dirty", "configuration", "teacher's top-1", "teacher")
    columns_of_machine = ("device", "threads", "versions", "from")
    rows = []
    for run in used.to_dict("records"):
        tags = run["tags"]
        began = f"{pd.Timestamp(int(run['started']), unit='ms'):%Y-%m-%d %H:%M}"
        versions = {key.removeprefix("versions."): value for key, value in tags.items() if key.startswith("versions.")}
        line = [Cell(run["name"]), Cell(began), _number(run["hours"], ".3f")]
        line += [Cell(run["git_commit"][:10]), Cell("yes" if run["git_dirty"] else "no")]
        line += [Cell(tags.get("config_hash", "")), _number(run["teacher_top1"]), Cell(tags.get("teacher_id", ""))]
        line += [Cell(tags.get("device", "")), Cell(tags.get("threads", ""))]
        line += [Cell(", ".join(f"{name} {value}" for name, value in sorted(versions.items())))]
        rows.append([*line, Cell("packed journal" if run["packed"] else "MLflow")])
    return Table("Provenance of every run", (*columns, *columns_of_machine), rows)


def _curves(used: pd.DataFrame, options: argparse.Namespace) -> pd.DataFrame:
    """Test top-1 by epoch, of the runs that are packed or whose journals lie below the output folder."""
    known = {(r["tags"].get("config_hash"), r["started"]): r for r in used.to_dict("records")}
    rows = []
    for records in _journals(options):
        first = next((record for record in records if record["event"] == "start"), None)
        run = known.pop((first["run"], int(first["time"] * 1000)), None) if first else None
        if run is not None:
            by_epoch = {r["epoch"]: r["metrics"].get("test/top1") for r in records if r["event"] == "epoch"}
            rows += [(run["pair"], run["method"], run["seed"], epoch, top1) for epoch, top1 in by_epoch.items()]
    frame = pd.DataFrame(rows, columns=["pair", "method", "seed", "epoch", "top1"])
    return frame.astype({"epoch": int, "top1": float})


def _journals(options: argparse.Namespace) -> Iterable[list[Record]]:
    if (options.output / "runs").is_dir():
        yield from (journal.read(path) for path in find_runs(options.output))
    yield from (results.read(path) for path in results.find(options.results))


if __name__ == "__main__":
    raise SystemExit(main())

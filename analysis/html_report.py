"""`python -m analysis.html_report`: the benchmark as one HTML page that needs no network, `report.html`."""

import argparse
import contextlib
import math
import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis import attach, figures, formats, html_figures, html_tables, load, missing, numbers, report, tables
from analysis import statistics as st
from analysis.figures.by_class import Values
from analysis.options import chosen, command, parser, results_of
from edkd.console import counted
from edkd.errors import EdkdError
from edkd.rundir import files, journal, results
from edkd.rundir.journal import Record
from edkd.rundir.paths import find_runs


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page; returns the exit code. Errors that the user can fix go to standard error, without a traceback."""
    options_of = parser("analysis.html_report", __doc__, "report.html")
    options_of.add_argument(
        "--ours", metavar="METHOD", help="the method that is compared with the others (default: the table's last)"
    )
    options_of.add_argument("--figures", type=Path, metavar="DIR", help="where each figure goes as PNG and SVG, too")
    options = options_of.parse_args(arguments)
    try:
        path = write(options, *chosen(options), ours=options.ours, folder=options.figures)
    except EdkdError as error:
        print(f"analysis.html_report: {error}", file=sys.stderr)
        return 1
    print(f"Saved in {path}")
    return 0


def write(
    options: argparse.Namespace,
    runs: pd.DataFrame,
    used: pd.DataFrame,
    *,
    ours: str | None = None,
    folder: Path | None = None,
) -> Path:
    """Write the page of the `used` ones among `runs`, as `chosen` returns them, and attach it to their sweeps.

    `ours` is the method that is compared with the others, by default the table's last; each figure goes to `folder`,
    too, if there is one. Returns the page's path. Raises EdkdError.
    """
    path = options.output / "report.html"
    page, drawn = _page(options, runs, used, ours)
    saved: list[Path] = []
    if folder is not None:
        for name, figure in drawn.figures.items():
            saved += figures.save(figure, folder, re.sub(r"\W+", "-", name.lower()))
    files.write_bytes(path, page.encode())
    attach.to_sweeps(used, options, [path, *saved])
    return path


def _page(
    options: argparse.Namespace, runs: pd.DataFrame, used: pd.DataFrame, named: str | None
) -> tuple[str, html_figures.Drawn]:
    """The page and its figures."""
    dataset, recipe = used["dataset"].iloc[0], used["recipe"].iloc[0]
    rows = tables.rows_of(used)
    titles = {row.method: row.title for row in rows}
    names = list(titles.values())
    last = [row.title for row in rows if row.ours] or names  # imported runs alone: any of them
    ours = titles.get(named, named) if named else last[-1]
    if ours not in names:
        raise EdkdError(f"--ours names {named!r}, which has no finished run; there are: {', '.join(names)}")
    others = [name for name in names if name != ours]
    distiller = {row.title: used["distiller"][used["method"] == row.method].iloc[0] for row in rows}
    baselines = [name for name in others if distiller[name] != distiller[ours]] or others  # not its other settings
    used = used.assign(
        method=used["method"].map(titles).fillna(used["method"].map(tables.alone_title)),
        hours=[metrics.get("seconds", math.nan) / 3600 for metrics in used["metrics"]],
        memory=[metrics.get("peak_memory_mb", math.nan) for metrics in used["metrics"]],
    )
    columns = tables.columns(used, options.pairs)
    place = {pair.name: i for i, pair in enumerate(columns)}
    rank = {name: i for i, name in enumerate(names)}
    used = _in_order(used.sort_values("method", key=lambda each: each.map(rank), kind="stable"), place)
    distilled = used[~used["alone"]]
    tidy = load.tidy(used)
    protocol: numbers.Kind = options.metric or "last"  # of verdict and figures; `last` is not chosen on the test set
    contrasts = [(ours, name) for name in others]
    compared = {kind: st.comparisons(tidy, kind, contrasts) for kind in numbers.KINDS}
    over = dict(zip(others, st.over_pairs(tidy, protocol, contrasts)))
    curves, by_class, without = _by_epoch(distilled, options)
    curves = _in_order(curves, place)
    title = report.title(dataset, used)
    drawn = html_figures.draw(
        tidy,
        distilled,
        curves,
        by_class,
        compared[protocol],
        over,
        html_figures.references(used),
        protocol=protocol,
        ours=ours,
        subject=title,
    )
    if without:
        drawn.not_drawn.append(f"{without} of {counted(len(distilled), 'run')}: no journal here, and in no curve")
    seeds = {*zip(distilled["student"], distilled["seed"])}
    undrawn = sum((run["student"], run["seed"]) not in seeds for run in used[used["alone"]].to_dict("records"))
    if undrawn:
        drawn.not_drawn.append(
            f"{tables.ALONE}: {counted(undrawn, 'run')} of seeds that the pair's methods do not have"
        )
    ours_alone = distilled[distilled["imported"] == ""]  # what this code can train
    begun = missing.unfinished(runs, used)
    absent = missing.without_run(runs, ours_alone, begun, [f"{pair.teacher}-{pair.student}" for pair in columns])
    unpack = ["edkd", "results", "unpack", str(results_of(options)), "--output", str(options.output)]
    unpacked = [shlex.join(unpack)] if ours_alone["packed"].any() else []  # or they would be trained again
    made_by = command("analysis.html_report", options, dataset, recipe)
    template = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    ).get_template("report.html")
    page = template.render(
        title=title,
        verdict=st.verdict(ours, {name: over[name] for name in baselines}, compared[protocol])
        if over
        else [f"{ours} alone has runs: nothing is compared."],
        facts=report.facts(used, dataset, recipe),
        permits=st.permits(compared[protocol], protocol),
        figures=[
            {
                "svg": html_figures.svg(figure, name, f"f{number}-"),
                "wide": figure.get_size_inches()[0] > figures.WIDTH,
            }
            for number, (name, figure) in enumerate(drawn.figures.items())
        ],
        not_drawn=drawn.not_drawn,
        ours=ours,
        quantity=html_figures.QUANTITY[protocol],
        cells=html_tables.accuracies(_in_order(numbers.accuracies(used), place)),
        differences=html_tables.differences(compared),
        from_alone=html_tables.differences(numbers.differences_from_alone(used)),
        pooled=html_tables.pooled(ours, over),
        missing=html_tables.missing([*begun, *absent]),
        retry=missing.retry_command(begun, dataset, options.output) if begun else "",
        launch="\n".join([*unpacked, *missing.launch_commands(absent, ours_alone, options.output)]) if absent else "",
        notes=[formats.marked_up(note) for note in report.notes(used, columns)],
        left_out=[*missing.left_out(runs, used), *tables.taught_apart(used), *tables.no_common_seed(used)],
        provenance=html_tables.provenance(used),
        command=made_by + (f" --ours {shlex.quote(named)}" if named else ""),
    )
    return page, drawn


def _in_order(rows: pd.DataFrame, place: Mapping[str, int]) -> pd.DataFrame:
    """The rows in the order of the table's pairs."""
    return rows.sort_values("pair", key=lambda names: names.map(place), kind="stable")


def _by_epoch(used: pd.DataFrame, options: argparse.Namespace) -> tuple[pd.DataFrame, Mapping[str, Values], int]:
    """Test top-1 by epoch, and what methods recorded by class, of runs that are packed or in the output folder.

    The former has a row a run and epoch; the latter is the mean of the runs, [epochs, classes], by method, quantity and
    pair. Third, the number of the other runs.
    """
    known = {(r["tags"].get("config_hash"), r["started"]): r for r in used.to_dict("records")}
    columns: dict[str, list[Any]] = {name: [] for name in ("pair", "method", "seed", "epoch", "top1")}
    classes: dict[tuple[str, str, str], list[NDArray[np.float64]]] = {}
    for records in _journals(options):
        first = next((record for record in records if record["event"] == "start"), None)
        run = known.pop((first["run"], int(first["time"] * 1000)), None) if first else None
        by_epoch = {record["epoch"]: record for record in records if record["event"] == "epoch"}
        if run is None or not by_epoch:
            continue
        for name in ("pair", "method", "seed"):
            columns[name] += [run[name]] * len(by_epoch)
        columns["epoch"] += by_epoch
        columns["top1"] += [record["metrics"].get("test/top1") for record in by_epoch.values()]
        for name in by_epoch[max(by_epoch)].get("by_class", ()):
            table = [by_epoch[epoch].get("by_class", {}).get(name) for epoch in sorted(by_epoch)]
            if all(table):  # otherwise an earlier version, without them, began the run
                classes.setdefault((run["method"], name, run["pair"]), []).append(np.array(table, dtype=float))
    values: dict[str, dict[str, dict[str, NDArray[np.float64]]]] = {}
    for (method, name, pair), tables_of in classes.items():
        values.setdefault(method, {}).setdefault(name, {})[pair] = np.mean(tables_of, axis=0)
    return pd.DataFrame(columns).astype({"epoch": int, "top1": float}), values, len(known)


def _journals(options: argparse.Namespace) -> Iterable[list[Record]]:
    for path in find_runs(options.output) if (options.output / "runs").is_dir() else ():
        with contextlib.suppress(EdkdError):  # a damaged one; its run is not in the table
            yield journal.read(path)
    yield from (results.read(path) for path in results.find(results_of(options)))


if __name__ == "__main__":
    raise SystemExit(main())

"""`python -m analysis`: rebuild the benchmark table from the MLflow store and the packed results."""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console

from analysis import attach, formats, literature, load, missing, numbers, report, tables
from analysis.options import DEFAULT, chosen, command, parser
from edkd.errors import EdkdError


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the table; returns the exit code. Errors that the user can fix go to standard error, without a traceback."""
    options_of = parser("analysis", __doc__, "table.md, table.csv and others")
    options_of.add_argument("--report", action="store_true", help="write report.html, too, the table with its figures")
    options = options_of.parse_args(arguments)
    try:
        runs, used = chosen(options)
        made = build(options, runs, used)
        paths = formats.write(made, options.output, options.format)
        with tempfile.TemporaryDirectory() as folder:
            attach.to_sweeps(used, options, formats.write(made, Path(folder), [*DEFAULT, "html"]))
        if options.report:
            from analysis import html_report  # with matplotlib, which takes seconds

            paths.append(html_report.write(options, runs, used))
    except EdkdError as error:
        print(f"analysis: {error}", file=sys.stderr)
        return 1
    console = Console()
    report.show(made, console)
    console.print(f"\nSaved in {', '.join(map(str, paths))}", highlight=False, markup=False, soft_wrap=True)
    return 0


def build(options: argparse.Namespace, runs: pd.DataFrame, used: pd.DataFrame) -> report.Report:
    """The table of the `used` ones among `runs`, as `chosen` returns them. Raises EdkdError."""
    dataset, recipe = used["dataset"].iloc[0], used["recipe"].iloc[0]
    shape = tables.columns(used, options.pairs)
    rows, tidy = tables.rows_of(used), load.tidy(used)
    long = numbers.long_table(used, tidy, [(a.method, b.method) for a, b in tables.contrasts(rows)])
    long = long if options.metric is None else long[long["kind"] == options.metric]
    beside = literature.comparable(used)
    grids = tables.grids(long, shape, rows, tidy, beside=beside)
    bold = any(entry.bold for grid in grids for _, entries in grid.rows for entry in entries)
    reading = (*report.READING, *(report.BOLD if bold else ()), *(report.BESIDE if beside else ()))
    if not beside and dataset.split("-")[0] == literature.FULL_DATASET:
        grids.append(tables.reference_grid(shape))
    return report.Report(
        title=report.title(dataset, used),
        facts=report.facts(used, dataset, recipe),
        grids=tuple(grids),
        left_out=(*missing.left_out(runs, used), *tables.taught_apart(used), *tables.no_common_seed(used)),
        notes=report.notes(used, shape, reading),
        command=command("analysis", options, dataset, recipe),
        long=long,
        used=used,
    )


if __name__ == "__main__":
    raise SystemExit(main())

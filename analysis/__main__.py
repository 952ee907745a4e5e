"""`python -m analysis`: rebuild the benchmark table from the MLflow store and the packed results."""

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich.console import Console

from analysis import literature, load, report, tables
from edkd.errors import EdkdError


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the table; returns the exit code. What the user can mend is said on standard error, without a traceback."""
    options = parser("analysis", __doc__, "table.md and table.csv").parse_args(arguments)
    try:
        made = build(options)
        paths = report.write(made, options.output)
    except EdkdError as error:
        print(f"analysis: {error}", file=sys.stderr)
        return 1
    console = Console()
    report.show(made, console)
    console.print(f"\nSaved in {paths[0]} and {paths[1]}", highlight=False, markup=False, soft_wrap=True)
    page = made.command.replace("-m analysis", "-m analysis.html_report", 1)
    console.print(f"As one page with figures: {page}", highlight=False, markup=False, soft_wrap=True)
    return 0


def build(options: argparse.Namespace) -> report.Report:
    """Read, choose and aggregate the runs that `options` ask for. Raises EdkdError."""
    runs, used = chosen(options)
    dataset, recipe = used["dataset"].iloc[0], used["recipe"].iloc[0]
    shape = tables.columns(used, options.pairs)
    long = tables.long_table(used)
    beside = literature.comparable(used)
    grids = tables.grids(long, shape, tables.methods(used), beside=beside)
    if not beside and dataset.split("-")[0] == literature.FULL_DATASET:
        grids.append(tables.reference_grid(shape))
    return report.Report(
        title=report.title(dataset, used),
        facts=facts(used, dataset, recipe),
        grids=tuple(grids),
        left_out=(*load.left_out(runs, used), *tables.taught_apart(used)),
        notes=(
            *(literature.NOTES if dataset.split("-")[0] == literature.FULL_DATASET else ()),
            *report.READING,
            *(report.BESIDE if beside else ()),
        ),
        command=command("analysis", options, dataset, recipe),
        long=long,
    )


def chosen(options: argparse.Namespace) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The runs of the table's data set, recipe and pairs, and those of them that are in its numbers."""
    runs = load.read(options.uri, options.experiment, options.results)
    runs = load.choose(runs, dataset=options.dataset, recipe=options.recipe)
    runs = load.of_columns(runs, pairs=options.pairs)
    used = load.one_cell_each(runs, picked=dict(options.cell), latest=options.latest_cell)
    if used["alone"].all():
        raise EdkdError(f"no finished run of {', '.join(options.pairs)}; {load.HOW_TO_RUN}")
    return runs, used


def facts(used: pd.DataFrame, dataset: str, recipe: str) -> tuple[str, ...]:
    """What the table is of, a line each."""
    distilled = used[~used["alone"]]
    seeds = ", ".join(str(seed) for seed in sorted(distilled["seed"].unique()))
    counted = f"{len(distilled)} distilled students, {len(used) - len(distilled)} students alone"
    if used["packed"].any():
        counted += f"; {used['packed'].sum()} of them from packed journals"
    return (
        f"data set: {dataset}, recipe: {recipe}",
        f"runs: {counted}; seeds: {seeds}",
        f"git commits: {', '.join(tables.commits(used))}",
    )


def command(module: str, options: argparse.Namespace, dataset: str, recipe: str) -> str:
    """The command by which `module` reads the same runs again from the same store, without the URI's password."""
    words = ["python", "-m", module, "--uri", re.sub("//[^/@]*@", "//...@", options.uri)]
    words += ["--results", str(options.results)] if options.results != load.RESULTS else []
    words += ["--experiment", options.experiment, "--dataset", dataset, "--recipe", recipe]
    words += ["--pairs", ",".join(options.pairs)] if options.pairs else []
    words += [word for (pair, method), cell in options.cell for word in ("--cell", f"{pair}:{method}={cell}")]
    words += ["--latest-cell"] if options.latest_cell else []
    return shlex.join([*words, "--output", str(options.output)])


def _cell(text: str) -> tuple[tuple[str, str], str]:
    match = re.fullmatch(r"([^:=]+):([^:=]+)=(\w+)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not PAIR:DISTILLER=HASH, e.g. vgg13-vgg8:kd=1a2b3c4d")
    return (match[1], match[2]), match[3]


def _pairs(text: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    if not names or any("-" not in name for name in names):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of pairs, e.g. vgg13-vgg8,wrn_40_2-wrn_16_2")
    return names


def parser(module: str, description: str | None, writes: str) -> argparse.ArgumentParser:
    """The options that say which runs are read, and where `module` puts what it `writes`."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("--uri", default="sqlite:///outputs/mlflow.db", help="MLflow store (default: %(default)s)")
    parser.add_argument("--experiment", default="edkd", help="MLflow experiment (default: %(default)s)")
    parser.add_argument(
        "--results",
        type=Path,
        default=load.RESULTS,
        metavar="DIR",
        help="packed journals that count beside the store's runs (default: those that came with the code)",
    )
    parser.add_argument("--dataset", metavar="KEY", help="data set of the table, where the store has several")
    parser.add_argument("--recipe", metavar="ID", help="recipe of the table, where the store has several")
    parser.add_argument("--pairs", type=_pairs, metavar="A,B", help="only these pairs, as columns in this order")
    parser.add_argument(
        "--cell",
        type=_cell,
        action="append",
        default=[],
        metavar="PAIR:DISTILLER=HASH",
        help="which configuration a cell shows, where runs of several compete for it (may be repeated)",
    )
    parser.add_argument(
        "--latest-cell", action="store_true", help="in such cells take the configuration of the newest run"
    )
    parser.add_argument("--output", type=Path, default=Path("outputs"), metavar="DIR", help=f"where {writes} go")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())

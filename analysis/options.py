"""The options of the table and of the report, the runs that they choose, and the command that repeats them."""

import argparse
import re
import shlex
import sys
from pathlib import Path

import pandas as pd
import yaml

from analysis import formats, load, numbers
from edkd import CONF
from edkd.console import Parser
from edkd.errors import EdkdError
from edkd.rundir import results

DEFAULT = ["markdown", "csv"]
OUTPUT = Path("outputs")
_NO_METRIC = {
    "best": "every run here chose its best epoch on held-out images; see --metric selected",
    "selected": "no run here chose its best epoch on held-out images (dataset.validation=0.1); see --metric best",
}


def store_of(options: argparse.Namespace) -> str:
    """The URI of the MLflow store: the one that --uri names, or that of the output folder."""
    return options.uri or f"sqlite:///{options.output / 'mlflow.db'}"


def results_of(options: argparse.Namespace) -> Path:
    """The folder of packed journals: the one that --results names, or that of the code."""
    return options.results or load.RESULTS


def chosen(options: argparse.Namespace) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The runs of the table's data set, recipe and pairs, and the subset that enters its numbers."""
    damaged = load.damaged(store_of(options))
    for line in damaged.values():
        print(f"analysis: {line}", file=sys.stderr)
    if options.results is not None and not results.find(options.results):
        if not options.results.is_dir():
            raise EdkdError(f"--results {options.results}: there is no such folder")
        print(f"analysis: no packed runs in {options.results}", file=sys.stderr)
    packed = results_of(options)
    suffice = options.uri is None and (options.results is not None or options.output == OUTPUT)
    there = load.read(store_of(options), options.experiment, packed, damaged, suffice=suffice)
    of_recipe, others = load.choose(there, dataset=options.dataset, recipe=options.recipe)
    if others:
        dataset, recipe = of_recipe["dataset"].iloc[0], of_recipe["recipe"].iloc[0]
        head = f"analysis: this is of {dataset} by {recipe}; there are also (with make: ARGS='--…'):"
        print("\n".join([head, *others]), file=sys.stderr)
    runs = load.of_columns(of_recipe, pairs=options.pairs)
    runs = load.limited(runs, seeds=options.seeds, methods=options.methods)
    used = load.one_cell_each(
        runs, picked=dict(options.cell), latest=options.latest_cell, rows=options.rows, columns=options.columns or ()
    )
    if used["alone"].all():
        asked = [*(options.pairs or ()), *(options.methods or ()), *(f"seed {seed}" for seed in options.seeds or ())]
        done = of_recipe[load.finished(of_recipe) & ~of_recipe["alone"]]
        known = "; ".join(
            f"{key} {', '.join(map(str, sorted(set(done[key]))))}" for key in ("pair", "distiller", "seed")
        )
        raise EdkdError(f"no finished run of {', '.join(asked)}; there are some of {known}")
    if used["packed"].all():
        own = there[~there["packed"]]
        none = "; the store has runs, but no finished student with a teacher"
        distilled = load.finished(own) & ~own["alone"]
        line = f"all runs of this table are packed ones, from {packed}"
        print(f"analysis: {line}{none if len(own) and not distilled.any() else ''}", file=sys.stderr)
    if options.metric not in (None, *load.tidy(used)["protocol"].unique()):
        raise EdkdError(f"--metric {options.metric}: {_NO_METRIC[options.metric]}")
    return runs, used


def command(module: str, options: argparse.Namespace, dataset: str, recipe: str) -> str:
    """The command by which `module` reads the same runs again from the same store, without the URI's password."""
    words = ["python", "-m", module]
    words += ["--uri", re.sub("//[^/@]*@", "//...@", options.uri)] if options.uri else []
    words += ["--results", str(options.results)] if options.results else []
    words += ["--experiment", options.experiment, "--dataset", dataset, "--recipe", recipe]
    words += ["--pairs", ",".join(options.pairs)] if options.pairs else []
    words += ["--methods", ",".join(options.methods)] if options.methods else []
    words += ["--seeds", ",".join(map(str, options.seeds))] if options.seeds else []
    words += ["--metric", options.metric] if options.metric else []
    words += ["--format", ",".join(options.format)] if options.format != DEFAULT else []
    words += [word for (pair, method), cell in options.cell for word in ("--cell", f"{pair}:{method}={cell}")]
    words += ["--latest-cell"] if options.latest_cell else []
    words += ["--rows", ",".join(options.rows)] if options.rows else []
    words += ["--columns", ",".join(options.columns)] if options.columns else []
    return shlex.join([*words, "--output", str(options.output)])


def _cell(text: str) -> tuple[tuple[str, str], str]:
    match = re.fullmatch(r"([^:=]+):([^:=]+)=(\w+)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not PAIR:DISTILLER=HASH, e.g. vgg13-vgg8:kd=1a2b3c4d")
    return (match[1], match[2]), match[3]


def _pairs(text: str) -> list[str]:
    """The named pairs; a file of conf/pair, such as vgg13, stands for the pairs that it lists."""
    files = {path.stem: path for path in (CONF / "pair").glob("*.yaml")}
    pairs: list[str] = []
    for name in _names(text):
        if "-" not in name and name not in files:
            lists = ", ".join(sorted(each for each in files if "-" not in each))
            raise argparse.ArgumentTypeError(f"{name!r} is neither a pair, such as vgg13-vgg8, nor a list: {lists}")
        pairs += yaml.safe_load(files[name].read_bytes()).get("pairs", [name]) if name in files else [name]
    return list(dict.fromkeys(pairs))


def _names(text: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    if not names:
        raise argparse.ArgumentTypeError(f"{text!r} names nothing; give a list such as a,b")
    return names


def _seeds(text: str) -> list[int]:
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of seeds, e.g. 0,1,2") from None


def _formats(text: str) -> list[str]:
    names = text.split(",")
    if not set(names) <= formats.FORMATS.keys():
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of formats; there are: {', '.join(formats.FORMATS)}")
    return names


def parser(module: str, description: str | None, writes: str) -> Parser:
    """The options that say which runs are read, and where `module` puts what it `writes`."""
    parser = Parser(prog=f"python -m {module}", description=description)
    parser.add_argument("--uri", help="MLflow store (default: mlflow.db in the --output folder)")
    parser.add_argument("--experiment", default="edkd", help="MLflow experiment (default: %(default)s)")
    parser.add_argument(
        "--results",
        type=Path,
        metavar="DIR",
        help="packed journals that count beside the store's runs (default: those that came with the code)",
    )
    parser.add_argument("--dataset", metavar="KEY", help="data set of the table (default: that of the newest run)")
    parser.add_argument(
        "--recipe", metavar="ID", help="recipe of the table, or how it begins, as 240ep (default: as --dataset)"
    )
    parser.add_argument(
        "--pairs", type=_pairs, metavar="A,B", help="only these pairs (or vgg13, all, …), in this order"
    )
    parser.add_argument("--methods", type=_names, metavar="A,B", help="only these distillers, e.g. kd,dkd,edkd")
    parser.add_argument("--seeds", type=_seeds, metavar="A,B", help="only runs of these seeds")
    parser.add_argument(
        "--metric",
        choices=numbers.KINDS,
        help="only the last epoch, the best one on the test set, or that selected on held-out images (default: all)",
    )
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
    parser.add_argument(
        "--rows",
        type=_names,
        metavar="PARAMETER,…",
        help="a row for each value of these, e.g. distiller.temperature (default: what differs in a method's runs)",
    )
    parser.add_argument(
        "--columns",
        type=_names,
        metavar="PARAMETER,…",
        help="a column for each pair and each value of these",
    )
    parser.add_argument(
        "--format",
        type=_formats,
        default=DEFAULT,
        metavar="A,B",
        help=f"files to write, of {', '.join(formats.FORMATS)} (default: {','.join(DEFAULT)}); those there are renewed",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=OUTPUT,
        metavar="DIR",
        help=f"folder of the runs, and of {writes}; default: outputs",
    )
    return parser

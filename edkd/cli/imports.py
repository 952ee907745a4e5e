"""The command `edkd import`: results of other code bases beside ours."""

import argparse
from pathlib import Path
from typing import Any

from edkd.cli.output import add_output
from edkd.cli.teachers import add_dataset, of_dataset
from edkd.console import counted
from edkd.errors import EdkdError

_ABOUT = {
    "mdistiller": "folders METHOD,TEACHER,STUDENT with a worklog.txt, or such a file",
    "repdistiller": "folders S:…_T:…_cifar100_METHOD_r:…_a:…_b:…_TRIAL with checkpoints",
}


def add_to(commands: Any) -> None:
    """Add the command to the parser's subcommands."""
    importing = commands.add_parser("import", help="results of other code bases, for tables and curves beside ours")
    origins = importing.add_subparsers(required=True, metavar="CODE")
    for origin, holds in _ABOUT.items():
        parser = origins.add_parser(
            origin,
            help=f"{origin}'s output folders",
            description=f"Write the finished runs of {origin} below PATH ({holds}) as journals into the output folder, "
            "each once. Their recipe is that of the data set, the schedule and KEY=VALUE, as for a run of ours; "
            "what a file states of its recipe must agree. Unfinished runs are listed.",
        )
        parser.add_argument("paths", nargs="+", metavar="PATH", help=f"searched for {holds}")
        add_output(parser)
        add_dataset(parser)
        parser.set_defaults(act=_import, origin=origin)


def _import(args: argparse.Namespace) -> None:
    from edkd import importers

    # Paths and overrides may come in any order: an argument with a "=" that is no existing file is an override.
    overrides = [*args.overrides, *(word for word in args.paths if "=" in word and not Path(word).exists())]
    paths = [Path(word) for word in args.paths if word not in overrides]
    importer = getattr(importers, args.origin)
    done = importers.record(importer, paths, args.output, [*of_dataset(args), *overrides])
    nothing = not done.written and not done.there
    if nothing and len(done.left_out) == 1:
        raise EdkdError(f"nothing was imported: {done.left_out[0]}")
    for line in done.notes:
        print(f"note: {line}")
    for line in done.left_out:
        print(f"left out: {line}")
    for run_dir in done.written:
        print(run_dir)
    numbers = f"{counted(len(done.written), 'run')} imported, {len(done.there)} there already, {len(done.left_out)}"
    print(f"{numbers} left out; in {args.output}")
    if nothing:
        raise EdkdError("nothing was imported")
    if done.written:
        table = "make table" if args.output == Path("outputs") else f"make table ARGS='--output {args.output}'"
        print(f"next: edkd sync --output {args.output}, then {table}")

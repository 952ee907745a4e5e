"""The commands of `edkd` that make results travel."""

import argparse
from pathlib import Path
from typing import Any

from edkd.console import counted
from edkd.errors import EdkdError


def add_to(commands: Any) -> None:
    """Add the commands to the parser's subcommands."""
    _add_results(commands.add_parser("results", help="results that a repository can hold"))


def _add_results(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    packing = actions.add_parser(
        "pack", help="write the journals of finished runs into a folder, one small file a run, for `make table`"
    )
    packing.add_argument("--output", type=Path, default=Path("outputs"), metavar="DIR", help="default: outputs")
    packing.add_argument("-d", "--dataset", default="cifar100", metavar="KEY", help="data set; default cifar100")
    packing.add_argument("--to", type=Path, metavar="DIR", help="default: analysis/results/ and the data set")
    packing.add_argument("--all", action="store_true", help="also runs that are not finished")
    packing.set_defaults(act=_pack_results)
    unpacking = actions.add_parser(
        "unpack", help="give an output folder the journals of packed runs, so that sweeps count them as finished"
    )
    unpacking.add_argument("--output", type=Path, default=Path("outputs"), metavar="DIR", help="default: outputs")
    unpacking.add_argument("folder", type=Path, metavar="DIR", help="such as analysis/results/cifar100")
    unpacking.set_defaults(act=_unpack_results)


def _pack_results(args: argparse.Namespace) -> None:
    from edkd.rundir import results

    to = args.to or Path("analysis/results") / args.dataset
    done = results.pack(args.output, to, dataset=args.dataset, everything=args.all)
    for line in done.reasons():
        print(f"left out: {line}")
    print(done.line(to))
    if not done.written and not done.unchanged:
        raise EdkdError(f"nothing to pack: {args.output} has no finished run of {args.dataset} that can be packed")


def _unpack_results(args: argparse.Namespace) -> None:
    from edkd.rundir import results

    if not results.find(args.folder):
        raise EdkdError(f"{args.folder} has no packed runs (*{results.SUFFIX}); `edkd results pack` writes them")
    count = results.unpack(args.folder, args.output)
    print(f"{counted(count, 'run')} of {args.folder} now in {args.output}, journals without weights")

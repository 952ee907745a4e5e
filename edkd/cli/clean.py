"""The command `edkd clean`: removes files that are needed no more."""

import argparse
from pathlib import Path
from typing import Any

from edkd.console import counted, size


def add_to(commands: Any) -> None:
    """Add the command to the parser's subcommands."""
    parser = commands.add_parser(
        "clean",
        help="remove what is needed no more: checkpoints of finished runs, unused teacher caches",
        description="Remove checkpoints of finished runs (last.pt and best.pt stay), files that a killed process did "
        "not finish writing, and teacher caches whose teacher is no longer in the store. "
        "Runs that a process works on, checkpoints of unfinished runs and caches in use stay. With SWEEP, only files "
        "of its runs.",
    )
    parser.add_argument("sweep", nargs="?", metavar="SWEEP", help="id of a sweep; default: all runs, and the teachers")
    parser.add_argument("--dry-run", action="store_true", help="list the files, and remove nothing")
    parser.add_argument("--output", type=Path, default=Path("outputs"), metavar="DIR", help="default: outputs")
    parser.set_defaults(act=_clean)


def _clean(args: argparse.Namespace) -> None:
    from edkd.status.clean import find_leftovers

    sizes: dict[str, list[int]] = {}  # by kind
    for leftover in find_leftovers(args.output, args.sweep):
        taken = leftover.size
        if args.dry_run:
            print(f"{leftover.path}  {size(taken)}")
        elif not leftover.remove():
            continue
        sizes.setdefault(leftover.kind, []).append(taken)
    for kind, found in sizes.items():
        print(f"{kind}: {counted(len(found), 'file')}, {size(sum(found))}")
    total = [taken for found in sizes.values() for taken in found]
    if not total:
        print(f"nothing to remove in {args.output}")
        return
    print(f"{'would remove' if args.dry_run else 'removed'} {counted(len(total), 'file')}, {size(sum(total))}")

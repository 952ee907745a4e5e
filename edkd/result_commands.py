"""The commands of `edkd` that make results and bring them home: family, results."""

import argparse
from pathlib import Path
from typing import Any

from edkd.errors import EdkdError


def add_to(commands: Any) -> None:
    """Add the commands to the parser's subcommands."""
    _add_family(commands.add_parser("family", help="train a family: its teacher, its cache, all its pairs"))
    _add_results(commands.add_parser("results", help="results that a repository can hold"))


def _add_results(parser: argparse.ArgumentParser) -> None:
    packing = parser.add_subparsers(required=True, metavar="ACTION").add_parser(
        "pack", help="write the journals of finished runs into a folder, one small file a run, for `make table`"
    )
    packing.add_argument("--output", type=Path, default=Path("outputs"), metavar="DIR", help="default: outputs")
    packing.add_argument("-d", "--dataset", default="cifar100", metavar="KEY", help="data set; default cifar100")
    packing.add_argument("--to", type=Path, metavar="DIR", help="default: analysis/results/ and the data set")
    packing.add_argument("--all", action="store_true", help="also runs that are not finished")
    packing.set_defaults(act=_pack_results)


def _add_family(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Train a family of the benchmark: its teacher, that teacher's cache, all its pairs with KD, DKD and EDKD, and "
        "the students alone. Called again it continues. Exit codes: 0 all done; 1 an error, or a run failed; "
        "3 unfinished."
    )
    parser.add_argument("name", metavar="NAME", help="teacher: vgg13, wrn_40_2, resnet32x4 or resnet50")
    parser.add_argument("--minutes", type=float, metavar="M", help="stop in time, with everything kept")
    parser.add_argument("--jobs", type=int, default=1, metavar="K", help="students side by side; default 1")
    parser.add_argument("--pack", type=Path, metavar="DIR", help="pack finished journals there, and take them from it")
    parser.add_argument(
        "--accept-teacher", action="store_true", help="even if it is more than a point off the published one"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the steps and their estimates, and stop")
    parser.add_argument("--measure", action="store_true", help="with --dry-run: time some steps for that")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="such as seed=0,1 dataset.root=/data engine.precision=bf16"
    )
    parser.set_defaults(act=_family)


def _pack_results(given: argparse.Namespace) -> None:
    from edkd import results

    to = given.to or Path("analysis/results") / given.dataset
    done = results.pack(given.output, to, dataset=given.dataset, everything=given.all)
    for line in done.reasons():
        print(f"left out: {line}")
    print(done.line(to))
    if not done.written and not done.unchanged:
        raise EdkdError(f"nothing to pack: {given.output} has no finished run of {given.dataset} that can be packed")


def _family(given: argparse.Namespace) -> None:
    from edkd import family

    values = {name: value for name, value in vars(given).items() if name != "act"}
    raise SystemExit(family.run(family.Options(**values)))

"""The commands of `edkd` about the teacher store."""

import argparse
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edkd.cli.output import add_output
from edkd.console import number, print_lines, size, stdout
from edkd.errors import EdkdError

if TYPE_CHECKING:
    from edkd.teachers.store import Entry


def add_to(commands: Any) -> None:
    """Add the commands to the parser's subcommands."""
    stored = commands.add_parser("teachers", help="the teacher store").add_subparsers(required=True, metavar="ACTION")
    listing = stored.add_parser("list", help="all stored teachers, each file verified")
    add_output(listing)
    listing.set_defaults(act=_list_teachers)
    importing = stored.add_parser(
        "import",
        help="make a checkpoint file a teacher, or those of an archive, after measuring accuracies",
        usage="edkd teachers import [options] (NAME FILE | ARCHIVE) [KEY=VALUE ...]",
    )
    importing.add_argument(
        "name", metavar="NAME", help="network: vgg13, torchvision_resnet34; or a tar file of NETWORK_vanilla/"
    )
    importing.add_argument("file", nargs="?", help="checkpoint: ours, the field's or torchvision's state_dict")
    importing.add_argument("--replace", action="store_true", help="replace the teacher of that name")
    importing.add_argument("--force", action="store_true", help="also a network that is no better than chance")
    add_configuration(importing)
    importing.set_defaults(act=_import_teacher)
    caching = stored.add_parser("cache", help="compute teachers' logits ahead of the runs that will use them")
    caching.add_argument("names", nargs="+", metavar="NAME", help="teachers, such as vgg13")
    caching.add_argument("--seeds", nargs="+", default=[], metavar="N", help="seeds of the runs; default 0")
    caching.add_argument("--epochs", metavar="N", help="epochs of the runs; default: the schedule's")
    caching.add_argument("--all", action="store_true", help="every view of every image, whatever the seeds")
    add_configuration(caching)
    caching.set_defaults(act=_cache_teachers)


def add_dataset(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """Add the options that choose and configure the data set."""
    said = default or "the experiment's, or cifar100"
    parser.add_argument("-d", "--dataset", default=default, help=f"data set (see conf/dataset); default: {said}")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="more of the configuration, such as dataset.root=/data"
    )


def add_configuration(parser: argparse.ArgumentParser) -> None:
    """Add the options of `add_dataset`, and the folders of a run's configuration that other commands have, too."""
    add_dataset(parser)
    parser.add_argument("--config-dir", metavar="DIR", help="folder with options of your own, as for launch.py")
    parser.add_argument("--output", dest="in_output", metavar="DIR", help="as output=DIR; default: outputs")


def of_dataset(args: argparse.Namespace) -> list[str]:
    """The override that chooses the data set."""
    return [] if args.dataset is None else [f"dataset={args.dataset}"]


def _list_teachers(args: argparse.Namespace) -> None:
    from rich.table import Table

    from edkd.teachers import store, tables

    entries = store.listing(args.output / "teachers")
    if not entries:
        print(
            f"no teachers in {args.output / 'teachers'}; sweeps train what they need, `edkd teachers import` adds more"
        )
    table = Table("name", "data", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for column in ("top-1 %", "epochs"):
        table.add_column(column, justify="right")
    for column in ("recipe", "origin", "cache"):
        table.add_column(column, overflow="fold")
    damaged = []
    for entry in entries:
        try:
            store.verify(entry)
        except EdkdError as error:
            damaged.append(f"{entry.dataset}/{entry.name}: {error}")
            continue
        table.add_row(
            entry.name,
            entry.dataset,
            number((entry.test or {}).get("top1"), 2),
            str(entry.epochs or ""),
            entry.recipe or "",
            f"run {entry.id[4:12]}" if entry.id.startswith("run:") else entry.source.removeprefix(f"{Path.cwd()}/"),
            ", ".join(size(path.stat().st_blocks * 512) for path in tables.of(entry)),
        )
    if table.rows:
        print_lines(stdout(), table)
    for line in damaged:
        print(line)


def _import_teacher(args: argparse.Namespace) -> None:
    from edkd.config.compose import chosen, compose_settings
    from edkd.runs.teaching import import_teacher

    if args.file is None or ("=" in args.file and not Path(args.file).exists()):
        args.overrides = [*([args.file] if args.file else []), *args.overrides]
        _import_archive(args)
        return
    # The network is composed as a student, but its overrides call it teacher: torchvision FILE teacher.arch=resnet34.
    given = [re.sub(r"^(\+*)teacher\.", r"\1student.", override) for override in args.overrides]
    settings = compose_settings([*of_dataset(args), *chosen("student", args.name), *given])
    entry = import_teacher(settings, Path(args.file), replace=args.replace, force=args.force)
    print(f"{_measured(entry)}, in {entry.path}")


def _import_archive(args: argparse.Namespace) -> None:
    from edkd import importers
    from edkd.config.compose import compose_settings
    from edkd.runs.teaching import import_teacher

    path = Path(args.name)
    if not path.is_file():
        raise EdkdError(f"{path} is no file: name an archive alone, or a network and its checkpoint (NAME FILE)")
    imported = 0
    with tempfile.TemporaryDirectory() as folder:
        for member, found in importers.archive.unpack(path, Path(folder)):
            try:
                if isinstance(found, EdkdError):
                    raise found
                settings = compose_settings([*of_dataset(args), f"student={found.name}", *args.overrides])
                source = f"{path.resolve()}:{member}"
                entry = import_teacher(settings, found.file, replace=args.replace, force=args.force, source=source)
            except EdkdError as error:
                print(f"left out: {member}: {str(error).replace(folder, path.name)}")
                continue
            imported += 1
            print(_measured(entry))
    if not imported:
        raise EdkdError(f"{path} has no checkpoint that became a teacher")


def _measured(entry: "Entry") -> str:
    """An imported teacher's accuracy on the test set, beside the published one of CIFAR-100."""
    from edkd.runs.teaching import published

    assert entry.test is not None
    top1, expected = entry.test["top1"], published(entry.name) if entry.dataset == "cifar100" else None
    beside = f", published {expected:.2f} % ({top1 - expected:+.2f})" if expected and top1 is not None else ""
    return f"{entry.name} of {entry.dataset}: top-1 {number(top1, 2)} %{beside}, {entry.id}"


def _cache_teachers(args: argparse.Namespace) -> None:
    from edkd.config.compose import chosen, compose_settings
    from edkd.runs.teacher_source import fill

    # Names, seeds and overrides may come in any order: an argument with a "=" is an override.
    words = [*args.names, *args.seeds, *args.overrides]
    seeds = _seeds([*args.seeds, *(word for word in words if word.startswith("seed="))])
    if args.all and (seeds or args.epochs):
        raise EdkdError("--all means every view of every image: it goes with neither --seeds nor --epochs")
    overrides = [*of_dataset(args), *(word for word in words if "=" in word and not word.startswith("seed="))]
    overrides += [f"schedule.epochs={args.epochs}"] if args.epochs else []
    names = [word for word in args.names if "=" not in word]
    if not names:
        raise EdkdError("no teacher named; example: edkd teachers cache vgg13 --seeds 0 1 2")
    tables = [compose_settings([*chosen("teacher", name), *overrides]) for name in names]
    fill(tables, None if args.all else seeds or [0])


def _seeds(words: Sequence[str]) -> list[int]:
    """The seeds among `words`, each once: numbers, or as in seed=0,1; other KEY=VALUEs are skipped."""
    named = [word.removeprefix("seed=") for word in words if "=" not in word or word.startswith("seed=")]
    seeds = [seed for name in named for seed in name.split(",")]
    for seed in seeds:
        if not seed.isdecimal() or int(seed) >= 2**32:
            raise EdkdError(f"seed {seed}: must be a whole number, 0 or more, and below 2^32; example: --seeds 0 1 2")
    return [int(seed) for seed in dict.fromkeys(seeds)]

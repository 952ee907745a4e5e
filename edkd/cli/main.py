"""The `edkd` command: everything for runs and teachers except training them."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from edkd import __version__
from edkd.cli import completion, evaluate, export, figures, imports, output, runs, teachers
from edkd.cli.teachers import add_dataset
from edkd.console import Parser, fail
from edkd.errors import EdkdError

_OF_RUNS = ("status", "logs", "retry", "clean", "sync")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `edkd` and `python -m edkd.cli.main`: exits with 0, or with 1 and one line after an error."""
    parser = _parser()
    completion.answer(parser)
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] and arguments[0] in _OF_RUNS:  # output=DIR is accepted, as in launch.py
        arguments = [f"--{word}" if word.startswith("output=") else word for word in arguments]
    # Overrides may stand anywhere among the options, which argparse alone does not allow below a subcommand.
    args, surplus = parser.parse_known_args(arguments)
    misplaced = [word for word in surplus if word.startswith("-") or "=" not in word or "overrides" not in args]
    if misplaced:
        parser.error(f"unrecognized arguments: {' '.join(misplaced)}")
    if surplus:
        args.overrides += surplus
    if getattr(args, "in_output", None) is not None:
        from edkd.config.compose import quoted

        args.overrides.append(f"output={quoted(args.in_output)}")
    try:
        try:
            args.act(args)
        finally:
            sys.stdout.flush()
    except EdkdError as error:
        fail(str(error))
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:  # the reader of the output, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python would fail again as it ends
        raise SystemExit(141) from None


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="edkd", description="Knowledge-distillation experiments. Training: launch.py")
    parser.add_argument("--version", action="version", version=f"edkd {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    for group in (evaluate, teachers, runs, output, imports, figures, export):
        group.add_to(commands)
    _add_bench(commands.add_parser("bench", help="how fast this machine trains, against the plain loop"))
    return parser


def _add_bench(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group()
    for group, name, words in (
        (parser, "pairs", "TEACHER-STUDENT,… (default: the seven)"),
        (parser, "methods", "kd,dkd,edkd; all: what a step of every method costs"),
        (what, "modes", "such as plain,warm"),
    ):
        group.add_argument(f"--{name}", type=lambda text: text.split(","), metavar="NAMES", help=words)
    what.add_argument("--streaming", action="store_true", help="loader and step, alone and together, from image files")
    what.add_argument("--devices", type=int, metavar="N", help="a run in N processes beside the same run in one")
    what.add_argument("--contention", action="store_true", help="threads beside processes that hold the cores")
    parser.add_argument("--repetitions", type=int, metavar="N", help="of each mode, at most; their median counts")
    parser.add_argument("--steps", type=int, metavar="N", help="in one repetition")
    parser.add_argument("--seconds", type=float, metavar="S", help="for all steps; it limits the repetitions")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads; default: all cores")
    parser.add_argument("--quick", action="store_true", help="two minutes: EDKD alone, few repetitions")
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/bench"), metavar="DIR", help="for CSV and Markdown"
    )
    add_dataset(parser, default="cifar100")
    parser.set_defaults(act=_bench)


def _bench(args: argparse.Namespace) -> None:
    from edkd.bench.main import run

    values = {name: value for name, value in vars(args).items() if name != "act"}
    for path in run(**values):
        print(path)


if __name__ == "__main__":
    main()

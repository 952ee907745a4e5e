"""The command `edkd figures`: figures that compare a student with its teacher."""

import argparse
import subprocess
import sys
from typing import Any

from edkd.cli.output import add_output
from edkd.errors import EdkdError

_KINDS = {
    "tsne": "features of student and teacher on the test images, in two dimensions by t-SNE",
    "correlation": "difference of student's and teacher's correlations between the logits of classes",
}


def add_to(commands: Any) -> None:
    """Add the command to the parser's subcommands."""
    kinds = commands.add_parser("figures", help="figures of one run's student and teacher").add_subparsers(
        required=True, metavar="KIND"
    )
    for kind, what in _KINDS.items():
        parser = kinds.add_parser(
            kind, help=what, description=f"Draw {what}: PNG and SVG, and the numbers, in DIR/figures/."
        )
        parser.add_argument(
            "run", metavar="RUN", help="hash (or its beginning), name (or its end) or directory of a run"
        )
        add_output(parser)
        parser.set_defaults(act=_draw, kind=kind)


def _draw(args: argparse.Namespace) -> None:
    from edkd.runs import representations
    from edkd.status.select import find_run

    run_dir = find_run(args.output, args.run)
    file = args.output / "figures" / f"{run_dir.parent.name}-{run_dir.name}-{args.kind}.npz"
    found = representations.represent(run_dir, args.output)
    getattr(representations, args.kind)(found, file)
    # In a separate process: `analysis` draws, and this package does not import it.
    command = [sys.executable, "-m", "analysis.figures", args.kind, str(file)]
    drawn = subprocess.run(command, capture_output=True, text=True)
    if drawn.returncode:
        *_, last = drawn.stderr.strip().splitlines() or ["without a message"]
        raise EdkdError(f"{file} could not be drawn: {last}")
    print(drawn.stdout, end="")
    print(file)

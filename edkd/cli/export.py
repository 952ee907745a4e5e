"""The command `edkd export`: a run's student as a file for other programs."""

import argparse
from pathlib import Path
from typing import Any

from edkd.cli.output import add_output


def add_to(commands: Any) -> None:
    """Add the command to the parser's subcommands."""
    parser = commands.add_parser(
        "export",
        help="a run's student as ONNX, TorchScript, safetensors or an MLflow model",
        description="Write a run's student for other programs, with the preprocessing of its images in the file, "
        "loaded again and compared with the checkpoint on test images.",
    )
    parser.add_argument("run", metavar="RUN", help="hash (or its beginning), name (or its end) or directory of a run")
    parser.add_argument("--format", required=True, choices=("onnx", "torchscript", "safetensors", "mlflow"))
    parser.add_argument("--which", choices=("best", "last"), default="best", help="weights; default best")
    parser.add_argument("--int8", action="store_true", help="quantise by ONNX Runtime; prints what it costs")
    parser.add_argument("--to", type=Path, metavar="FILE", help="default: a name of the run's in DIR/exports")
    parser.add_argument("--force", action="store_true", help="replace the FILE that is there")
    add_output(parser)
    parser.set_defaults(act=_export)


def _export(args: argparse.Namespace) -> None:
    from edkd.runs.export import export
    from edkd.status.select import find_run

    run_dir = find_run(args.output, args.run)
    chosen = {"form": args.format, "which": args.which, "int8": args.int8}
    made = export(run_dir, args.output, **chosen, to=args.to, force=args.force)
    print(f"{args.which} weights of {run_dir.parent.name}/{run_dir.name}, epoch {made.epoch}")
    print(f"largest difference of a logit from the checkpoint's, on {made.images} test images: {made.difference:.2g}")
    if made.top1 is not None:
        print(f"int8: top-1 {made.top1[0]:.2f} % before, {made.top1[1]:.2f} % after, on the test set")
    print(made.path)

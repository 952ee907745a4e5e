"""The command `edkd evaluate`: what a network gets right."""

import argparse
import csv
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edkd.cli.teachers import add_configuration, of_dataset

_SHOWN = 5  # classes at each end
_CHOICES = ("dataset=", "experiment=")  # they choose the data set


def add_to(commands: Any) -> None:
    """Add the command to the parser's subcommands."""
    parser = commands.add_parser("evaluate", help="what a stored teacher or a checkpoint file gets right")
    parser.add_argument(
        "-m", "--model", required=True, metavar="NAME", help="network, such as vgg13 (see conf/student)"
    )
    parser.add_argument("-c", "--checkpoint", type=Path, metavar="FILE", help="weights; default: the stored teacher")
    parser.add_argument("--teacher", metavar="NAME", help="also how often it agrees with this stored teacher")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="one JSON object with the accuracy of every class")
    how.add_argument("--csv", action="store_true", help="a line of CSV for every class")
    add_configuration(parser)
    parser.set_defaults(act=_evaluate)


def _evaluate(args: argparse.Namespace) -> None:
    from edkd.config import schema
    from edkd.config.compose import chosen, compose_values
    from edkd.runs.evaluate import evaluate_network

    networks = [*chosen("student", args.model), *(chosen("teacher", args.teacher) if args.teacher else [])]
    data = of_dataset(args)
    values = compose_values(["distiller=vanilla", *data, *networks, *args.overrides])
    if args.checkpoint is not None and not data and not any(each.startswith(_CHOICES) for each in args.overrides):
        values["dataset"] = _data_of_run(args.checkpoint, values["dataset"], args.overrides)
    settings = schema.settings(values, "vanilla")
    found = evaluate_network(settings, args.checkpoint, with_teacher=args.teacher is not None)
    if not math.isfinite(found.overall["loss"]):
        line = f"edkd: {found.where}: the network's logits are not finite, so that its accuracies mean nothing"
        print(line, file=sys.stderr)
    overall, classes, pace = found.overall, found.classes, found.images / found.seconds
    teacher_name = settings.teacher.name if args.teacher else None
    if args.json:
        rows = [{**each._asdict(), "top1": None if math.isnan(each.top1) else each.top1} for each in classes]
        values = {name: value if math.isfinite(value) else None for name, value in overall.items()}
        about = {
            "model": settings.student.name,
            "dataset": settings.dataset.key,
            "weights": found.where,
            "teacher": teacher_name,
        }
        document = {**about, **values, "images": found.images, "images_per_second": pace, "classes": rows}
        print(json.dumps(document, indent=1, allow_nan=False))
        return
    if args.csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(("class", "images", "top1"))
        writer.writerows((each.name, each.images, "" if math.isnan(each.top1) else each.top1) for each in classes)
        return
    print(f"{settings.student.name} on {settings.dataset.key} ({found.where})")
    print(f"top-1 {overall['top1']:.2f} %  top-5 {overall['top5']:.2f} %  loss {overall['loss']:.4f}")
    print(f"calibration error {overall['ece']:.2f} %  {found.images:,} images, {pace:,.0f}/s")
    if args.teacher:
        agreement = f"{overall['agreement']:.2f} %  KL from it {overall['kl_teacher']:.4f}"
        print(f"agreement with {teacher_name} {agreement}")
    ranked = sorted((each for each in classes if each.images), key=lambda each: each.top1)
    for name, some in (("worst", ranked[:_SHOWN]), ("best", ranked[: -_SHOWN - 1 : -1])):
        print(f"{name} classes: {', '.join(f'{each.name} {each.top1:.1f} %' for each in some)}")


def _data_of_run(file: Path, composed: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The data set of the run in whose directory a file lies, with the values that the overrides name.

    `composed`: the data set with these overrides, which is also the one of a file that lies in no such directory.
    """
    from edkd.status.state import frozen

    of_run = frozen(file.parent)
    if "run" not in of_run:  # none, or another program's
        return composed
    data: dict[str, Any] = of_run["dataset"]
    named = {word.lstrip("+").partition("=")[0].removeprefix("dataset.") for word in overrides}
    data["source"] |= {name: value for name, value in composed["source"].items() if f"source.{name}" in named}
    for name in named & composed.keys():
        if name in data["source"]:  # which refers to it
            data["source"][name] = composed[name]
        data[name] = composed[name]
    return {**composed, **data}

"""The `edkd` command: what is done with runs and teachers besides training them."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from edkd import __version__
from edkd.console import fail
from edkd.errors import EdkdError


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `edkd` and `python -m edkd.cli`: exits with 0, or with 1 and one line after an error."""
    parser = _parser()
    # Overrides may stand anywhere among the options, which argparse alone does not allow below a subcommand.
    given, surplus = parser.parse_known_args(arguments)
    misplaced = [word for word in surplus if word.startswith("-") or "=" not in word or "overrides" not in given]
    if misplaced:
        parser.error(f"unrecognized arguments: {' '.join(misplaced)}")
    if surplus:
        given.overrides += surplus
    try:
        given.act(given)
    except EdkdError as error:
        fail(str(error))
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="edkd", description="Knowledge-distillation experiments. Training: launch.py")
    parser.add_argument("--version", action="version", version=f"edkd {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    evaluate = commands.add_parser("evaluate", help="accuracy of a stored teacher or of a checkpoint file")
    evaluate.add_argument(
        "-m", "--model", required=True, metavar="NAME", help="network, such as vgg13 (see conf/student)"
    )
    evaluate.add_argument("-c", "--checkpoint", type=Path, metavar="FILE", help="weights; default: the stored teacher")
    _add_dataset(evaluate)
    evaluate.set_defaults(act=_evaluate)

    teachers = commands.add_parser("teachers", help="the teacher store").add_subparsers(required=True, metavar="ACTION")
    listing = teachers.add_parser("list", help="all stored teachers, each file verified")
    listing.add_argument("--output", type=Path, default=Path("outputs"), metavar="DIR")
    listing.set_defaults(act=_list_teachers)
    importing = teachers.add_parser("import", help="make a checkpoint file a teacher, after measuring its accuracy")
    importing.add_argument("name", help="network, such as vgg13")
    importing.add_argument("file", type=Path, help="checkpoint: ours, or the field's {'model': state_dict}")
    importing.add_argument("--replace", action="store_true", help="replace the teacher of that name")
    _add_dataset(importing)
    importing.set_defaults(act=_import_teacher)

    sync = commands.add_parser("sync", help="bring MLflow up to date with the runs' journals")
    sync.add_argument("--output", type=Path, default=Path("outputs"), metavar="DIR")
    sync.add_argument("--uri", help="MLflow's tracking URI; default: DIR/mlflow.db")
    sync.add_argument("--experiment", default="edkd")
    sync.set_defaults(act=_sync)
    return parser


def _add_dataset(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-d", "--dataset", default="cifar100", help="data set (see conf/dataset); default cifar100")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="more of the configuration, such as dataset.root=/data"
    )


def _evaluate(given: argparse.Namespace) -> None:
    from edkd.compose import compose_settings
    from edkd.inspection import evaluate_network

    settings = compose_settings([f"dataset={given.dataset}", f"student={given.model}", *given.overrides])
    where, result = evaluate_network(settings, given.checkpoint)
    print(f"{given.model} on {settings.dataset.key} ({where})")
    print(f"top-1 {result['top1']:.2f} %  top-5 {result['top5']:.2f} %  loss {result['loss']:.4f}")


def _list_teachers(given: argparse.Namespace) -> None:
    from edkd import teachers

    entries = teachers.listing(given.output / "teachers")
    if not entries:
        print(
            f"no teachers in {given.output / 'teachers'}; sweeps train what they need, `edkd teachers import` adds more"
        )
    for entry in entries:
        try:
            teachers.verify(entry)
        except EdkdError as error:
            print(f"{entry.dataset}/{entry.name}: {error}")
            continue
        accuracy = f"top-1 {entry.test['top1']:.2f} %" if entry.test else "not measured"
        print(f"{entry.dataset}/{entry.name}: {accuracy}, {entry.id}, from {entry.source}")


def _import_teacher(given: argparse.Namespace) -> None:
    from edkd.compose import compose_settings
    from edkd.inspection import import_teacher

    settings = compose_settings([f"dataset={given.dataset}", f"student={given.name}", *given.overrides])
    entry = import_teacher(settings, given.file, replace=given.replace)
    assert entry.test is not None
    print(f"{entry.name} of {entry.dataset}: top-1 {entry.test['top1']:.2f} %, {entry.id}, in {entry.path}")


def _sync(given: argparse.Namespace) -> None:
    from edkd import tracking

    if not (given.output / "runs").is_dir():
        raise EdkdError(f"no runs in {given.output / 'runs'}; --output DIR names the folder that holds runs/")
    uri = given.uri or f"sqlite:///{given.output / 'mlflow.db'}"
    artifacts = None if given.uri else str(given.output / "mlartifacts")
    failed = 0
    for result in tracking.sync_all(given.output / "runs", uri=uri, experiment=given.experiment, artifacts=artifacts):
        if result.report is None:
            failed += 1
            print(f"{result.run_dir}: {result.error}", file=sys.stderr)
        elif result.report.created or result.report.epochs_logged or result.report.ended:
            print(f"{result.run_dir}: {result.report.epochs_logged} epochs logged")
    if failed:
        raise EdkdError(f"{failed} runs could not be brought to {uri}")


if __name__ == "__main__":
    main()

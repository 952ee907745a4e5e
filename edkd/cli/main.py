"""The `edkd` command: what is done with runs and teachers besides training them."""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from edkd import __version__
from edkd.cli import clean, results, runs
from edkd.console import counted, fail
from edkd.errors import EdkdError


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `edkd` and `python -m edkd.cli.main`: exits with 0, or with 1 and one line after an error."""
    parser = _parser()
    # Overrides may stand anywhere among the options, which argparse alone does not allow below a subcommand.
    args, surplus = parser.parse_known_args(arguments)
    misplaced = [word for word in surplus if word.startswith("-") or "=" not in word or "overrides" not in args]
    if misplaced:
        parser.error(f"unrecognized arguments: {' '.join(misplaced)}")
    if surplus:
        args.overrides += surplus
    try:
        try:
            args.act(args)
        finally:
            sys.stdout.flush()
    except EdkdError as error:
        fail(str(error))
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:  # whoever reads the output, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python would fail again as it ends
        raise SystemExit(141) from None


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

    stored = commands.add_parser("teachers", help="the teacher store").add_subparsers(required=True, metavar="ACTION")
    listing = stored.add_parser("list", help="all stored teachers, each file verified")
    listing.add_argument("--output", type=Path, default=Path("outputs"), metavar="DIR")
    listing.set_defaults(act=_list_teachers)
    importing = stored.add_parser("import", help="make a checkpoint file a teacher, after measuring its accuracy")
    importing.add_argument("name", help="network, such as vgg13")
    importing.add_argument("file", type=Path, help="checkpoint: ours, or the field's {'model': state_dict}")
    importing.add_argument("--replace", action="store_true", help="replace the teacher of that name")
    _add_dataset(importing)
    importing.set_defaults(act=_import_teacher)
    caching = stored.add_parser("cache", help="compute teachers' logits ahead of the runs that will use them")
    caching.add_argument("names", nargs="+", metavar="NAME", help="teachers, such as vgg13")
    caching.add_argument("--seeds", nargs="+", default=[], metavar="N", help="of the runs; default 0")
    caching.add_argument("--epochs", metavar="N", help="of the runs; default: the schedule's")
    caching.add_argument("--all", action="store_true", help="every view of every image, whatever the seeds")
    _add_dataset(caching)
    caching.set_defaults(act=_cache_teachers)

    runs.add_to(commands)
    clean.add_to(commands)

    sync = commands.add_parser("sync", help="bring MLflow up to date with the runs' journals")
    sync.add_argument("--output", type=Path, default=Path("outputs"), metavar="DIR")
    sync.add_argument("--uri", help="MLflow's tracking URI; default: DIR/mlflow.db")
    sync.add_argument("--experiment", default="edkd")
    sync.set_defaults(act=_sync)

    _add_server(commands.add_parser("server", help="an MLflow server over PostgreSQL, for runs on several machines"))
    results.add_to(commands)
    _add_bench(commands.add_parser("bench", help="how fast this machine trains, against the plain loop"))
    return parser


def _add_server(parser: argparse.ArgumentParser) -> None:
    parser.description = "MLflow over a PostgreSQL of its own; everything lies in DIR/server. Ctrl-C stops both."
    parser.add_argument("--output", type=Path, default=Path("outputs"), metavar="DIR")
    parser.add_argument("--host", default="127.0.0.1", help="default 127.0.0.1: this machine alone")
    parser.add_argument("--port", type=int, default=5000)
    parser.add_argument("--allowed-hosts", metavar="NAMES", help="comma-separated names by which others may reach it")
    parser.add_argument("--workers", type=int, default=4, help="processes that answer; default 4")
    parser.set_defaults(act=_server)


def _server(args: argparse.Namespace) -> None:
    from edkd.tracking.server import serve

    ended = serve(
        args.output / "server",
        host=args.host,
        port=args.port,
        allowed_hosts=args.allowed_hosts,
        workers=args.workers,
    )
    if ended:
        raise EdkdError(f"the MLflow server ended with exit status {ended}; its own lines above say why")


def _add_bench(parser: argparse.ArgumentParser) -> None:
    names = {"pairs": "TEACHER-STUDENT,… (default: the seven)", "methods": "kd,dkd,edkd", "modes": "such as plain,warm"}
    for name, words in names.items():
        parser.add_argument(f"--{name}", type=lambda text: text.split(","), metavar="NAMES", help=words)
    parser.add_argument("--repetitions", type=int, metavar="N", help="of each mode at most; the median counts")
    parser.add_argument("--steps", type=int, metavar="N", help="of one repetition")
    parser.add_argument("--seconds", type=float, metavar="S", help="for all steps; fewer repetitions keep to it")
    parser.add_argument("--threads", type=int, metavar="N", help="on the CPU; default: all cores")
    parser.add_argument("--quick", action="store_true", help="two minutes: EDKD alone, few repetitions")
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/bench"), metavar="DIR", help="for CSV and Markdown"
    )
    _add_dataset(parser)
    parser.set_defaults(act=_bench)


def _add_dataset(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-d", "--dataset", default="cifar100", help="data set (see conf/dataset); default cifar100")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="more of the configuration, such as dataset.root=/data"
    )


def _evaluate(args: argparse.Namespace) -> None:
    from edkd.config.compose import compose_settings
    from edkd.runs.evaluate import evaluate_network

    settings = compose_settings([f"dataset={args.dataset}", f"student={args.model}", *args.overrides])
    where, result = evaluate_network(settings, args.checkpoint)
    print(f"{args.model} on {settings.dataset.key} ({where})")
    print(f"top-1 {result['top1']:.2f} %  top-5 {result['top5']:.2f} %  loss {result['loss']:.4f}")


def _list_teachers(args: argparse.Namespace) -> None:
    from edkd.teachers import store

    entries = store.listing(args.output / "teachers")
    if not entries:
        print(
            f"no teachers in {args.output / 'teachers'}; sweeps train what they need, `edkd teachers import` adds more"
        )
    for entry in entries:
        try:
            store.verify(entry)
        except EdkdError as error:
            print(f"{entry.dataset}/{entry.name}: {error}")
            continue
        accuracy = f"top-1 {entry.test['top1']:.2f} %" if entry.test else "not measured"
        print(f"{entry.dataset}/{entry.name}: {accuracy}, {entry.id}, from {entry.source}")


def _import_teacher(args: argparse.Namespace) -> None:
    from edkd.config.compose import compose_settings
    from edkd.runs.evaluate import import_teacher

    settings = compose_settings([f"dataset={args.dataset}", f"student={args.name}", *args.overrides])
    entry = import_teacher(settings, args.file, replace=args.replace)
    assert entry.test is not None
    print(f"{entry.name} of {entry.dataset}: top-1 {entry.test['top1']:.2f} %, {entry.id}, in {entry.path}")


def _cache_teachers(args: argparse.Namespace) -> None:
    from edkd.config.compose import compose_settings
    from edkd.runs.fill_cache import fill

    # Names, seeds and overrides may follow each other in any order: an override is what has a "=".
    words = [*args.names, *args.seeds, *args.overrides]
    seeds = _seeds([*args.seeds, *(word for word in words if word.startswith("seed="))])
    if args.all and (seeds or args.epochs):
        raise EdkdError("--all means every view, whatever seeds and epochs would draw: leave those away, or --all")
    overrides = [f"dataset={args.dataset}", *(word for word in words if "=" in word and not word.startswith("seed="))]
    overrides += [f"schedule.epochs={args.epochs}"] if args.epochs else []
    names = [word for word in args.names if "=" not in word]
    if not names:
        raise EdkdError("no teacher named; example: edkd teachers cache vgg13 --seeds 0 1 2")
    tables = [compose_settings([*overrides, f"teacher={name}"]) for name in names]
    fill(tables, None if args.all else seeds or [0])


def _seeds(words: Sequence[str]) -> list[int]:
    """The seeds among some words, each once: numbers, or as in seed=0,1; other KEY=VALUEs are passed over."""
    named = [word.removeprefix("seed=") for word in words if "=" not in word or word.startswith("seed=")]
    seeds = [seed for name in named for seed in name.split(",")]
    for seed in seeds:
        if not seed.isdecimal() or int(seed) >= 2**32:
            raise EdkdError(f"seed {seed}: must be a whole number, 0 or more, and below 2^32; example: --seeds 0 1 2")
    return [int(seed) for seed in dict.fromkeys(seeds)]


def _sync(args: argparse.Namespace) -> None:
    from edkd import tracking

    if not (args.output / "runs").is_dir():
        raise EdkdError(f"no runs in {args.output / 'runs'}; --output DIR names the folder that holds runs/")
    uri = args.uri or f"sqlite:///{args.output / 'mlflow.db'}"
    artifacts = None if args.uri else str(args.output / "mlartifacts")
    failed = 0
    place = {"uri": uri, "experiment": args.experiment, "artifacts": artifacts}
    for result in tracking.sync_all(args.output / "runs", **place):
        if result.report is None:
            failed += 1
            print(f"{result.run_dir}: {result.error}", file=sys.stderr)
        elif result.report.created or result.report.epochs_logged or result.report.ended:
            print(f"{result.run_dir}: {counted(result.report.epochs_logged, 'epoch')} logged")
    for sweep, ended in tracking.settle_sweeps(_ended_sweeps(args.output), **place).items():
        print(f"sweep {sweep}: {ended}")
    if failed:
        raise EdkdError(f"{counted(failed, 'run')} could not be brought to {uri}")


def _ended_sweeps(output: Path) -> dict[str, Counter[str]]:
    """Of sweeps of which no run waits or runs: how many runs there are in each of a journal's states."""
    from edkd.rundir.paths import find_runs
    from edkd.status import registry
    from edkd.status.state import look

    words = {"done": "finished", "failed": "failed", "vanished": "interrupted", "new": "new"}
    states = {view.name: view.state for view in look(find_runs(output))}
    sweeps = {
        sweep: [states.get(name, "new") for name in registry.runs_of(output, sweep)] for sweep in registry.known(output)
    }
    return {
        sweep: Counter(words[state] for state in found) for sweep, found in sweeps.items() if words.keys() >= set(found)
    }


def _bench(args: argparse.Namespace) -> None:
    from edkd.bench.main import run

    values = {name: value for name, value in vars(args).items() if name != "act"}
    for path in run(**values):
        print(path)


if __name__ == "__main__":
    main()

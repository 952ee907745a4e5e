"""The commands of `edkd` about an output folder as a whole: clean, sync, and results that a repository can hold."""

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from edkd.console import counted, size
from edkd.errors import EdkdError


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add the option that names the output folder."""
    parser.add_argument("--output", type=Path, default=Path("outputs"), metavar="DIR", help="default: outputs")


def add_to(commands: Any) -> None:
    """Add the commands to the parser's subcommands."""
    clean = commands.add_parser(
        "clean",
        help="remove files that are no longer needed: checkpoints of finished runs, unused teacher caches",
        description="Remove checkpoints of finished runs (last.pt and best.pt stay), files that a killed process did "
        "not finish writing, and caches of teachers that are no longer in the store. Runs that a process works on, "
        "checkpoints of unfinished runs and caches in use stay. With SWEEP, only files of its runs.",
    )
    clean.add_argument("sweep", nargs="?", metavar="SWEEP", help="id of a sweep; default: all runs, and the teachers")
    clean.add_argument("--dry-run", action="store_true", help="list the files, and remove nothing")
    add_output(clean)
    clean.set_defaults(act=_clean)

    sync = commands.add_parser("sync", help="bring MLflow up to date with the runs' journals")
    add_output(sync)
    sync.add_argument("--uri", help="MLflow's tracking URI; default: DIR/mlflow.db")
    sync.add_argument("--experiment", default="edkd")
    sync.set_defaults(act=_sync)

    pages = commands.add_parser("ui", help="MLflow's pages of the runs, in a browser; prints the link")
    add_output(pages)
    pages.add_argument("--port", type=int, default=5000)
    pages.add_argument("--experiment", default="edkd")
    pages.set_defaults(act=_ui)

    results = commands.add_parser("results", help="results that a repository can hold")
    actions = results.add_subparsers(required=True, metavar="ACTION")
    packing = actions.add_parser(
        "pack", help="write the journals of finished runs into a folder, one small file a run, for `make table`"
    )
    add_output(packing)
    packing.add_argument("-d", "--dataset", default="cifar100", metavar="KEY", help="data set; default cifar100")
    packing.add_argument("--to", type=Path, metavar="DIR", help="default: analysis/results/ and the data set")
    packing.add_argument("--all", action="store_true", help="also runs that are not finished")
    packing.set_defaults(act=_pack_results)
    unpacking = actions.add_parser(
        "unpack", help="give an output folder the journals of packed runs, so that sweeps count them as finished"
    )
    add_output(unpacking)
    unpacking.add_argument("folder", type=Path, metavar="DIR", help="such as analysis/results/cifar100")
    unpacking.set_defaults(act=_unpack_results)


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


def _sync(args: argparse.Namespace) -> None:
    from edkd import tracking

    if not (args.output / "runs").is_dir():
        raise EdkdError(f"no runs in {args.output / 'runs'}; --output DIR names the folder that holds runs/")
    uri = args.uri or f"sqlite:///{args.output / 'mlflow.db'}"
    artifacts = None if args.uri else str(args.output / "mlartifacts")
    failed = changed = 0
    place = {"uri": uri, "experiment": args.experiment, "artifacts": artifacts}
    for run_dir, found in tracking.sync_all(args.output / "runs", **place):
        if isinstance(found, EdkdError):
            failed += 1
            print(f"{run_dir}: {found}", file=sys.stderr)
        elif any(found):
            changed += 1
            print(f"{run_dir}: {counted(found.epochs_logged, 'epoch')} logged")
    for sweep, ended in tracking.settle_sweeps(_ended_sweeps(args.output), **place).items():
        changed += 1
        print(f"sweep {sweep}: {ended}")
    if not changed and not failed:
        print(f"{args.output} and MLflow agree")
    if failed:
        raise EdkdError(f"{counted(failed, 'run')} could not be brought to {tracking.redacted(uri)}")


def _ui(args: argparse.Namespace) -> None:
    from edkd import tracking

    if not (args.output / "mlflow.db").exists() and not (args.output / "runs").is_dir():
        raise EdkdError(f"neither mlflow.db nor runs/ in {args.output}; --output DIR names the folder that holds them")
    uri, artifacts = f"sqlite:///{args.output / 'mlflow.db'}", str(args.output / "mlartifacts")
    tracking.serve(uri=uri, experiment=args.experiment, artifacts=artifacts, port=args.port)


def _ended_sweeps(output: Path) -> dict[str, Counter[str]]:
    """Count the runs in each of a journal's states, for each sweep that has no waiting or running run."""
    from edkd.rundir.paths import find_runs, recorded_sweeps, runs_of_sweep
    from edkd.status.state import look

    words = {
        "done": "finished",
        "pruned": "pruned",
        "failed": "failed",
        "vanished": "interrupted",
        "interrupted": "interrupted",
        "new": "new",
    }
    states = {view.name: view.state for view in look(find_runs(output))}
    ended = {}
    for sweep in recorded_sweeps(output):
        found = [states.get(name, "new") for name in runs_of_sweep(output, sweep)]
        if words.keys() >= set(found):
            ended[sweep] = Counter(words[state] for state in found)
    return ended


def _pack_results(args: argparse.Namespace) -> None:
    from edkd.rundir import results

    to = args.to or Path("analysis/results") / args.dataset
    done = results.pack(args.output, to, dataset=args.dataset, everything=args.all)
    for line in done.reasons():
        print(f"left out: {line}")
    print(done.line(to))
    if not done.written and not done.unchanged:
        others = "".join(f"; --dataset {key} packs those of another data set" for key in sorted(done.elsewhere)[:1])
        raise EdkdError(f"nothing to pack: {args.output} has no finished run of {args.dataset} to pack{others}")


def _unpack_results(args: argparse.Namespace) -> None:
    from edkd.rundir import results

    if args.folder.is_file():
        raise EdkdError(f"{args.folder} is a file; name the folder that holds it, or one above")
    if not results.find(args.folder):
        raise EdkdError(f"{args.folder} has no packed runs (*{results.SUFFIX}); `edkd results pack` writes them")
    count = results.unpack(args.folder, args.output)
    there = len(results.find(args.folder)) - count
    print(
        f"{counted(count, 'run')} of {args.folder} now in {args.output}, journals without weights"
        + (f"; {there} there already, or not finished" if there else "")
    )
    if count:
        print(f"next, for MLflow: edkd sync --output {args.output}")

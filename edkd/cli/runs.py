"""The commands of `edkd` that look after runs: status, logs, retry."""

import argparse
import contextlib
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

from edkd.cli.output import add_output
from edkd.console import console, counted, fail
from edkd.errors import EdkdError
from edkd.status.state import STATES

_KEYS = """\
exit codes: 0 all runs shown are done or pruned; 1 a run failed or vanished; 2 the command is wrong, and says why;
3 nothing is wrong, but runs are new, waiting, running or interrupted.

--json prints one object: {"output", "sweep", "time", "counts": {state: number}, "runs": [...]}. Each run has:
  name, hash, directory, dataset, pair, distiller, seed, sweep     what it is
  state                         new, waiting, running, done, pruned (by its search), failed, vanished or interrupted
                                (by Ctrl-C)
  why                           the first line of the error; SLURM's word about a job that vanished; why it waits
  epoch, epochs                 the last that is journalled, and how many there are to be (null before the start)
  top1, best                    percent on the test set: after that epoch; of the best epoch, of a run that is done
  images_per_second, seconds, seconds_left         of the last epoch; of a run that is done; of one that is running
  node, job, log                where it runs; its SLURM job, as squeue prints it, and that job's log
"""
_CHOSEN_BY = ("dataset", "pair", "distiller", "seed")


def add_to(commands: Any) -> None:
    """Add the commands to the parser's subcommands."""
    shown = commands.add_parser(
        "status",
        help="all runs: waiting, running, done, pruned, failed, vanished, interrupted",
        epilog=_KEYS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_selection(shown)
    how = shown.add_mutually_exclusive_group()
    how.add_argument(
        "--watch",
        nargs="?",
        const=5.0,
        type=_seconds,
        metavar="SECONDS",
        help="show it again every 5 (or SECONDS) seconds until all runs have ended; Ctrl-C ends the watch alone",
    )
    how.add_argument("--json", action="store_true", help="one JSON object instead of the table, see below")
    shown.set_defaults(act=_status)

    log = commands.add_parser("logs", help="the end of a run's log")
    log.add_argument("run", metavar="RUN", help="hash (or its beginning), name (or its end) or directory of a run")
    log.add_argument("-n", "--lines", type=_lines, default=20, metavar="LINES", help="how many; default 20")
    log.add_argument("-f", "--follow", action="store_true", help="go on until the run has ended")
    add_output(log)
    log.set_defaults(act=_logs)

    again = commands.add_parser(
        "retry",
        help="launch again what failed, vanished or was interrupted",
        description="Launch again what failed, vanished or was interrupted, as it was planned: from the configurations "
        "in the run directories, not from conf/. Teachers come first; students that waited for one are included.",
    )
    _add_selection(again)
    again.add_argument("--all", action="store_true", help="also what is planned and never began")
    again.add_argument("--dry-run", action="store_true", help="print what would be launched, and stop")
    again.add_argument(
        "--config-dir", "-cd", type=Path, metavar="DIR", help="a folder of your own beside conf/, with the launcher"
    )
    again.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="the launcher: hydra/launcher=slurm, hydra.launcher.partition=gpu, ...",
    )
    again.set_defaults(act=_retry)


def _add_selection(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sweep", nargs="?", metavar="SWEEP", help="id of a sweep, as it is printed; default: all runs")
    add_output(parser)
    parser.add_argument("--state", type=_states, default=(), metavar="STATE,…", help=f"of {', '.join(STATES)}")
    for what in _CHOSEN_BY:
        parser.add_argument(f"--{what}", type=_words, default=(), metavar=f"{what.upper()},…")


def _status(args: argparse.Namespace) -> None:
    from edkd.status import table, wait

    chosen = _selection(args)
    try:
        if args.watch is not None:
            views = table.watch(chosen.look, args.watch)
        else:
            views = chosen.look()
            if args.json:
                print(table.document(views, str(args.output), args.sweep))
            else:
                table.show(views)
    except EdkdError as error:
        fail(str(error), code=2)
    if not args.json:
        sys.stdout.flush()
        wait.show_cures(views)
    raise SystemExit(table.exit_code(views))


def _logs(args: argparse.Namespace) -> None:
    from edkd.status import logs, select

    run = select.find_run(args.output, args.run)
    if args.follow:
        with contextlib.suppress(KeyboardInterrupt):
            logs.follow(run, args.lines)
    else:
        logs.show(run, args.lines)


def _retry(args: argparse.Namespace) -> None:
    from edkd.cli import launch
    from edkd.rundir.paths import find_runs
    from edkd.status.state import look
    from edkd.status.table import summary
    from edkd.sweeps import retry
    from edkd.sweeps.sweep import carry_out

    if args.sweep is not None and "=" in args.sweep:  # an override instead of a sweep: all runs
        args.overrides.insert(0, args.sweep)
        args.sweep = None
    foreign = [word for word in args.overrides if not word.lstrip("+~").startswith(("hydra/launcher", "hydra."))]
    if foreign:
        raise EdkdError(
            f"{foreign[0]}: a retried run is what it was planned to be; only hydra/launcher=… and hydra.launcher.…=… "
            "can be given; launch.py plans new runs"
        )
    views = _selection(args).look()
    chosen = retry.choose(views, look(find_runs(args.output)), new=args.all)
    if not chosen:
        begin = "; --all takes those that never began" if any(view.state == "new" for view in views) else ""
        print(f"nothing to retry: {summary(views)}{begin}")
        return
    left = [view for view in views if view.state == "new" and view.directory not in chosen]
    if left:
        print(f"not launched, because never begun: {counted(len(left), 'run')}; --all includes them")
    overrides = launch.may_add(args.overrides)
    master, launcher = retry.compose_launcher(overrides, output=args.output, task=launch.task)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as in launch.py
    try:
        carry_out(retry.make_plan(chosen), master, launcher, dry_run=args.dry_run)
    except KeyboardInterrupt:
        console.print(launch.INTERRUPTED)
        raise


def _selection(args: argparse.Namespace) -> Any:
    from edkd.status.select import Selection

    return Selection(**{name: getattr(args, name) for name in ("output", "sweep", "state", *_CHOSEN_BY)})


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _states(text: str) -> list[str]:
    unknown = [word for word in _words(text) if word not in STATES]
    if unknown:
        raise argparse.ArgumentTypeError(f"no state {shlex.quote(unknown[0])}; there are: {', '.join(STATES)}")
    return _words(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds; SWEEP comes before --watch") from None
    if not 0 < seconds < 86400:
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds above 0 and below a day")
    return seconds


def _lines(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of lines")
    return int(text)

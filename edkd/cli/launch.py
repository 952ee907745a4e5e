"""Hydra's side of the command line: composes the configuration, starts runs, and reports errors in one line."""

import functools
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import hydra
import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from edkd import CONF
from edkd.config.compose import explain, resolve, undecodable
from edkd.console import Parser, console, fail
from edkd.errors import EdkdError

INTERRUPTED = "interrupted; the same command continues where this one stopped"

_WANTS_TRACEBACK = "HYDRA_FULL_ERROR" in os.environ


def main() -> None:
    """Entry point of `launch.py`: exits with 0 if all that was asked for is done, 1 after an error, 130 interrupted."""
    # Hydra then raises instead of printing, so that every error is reported here and in the same way.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends runs as Ctrl-C does, and the journals record it
    sys.argv[1:] = _sorted(sys.argv[1:])
    command: Callable[[], None] = hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(task)
    try:
        try:
            command()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python would fail again as it ends
        raise SystemExit(141) from None
    except KeyboardInterrupt:
        console.print(INTERRUPTED)
        raise SystemExit(130) from None
    except (EdkdError, HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        _fail(error)
    except ValueError as error:  # Hydra's own, such as for a group without an option
        of_yaml = isinstance(error, UnicodeDecodeError) and undecodable() is not None
        if not of_yaml and f"{os.sep}hydra{os.sep}" not in traceback.extract_tb(error.__traceback__)[-1].filename:
            raise
        _fail(error)


def _sorted(arguments: list[str]) -> list[str]:
    """Put options before overrides: Hydra's parser accepts no option between two overrides.

    Options that Hydra refuses end the command here, in one line; Hydra itself would print its whole usage.
    """
    parser = Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("--config-dir", "-cd")
    parser.add_argument("--cfg", "-c")  # named, or argparse would take -c for the beginning of -cd
    args, others = parser.parse_known_args(arguments)
    options = ["--multirun"] * args.multirun
    options += ["--config-dir", args.config_dir] if args.config_dir else []
    options += ["--cfg", args.cfg] if args.cfg else []
    arguments = [*options, *may_add(others)]
    of_hydra = get_args_parser()
    of_hydra.__class__ = Parser  # which differs in its errors alone
    of_hydra.parse_args(arguments)
    return arguments


def may_add(overrides: list[str]) -> list[str]:
    """Let overrides of sbatch's options also add options that the configuration does not have yet."""
    free = "hydra.launcher.additional_parameters"
    return [f"++{each}" if each.startswith((f"{free}.", f"{free}=")) else each for each in overrides]


def _fail(error: Exception) -> None:
    if _WANTS_TRACEBACK:
        raise error
    fail(explain(error, sys.argv[1:]))


def task(composed: DictConfig) -> None:
    """What Hydra runs: a job that a sweep has frozen, or the one run that the command line describes."""
    if "frozen" in composed:
        from edkd.config.job import thaw
        from edkd.runs.run import execute
        from edkd.training.device import take_gpus

        _end_with_parent()
        job, sweep = thaw(Path(composed.frozen))
        if multiprocessing.parent_process() is not None and job.settings.engine.device in ("auto", "cuda"):
            take_gpus(multiprocessing.current_process().name, job.settings.engine.devices)
        try:
            execute(job, sweep=sweep, show=False)
        except Exception as error:
            _empty_frames(error)
            raise
        return
    from edkd.sweeps.single import run_one

    try:
        launcher = HydraConfig.get().runtime.choices.get("hydra/launcher", "basic")
        if launcher != "basic":
            raise EdkdError(f"hydra/launcher={launcher} is for sweeps: add -m, also for one run")
        run_one(resolve(composed), HydraConfig.get().runtime.choices["distiller"])
    except EdkdError as error:  # here, because Hydra would add a line of its own
        _fail(error)


@functools.cache  # once in a process, which may execute several jobs
def _end_with_parent() -> None:
    """End a worker process of a local sweep soon after the process that started it ends, for whatever reason."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        while os.getppid() == parent.pid:
            time.sleep(1)
        os._exit(1)  # the run continues from its checkpoint, as after every kill

    threading.Thread(target=watch, name="edkd-parent", daemon=True).start()


def _empty_frames(error: BaseException | None) -> None:
    """Free the run's networks and data: Hydra keeps a sweep's errors to its end, and their frames keep these."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__

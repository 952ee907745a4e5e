"""Shell completion, by argcomplete and without loading torch."""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import argcomplete

from edkd import CONF
from edkd.rundir.paths import find_runs, recorded_sweeps
from edkd.status.state import STATES

# The folder of conf/ whose files are the values, by argument.
_OF_CONF = {"dataset": "dataset", "model": "student", "name": "student", "names": "teacher", "teacher": "teacher"}


def answer(parser: argparse.ArgumentParser) -> None:
    """Print completions and end the process, if the shell asks for them."""
    # argcomplete's documentation allows any function as a completer; its types ask for a class.
    argcomplete.autocomplete(parser, always_complete_options="long", default_completer=_values)  # type: ignore[arg-type]


def _values(prefix: str, action: argparse.Action, parsed_args: argparse.Namespace, **_: Any) -> Iterable[str]:
    """The possible values of `action`: runs, their pairs and data sets, sweeps, states, names in conf/, or any file."""
    if action.dest == "sweep":
        return recorded_sweeps(parsed_args.output)
    if action.dest == "state":
        return STATES
    if action.dest == "run":
        return [f"{run.parent.name}/{run.name}" for run in _runs(parsed_args.output)]
    if action.dest == "pair":
        return {run.parent.name for run in _runs(parsed_args.output)}
    if action.dest == "dataset" and action.metavar:  # its key, as the runs' folders have it
        return {run.parent.parent.name for run in _runs(parsed_args.output)}
    if action.dest in _OF_CONF:
        return (path.stem for path in (CONF / _OF_CONF[action.dest]).glob("*.yaml"))
    files: Iterable[str] = argcomplete.FilesCompleter()(prefix)
    return files


def _runs(output: Path) -> list[Path]:
    return find_runs(output) if (output / "runs").is_dir() else []

"""The commands as a user gives them: in this process, which is fast, or in one of their own, which is real."""

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from hydra.core.global_hydra import GlobalHydra

from edkd.cli import launch as cli_launch
from edkd.cli import main
from edkd.rundir import journal

REPOSITORY = Path(__file__).parents[1]
# The smallest runs there are, of `dataset=digits`.
DIGITS = ["dataset.image_size=8", "dataset.train_per_class=20", "dataset.test_per_class=10", "engine.device=cpu"]


class Ended(NamedTuple):
    """What a command left behind for the one who gave it."""

    code: Any
    out: str
    err: str


def launch(*arguments: str) -> Ended:
    """`python launch.py ARGUMENTS`, in this process."""
    return _call(cli_launch.main, "launch.py", *arguments)


def edkd(*arguments: str) -> Ended:
    """`edkd ARGUMENTS`, in this process."""
    return _call(main.main, "edkd", *arguments)


def python(*arguments: str, **environment: str) -> Ended:
    """`python ARGUMENTS` from the current directory, in a process of its own."""
    given = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=280, env=given)
    return Ended(done.returncode, done.stdout, done.stderr)


def error(ended: Ended) -> str:
    """The message of a command that must have failed with nothing but one line on stderr."""
    assert ended.code == 1, ended
    assert ended.out == "", ended
    assert ended.err.startswith("edkd: ") and ended.err.count("\n") == 1 and ended.err.endswith("\n"), ended
    return ended.err.removeprefix("edkd: ").removesuffix("\n")


def files(folder: Path) -> set[str]:
    """All files and folders below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def journals(output: Path) -> dict[str, list[dict[str, Any]]]:
    """The journals below an output folder, by `<pair>/<method>-s<seed>`."""
    found = {}
    for path in sorted((output / "runs").glob("*/*/*/journal.jsonl")):
        found[f"{path.parts[-3]}/{path.parts[-2].rpartition('-')[0]}"] = journal.read(path.parent)
    return found


def run_file(output: Path, method: str, name: str) -> Path:
    """A file of the one run of a method."""
    (path,) = output.glob(f"runs/*/*/{method}-*/{name}")
    return path


def metrics(records: list[dict[str, Any]]) -> dict[int, Mapping[str, float]]:
    """What a journal says about each epoch."""
    return {record["epoch"]: record["metrics"] for record in records if record["event"] == "epoch"}


def _call(function: Callable[[], None], *argv: str) -> Ended:
    out, err = io.StringIO(), io.StringIO()
    deterministic = torch.are_deterministic_algorithms_enabled()
    code: Any = 0
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(sys, "argv", list(argv)))
        stack.enter_context(mock.patch.dict(os.environ))
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        stack.callback(torch.use_deterministic_algorithms, deterministic)
        GlobalHydra.instance().clear()
        try:
            function()
        except SystemExit as ended:
            code = ended.code
    return Ended(code, out.getvalue(), err.getvalue())

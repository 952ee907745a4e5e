"""The code of a run: its git commit, and uncommitted changes."""

import contextlib
import hashlib
import importlib
import inspect
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from edkd.errors import EdkdError
from edkd.rundir import files
from edkd.rundir.paths import RunDir

LARGEST = 1_000_000  # characters of a diff that are kept
MOST = 100  # new source files that are kept; the others are named
# Parts of a configuration whose code affects its result.
_PARTS = ("distiller", "student", "teacher", "dataset", "optimizer")


@dataclass(frozen=True)
class Code:
    """The code of a checkout at one time; both fields are empty where git does not know it."""

    version: dict[str, str]
    """`git_commit`, and `git_dirty`: "true" if the tree differed from it."""
    changes: str
    """For a dirty tree: `git diff HEAD`, the untracked sources, and the names of other untracked files."""


def read() -> Code:
    """The code as it lies on the disk now."""
    try:
        top = _top()
        commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain")
        version = {"git_commit": commit, "git_dirty": str(bool(changes)).lower()}
        return Code(version, _diff(commit, top) if changes else "")
    except (OSError, subprocess.SubprocessError):
        return Code({}, "")


def keep_changes(code: Code, run_dir: Path) -> None:
    """Save the uncommitted changes as `code.diff` in a run directory.

    If a later attempt at the run finds other changes, it adds a second file, named by its hash.
    """
    if not code.changes:
        return
    with contextlib.suppress(OSError, EdkdError):  # a full disk: the run itself will report it
        path = RunDir(run_dir).code
        if path.exists() and path.read_text() != code.changes:
            digest = hashlib.sha256(code.changes.encode()).hexdigest()[:8]
            path = path.with_name(f"{path.stem}.{digest}{path.suffix}")
        if not path.exists():
            files.write_bytes(path, code.changes.encode())


def own_code(*configurations: Mapping[str, Any]) -> dict[str, str]:
    """The classes of configurations whose code no version names, with the SHA-256 (16 digits) of each one's file.

    Keys are the dotted names in `_target_`. An installed library has a version. A file of this package has one if
    git holds the file's current content. Other classes are the user's own.
    """
    named = {target for configuration in configurations for target in targets(configuration)}
    found = {target: file for target in sorted(named) if (file := _file_of(target)) is not None}
    root = Path(__file__).resolve().parents[1]
    ours = {file for file in found.values() if root in file.parents}
    held = ours - _changed(ours)
    return {target: _digest(file) for target, file in found.items() if file not in held}


@cache
def source(patterns: tuple[str, ...]) -> str:
    """The SHA-256 (16 digits) of the files of edkd that match, as they are; a pattern is relative to the package."""
    root, found = Path(__file__).resolve().parents[1], hashlib.sha256()
    for file in sorted(file for pattern in patterns for file in root.glob(pattern)):
        found.update(f"{file.relative_to(root)} {_digest(file)}\n".encode())
    return found.hexdigest()[:16]


def differing(known: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The classes of a run whose code has changed since it started; `known` is its `own_code` then, `now` at present.

    A class only in `known` was committed since: its file decides. A class only in `now` was committed then: it changed.
    """
    committed = {target: _file_of(target) for target in known.keys() - now.keys()}
    current = {target: _digest(file) for target, file in committed.items() if file is not None} | dict(now)
    return sorted(target for target in known.keys() | now.keys() if known.get(target) != current.get(target))


def targets(configuration: Mapping[str, Any]) -> set[str]:
    """The dotted names of the classes and functions on which the result of a configuration depends."""
    return {target for part in _PARTS for target in _targets(configuration.get(part))}


def _targets(part: Any) -> Iterator[str]:
    if isinstance(part, Mapping):
        if isinstance(part.get("_target_"), str):
            yield part["_target_"]
        for inner in part.values():
            yield from _targets(inner)


def _file_of(target: str) -> Path | None:
    """The file that defines what a dotted name leads to; None for a library, or if there is none."""
    module, _, name = target.rpartition(".")
    with contextlib.suppress(ImportError, ValueError, AttributeError, TypeError):
        source = inspect.getsourcefile(inspect.unwrap(getattr(importlib.import_module(module), name)))
        if source is not None and not {"site-packages", "dist-packages"} & set(Path(source).parts):
            return Path(source).resolve()
    return None


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def _changed(paths: set[Path]) -> set[Path]:
    """Those `paths` of the checkout whose current content git does not hold; none if git does not know the checkout."""
    try:
        top = _top()
        asked = ("--porcelain", "-z", "--no-renames", "--ignored", "--untracked-files=all", "--", *map(str, paths))
        listed = _git("status", *asked) if paths else ""
    except (OSError, subprocess.SubprocessError):
        return set()
    return {(Path(top) / entry.split(maxsplit=1)[1]).resolve() for entry in listed.split("\0") if entry}


def _top() -> str:
    """The folder of the checkout. Raises CalledProcessError where git does not know this code."""
    _git("ls-files", "--error-unmatch", Path(__file__).name)
    return _git("rev-parse", "--show-toplevel")


def _diff(commit: str, top: str) -> str:
    unknown = _git("ls-files", "--others", "--exclude-standard", "-z", folder=top).split("\0")[:-1]
    # The values of options outside conf/ are in the run's configuration.
    sources = [name for name in unknown if name.endswith(".py") or re.fullmatch(r"conf/.*\.yaml", name)][:MOST]
    plain = ("diff", "--no-color", "--no-ext-diff")
    added = [_git(*plain, "--no-index", "--", os.devnull, name, folder=top, codes=(1,)) for name in sources]
    text = "\n".join([_git(*plain, "HEAD", folder=top), *added])
    if len(text) > LARGEST:
        text = f"{text[:LARGEST]}\n# cut off: the whole diff has {len(text)} characters"
    names = "".join(f"# not in git: {name}\n" for name in unknown[:1000] if name not in sources)
    return f"# changes to {commit}\n{text}\n{names}"


def _git(*arguments: str, folder: str | None = None, codes: tuple[int, ...] = (0,)) -> str:
    """The output of git. Raises CalledProcessError for an exit code that is neither 0 nor in `codes`."""
    command = ["git", "-C", folder or str(Path(__file__).parent), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=20)
    if done.returncode not in codes:
        done.check_returncode()
    return done.stdout.rstrip("\n")  # a blank in the last line of a diff counts

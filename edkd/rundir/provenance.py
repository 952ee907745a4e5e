"""Which code computes: the git commit, and what the tree had besides."""

import contextlib
import hashlib
import importlib.util
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edkd.errors import EdkdError
from edkd.rundir import files
from edkd.rundir.paths import RunDir

LARGEST = 1_000_000  # characters of a diff that are kept


@dataclass(frozen=True)
class Code:
    """The code of a checkout at one time; both parts are empty where git does not know it."""

    version: dict[str, str]
    """`git_commit`, and `git_dirty`: "true" if the tree differed from it."""
    changes: str
    """Of a dirty tree, `git diff HEAD`, then the names of files that git does not know."""


def read() -> Code:
    """The code as it lies on the disk now."""
    try:
        tracked = _git("ls-files", "--error-unmatch", Path(__file__).name)
        commit, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain")
        if not tracked:
            return Code({}, "")
        version = {"git_commit": commit, "git_dirty": str(bool(changes)).lower()}
        return Code(version, _diff(commit) if changes else "")
    except (OSError, subprocess.SubprocessError):
        return Code({}, "")


def keep_changes(code: Code, run_dir: Path) -> None:
    """Save what the tree had besides its commit as `code.diff` in a run directory.

    A later attempt at the run that finds other changes adds a second file, named by its hash.
    """
    if not code.changes:
        return
    with contextlib.suppress(OSError, EdkdError):  # a full disk: the run itself will say so
        path = RunDir(run_dir).code
        if path.exists() and path.read_text() != code.changes:
            digest = hashlib.sha256(code.changes.encode()).hexdigest()[:8]
            path = path.with_name(f"{path.stem}.{digest}{path.suffix}")
        if not path.exists():
            files.write_bytes(path, code.changes.encode())


def foreign(configuration: Mapping[str, Any]) -> dict[str, str]:
    """A run's classes of the user's own, by their `_target_`, with the SHA-256 (16 digits) of each one's file.

    What is installed among the libraries has a version, and is left out.
    """
    parts = (configuration.get(name) for name in ("distiller", "student", "teacher", "dataset"))
    named = sorted({target for part in parts for target in _targets(part) if not target.startswith("edkd.")})
    return {target: digest for target in named if (digest := _file_digest(target))}


def _targets(part: Any) -> Iterator[str]:
    if isinstance(part, Mapping):
        if isinstance(part.get("_target_"), str):
            yield part["_target_"]
        for inner in part.values():
            yield from _targets(inner)


def _file_digest(target: str) -> str:
    """Of the file of the longest part of a dotted name that is a module; empty for a library, or if there is none."""
    words = target.split(".")
    for length in range(len(words), 0, -1):
        with contextlib.suppress(ImportError, ValueError, AttributeError, OSError):
            found = importlib.util.find_spec(".".join(words[:length]))
            if found is not None and found.origin is not None:
                file = Path(found.origin)
                library = {"site-packages", "dist-packages"} & set(file.parts)
                return "" if library else hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    return ""


def _diff(commit: str) -> str:
    top = _git("rev-parse", "--show-toplevel")
    text = _git("diff", "HEAD", "--no-color", "--no-ext-diff", folder=top)
    if len(text) > LARGEST:
        text = f"{text[:LARGEST]}\n# cut off: the whole diff has {len(text)} characters"
    unknown = _git("ls-files", "--others", "--exclude-standard", folder=top).splitlines()
    names = "".join(f"# not in git: {name}\n" for name in unknown[:1000])
    return f"# changes to {commit}\n{text}\n{names}"


def _git(*arguments: str, folder: str | None = None) -> str:
    where = folder or str(Path(__file__).parent)
    done = subprocess.run(
        ["git", "-C", where, *arguments], capture_output=True, text=True, errors="replace", check=True, timeout=20
    )
    return done.stdout.strip()

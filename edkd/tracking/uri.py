"""The URI of an MLflow store: what is allowed, what it names, and the lock that goes with it."""

import hashlib
import os
import pwd
import re
import shlex
import tempfile
from pathlib import Path
from urllib.parse import unquote

from filelock import FileLock

from edkd.errors import EdkdError

PATIENCE = 60  # seconds to wait for another process of ours that talks to MLflow

_SQLITE = "sqlite:///"
_SCHEMES = ("http", "https", "postgresql", "mysql", "mssql")


def resolve(uri: str) -> str:
    """The URI, with an absolute path if it is SQLite's. Raises `EdkdError` for one that MLflow would refuse."""
    scheme = uri.partition("://")[0].partition("+")[0] if "://" in uri else ""
    if scheme in _SCHEMES:
        return uri
    path, question, query = uri.removeprefix(_SQLITE).partition("?")
    if not uri.startswith(_SQLITE) or path in ("", ":memory:"):
        allowed = f"{_SQLITE}FILE, {', '.join(f'{each}://…' for each in _SCHEMES)}"
        why = "folders such as ./mlruns, which MLflow no longer supports, " if scheme in ("", "file") else "this "
        raise EdkdError(f"tracking URI {redacted(uri)!r}: {why}cannot be used; allowed are {allowed}")
    resolved = Path(path).resolve()
    if unquote(str(resolved)) != str(resolved):
        raise EdkdError(
            f"MLflow store {resolved}: the path holds a % and two digits, which MLflow reads as one character; "
            "output=DIR, tracking.uri or --uri names another place"
        )
    return f"{_SQLITE}{resolved}{question}{query}"


def is_server(uri: str) -> bool:
    """Whether the store is one that several people may share, and not a SQLite file."""
    return sqlite_path(uri) is None


def sqlite_path(uri: str) -> Path | None:
    """The file that a SQLite URI names; None for a server or its database."""
    return Path(uri.removeprefix(_SQLITE).partition("?")[0]) if uri.startswith(_SQLITE) else None


def redacted(text: str) -> str:
    """The text without the user and password of URIs in it."""
    return re.sub(r"(?<=://)[^/@\s]+@", "", text)


def sync_command(uri: str, experiment: str) -> str:
    """The command that brings a store up to date with the journals; a password in the URI is not shown."""
    path, words = sqlite_path(uri), ["edkd", "sync"]
    if path is None or path.name != "mlflow.db":
        words += ["--uri", uri if redacted(uri) == uri else "URI"]
    elif path.parent.resolve() != Path("outputs").resolve():
        words += ["--output", str(path.parent)]
    return shlex.join(words + (["--experiment", experiment] if experiment != "edkd" else []))


def user() -> str:
    """The user's name, or number where a container knows no name; unlike $USER, the same in a job and a shell."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def lock(uri: str) -> FileLock:
    """The lock that keeps one user's processes on one machine from making the same thing in a store twice."""
    path = sqlite_path(uri)
    file = lock_file(uri) if path is None else path.with_name(f"{path.name}.lock")
    return FileLock(file, timeout=PATIENCE, fallback_to_soft=False)


def lock_file(name: str) -> Path:
    """A file for the lock of something where none can be written."""
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"edkd-mlflow-{os.getuid()}-{digest}.lock"

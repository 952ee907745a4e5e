"""The URI of an MLflow store: what is allowed, what it names, and the lock that goes with it."""

import hashlib
import os
import re
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


def lock(uri: str) -> FileLock:
    """The lock that keeps one user's processes on one machine from making the same thing in a store twice."""
    path = sqlite_path(uri)
    if path is None:
        name = hashlib.sha256(uri.encode()).hexdigest()[:16]
        file = Path(tempfile.gettempdir()) / f"edkd-mlflow-{os.getuid()}-{name}.lock"
    else:
        file = path.with_name(f"{path.name}.lock")
    return FileLock(file, timeout=PATIENCE, fallback_to_soft=False)

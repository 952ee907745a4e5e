"""Opening an MLflow store: SQLite on one machine, a server or its database for several."""

import contextlib
import functools
import logging
import os
import sqlite3
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

from filelock import Timeout

from edkd.errors import EdkdError
from edkd.tracking import sqlite_file, view
from edkd.tracking.mounts import network_filesystem
from edkd.tracking.uri import PATIENCE, lock, redacted, resolve, sqlite_path

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_LONGEST = 300  # characters kept of a foreign error message
_PAGE = 1000  # runs in one answer
_ENVIRONMENT = {  # only defaults: the user's own variables take precedence
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "GIT_PYTHON_REFRESH": "quiet",  # no warning about a missing git program
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds: an absent server is noticed soon; MLflow would try for minutes
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
}


class Store(NamedTuple):
    """An open MLflow store and one experiment in it."""

    client: "MlflowClient"
    uri: str
    experiment: str
    experiment_id: str


_KIND = {"mlflow.experimentKind": "custom_model_development"}  # the UI then shows training runs, not language models


def create_store(*, uri: str, experiment: str, artifacts: str | None, filling: bool = False) -> None:
    """Make sure that the MLflow store and the experiment exist.

    Call it once before jobs start. ``artifacts`` is the folder or URI for the experiment's files, used when the
    experiment is made; None leaves it to the server. Raises `EdkdError` for a store that cannot be reached, created
    or written. A damaged or half-made SQLite file is renamed, which is reported, and made anew; with `filling` the
    caller then reads in all journals.
    """
    with one_line(uri):
        path = sqlite_path(resolve(uri))
        if path is not None and sqlite_file.is_broken(path):
            with lock(uri):
                sqlite_file.set_aside_broken(path, filling=filling)
            _open.cache_clear()
        open_store(uri, experiment, artifacts)


def open_store(uri: str, experiment: str, artifacts: str | None) -> Store:
    """The store and its experiment, made where absent; opened once in a process."""
    return _open(resolve(uri), experiment, artifacts)


def open_existing(uri: str) -> "MlflowClient":
    """A client that reads a store that exists; a SQLite file and its folder need not be writable.

    Raises `EdkdError` for a SQLite file that is not there.
    """
    uri = resolve(uri)
    path = sqlite_path(uri)
    if path is not None and not (path.is_file() and path.stat().st_size):
        raise EdkdError(f"there is no MLflow store at {path}: no run was tracked there; `edkd sync` reads journals in")
    return _connect(uri) if path is None else _reader(path)


def open_writable(uri: str) -> "MlflowClient | None":
    """A client that writes to a store that exists; None for a SQLite file that cannot be written."""
    uri = resolve(uri)
    path = sqlite_path(uri)
    writable = path is None or all(os.access(each, os.W_OK) for each in (path, path.parent))
    return _connect(uri) if writable else None


@contextlib.contextmanager
def one_line(uri: str) -> Iterator[None]:
    """Turn any failure of the store into a one-line `EdkdError`, without the password in the URI."""
    try:
        yield
    except EdkdError:
        raise
    except Timeout as error:
        raise EdkdError(f"another process keeps {error.lock_file} locked; try again when it is done") from error
    except Exception as error:
        if not _is_foreign(error):
            raise
        root: BaseException = error  # the innermost error: each layer of a request repeats the ones below
        while (inner := root.__cause__ or root.__context__) is not None:
            root = inner
        path = sqlite_path(uri)
        if path is not None and type(root) is sqlite3.DatabaseError and sqlite_file.is_broken(path.resolve()):
            cure = f"`edkd sync --uri {uri}` sets it aside and fills another from the journals"
            raise EdkdError(f"MLflow store {redacted(uri)} is damaged ({root}): {cure}") from error
        reason = (isinstance(root, OSError) and root.strerror) or (isinstance(root, sqlite3.Error) and str(root))
        reason = reason or str(error) or type(error).__name__
        reason = textwrap.shorten(reason, _LONGEST, placeholder="…")
        raise EdkdError(f"MLflow store {redacted(uri)} failed: {redacted(reason)}") from error


def search(client: "MlflowClient", experiment_id: str, condition: str) -> "list[Run]":
    """All runs that meet the condition and are not deleted, oldest first."""
    runs: list[Run] = []
    token: str | None = None
    while True:
        page = client.search_runs(
            [experiment_id],
            condition,
            max_results=_PAGE,
            order_by=["attributes.start_time ASC", "attributes.run_id ASC"],
            page_token=token,
        )
        runs.extend(page)
        token = page.token
        if not token:
            return runs


def only(store: Store, runs: "list[Run]") -> "Run | None":
    """Return the first (oldest) of `runs` and delete its twins, which hosts without a common lock may make."""
    for twin in runs[1:]:
        store.client.delete_run(twin.info.run_id)
    return runs[0] if runs else None


def find_one(store: Store, condition: str) -> "Run | None":
    """Return the oldest run that meets the condition, or None; its twins are deleted."""
    return only(store, search(store.client, store.experiment_id, condition))


@functools.cache
def _open(uri: str, experiment: str, artifacts: str | None) -> Store:
    path = sqlite_path(uri)
    if path is not None:
        _probe(path)
    client = _connect(uri)
    return Store(client, uri, experiment, _experiment_id(client, uri, experiment, artifacts))


def _experiment_id(client: "MlflowClient", uri: str, experiment: str, artifacts: str | None) -> str:
    if artifacts is not None and "://" not in artifacts:
        artifacts = Path(artifacts).resolve().as_uri()  # a plain path with a % in it would be misread
    with lock(uri):
        found = client.get_experiment_by_name(experiment)
        if found is None:
            path = sqlite_path(uri)
            if path is not None and artifacts is None:  # MLflow's own choice is ./mlruns, wherever the process runs
                artifacts = (path.parent / "mlartifacts").as_uri()
            return client.create_experiment(experiment, artifact_location=artifacts, tags=_KIND | view.tags())
        for key, value in view.tags().items():
            stale = key not in found.tags or (key == view.TAG and found.tags[key] != value)  # a user may edit the note
            if stale and found.lifecycle_stage == "active":
                client.set_experiment_tag(found.experiment_id, key, value)
    if found.lifecycle_stage != "active":
        raise EdkdError(
            f"experiment {experiment!r} of the MLflow store {redacted(uri)} was deleted: restore it "
            f"(`mlflow experiments restore --experiment-id {found.experiment_id}`) or set another name"
        )
    path = sqlite_path(uri)
    if path is not None and artifacts is not None and _was_moved(path, found.artifact_location, artifacts):
        with lock(uri):
            sqlite_file.move_artifacts(path, found.experiment_id, found.artifact_location, artifacts)
    return found.experiment_id


def _was_moved(store: Path, known: str, given: str) -> bool:
    """Whether the store still has an earlier URI, `known`, of the artifact folder `given` that lies beside it."""
    beside = f"{store.parent.as_uri()}/"
    return known != given and given.startswith(beside) and known.rpartition("/")[2] == given.removeprefix(beside)


def _connect(uri: str) -> "MlflowClient":
    path = sqlite_path(uri)
    if path is not None:
        _quieten()
        import mlflow.store.tracking.sqlalchemy_store  # noqa: F401  # takes seconds, better spent without the lock

        with lock(uri):
            sqlite_file.make(path)
    return _client(uri)


def _reader(path: Path) -> "MlflowClient":
    from sqlalchemy import URL

    # The driver's name keeps MLflow from making a folder called `file:`.
    only_read = {"mode": "ro", "uri": "true"}
    return _client(str(URL.create("sqlite+pysqlite", database=f"file:{quote(str(path))}", query=only_read)))


def _client(uri: str) -> "MlflowClient":
    _quieten()
    from mlflow import MlflowClient

    return MlflowClient(uri)


def _quieten() -> None:
    """Import MLflow and silence its own output: failures are raised, and edkd reports them."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow  # noqa: F401  # sets the levels of its loggers

    logging.getLogger("mlflow").setLevel(logging.CRITICAL)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)


def _probe(path: Path) -> None:
    """Check that SQLite can write to the file, without changing it. Raises `EdkdError` with the reason if not.

    MLflow itself would retry for minutes and then print a traceback.
    """
    network = network_filesystem(path)
    if network is not None:
        raise EdkdError(
            f"MLflow store {path} would be a SQLite file on a network file system ({network}), where it gets damaged: "
            "tracking=server (see docs/tracking-server.md) or tracking.uri=sqlite:////LOCAL/PATH avoids that"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(path, timeout=PATIENCE, isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")
            ((version,),) = database.execute("PRAGMA user_version")
            database.execute(f"PRAGMA user_version = {version}")  # a write: needs the file and its folder writable
            database.execute("ROLLBACK")
    except (OSError, sqlite3.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise EdkdError(
            f"MLflow store {path} cannot be used ({reason}): it has to be a writable SQLite file in a writable folder; "
            "tracking.uri or --uri names another"
        ) from error


def _is_foreign(error: Exception) -> bool:
    """Whether an exception is MLflow's, its database's or the system's, and not a mistake in our code."""
    if isinstance(error, OSError | sqlite3.Error):
        return True
    return type(error).__module__.partition(".")[0] in ("mlflow", "sqlalchemy", "alembic", "requests", "urllib3")

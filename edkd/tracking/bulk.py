"""Write many new runs into a SQLite file at once.

MLflow's own API makes an object for every value and a transaction for every call: 1,000 runs of 240 epochs, some
3 million values, take several minutes. This module writes the same rows, by MLflow's own definition of its tables.
"""

import functools
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edkd.tracking.recorded import RecordedRun
from edkd.tracking.store import Store

if TYPE_CHECKING:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from sqlalchemy import Connection, Select

_CACHE = 200_000  # KiB: keeps the indexes of the metrics in memory; otherwise each value is looked up on the disk


@dataclass
class NewRun:
    """A run that MLflow does not have, and all its tags."""

    recorded: RecordedRun
    tags: dict[str, str]
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex)


class Writer:
    """Writes new runs into one experiment of a SQLite store."""

    def __init__(self, store: Store) -> None:
        self._experiment_id = int(store.experiment_id)
        self._location = store.client.get_experiment(store.experiment_id).artifact_location
        self._store = _open(store.uri, self._location)

    def add_files(self, run: NewRun, folder: Path) -> None:
        """Store the files of a folder as artifacts of a run that is not written yet."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        get_artifact_repository(self._artifact_uri(run)).log_artifacts(str(folder))

    def known(self, hashes: Iterable[str]) -> set[str]:
        """Return those `hashes` of configurations for which the store has a run, deleted or not."""
        from mlflow.store.tracking.dbmodels.models import SqlTag
        from sqlalchemy import select

        with self._store.ManagedSessionMaker() as session:
            found: Select[tuple[str]] = select(SqlTag.value).where(
                SqlTag.key == "edkd.run", SqlTag.value.in_(list(hashes))
            )
            return set(session.scalars(found))

    def write(self, runs: Iterable[NewRun], written: Callable[[], None]) -> None:
        """Write runs in one transaction, all or none; `written` is called after each."""
        from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlMetric, SqlParam, SqlRun, SqlTag
        from sqlalchemy import text

        with self._store.ManagedSessionMaker(read_only=False) as session:
            session.execute(text(f"PRAGMA cache_size = -{_CACHE}"))
            connection = session.connection()
            for run in runs:
                values = _values(run)
                latest = {value[0]: value for value in values}  # each metric at its last step
                metric = ("key", "value", "timestamp", "step", "is_nan", "run_uuid")
                _insert(connection, SqlRun, tuple(self._run(run)), [tuple(self._run(run).values())])
                _insert(connection, SqlTag, _TEXT, _texts(run, {**run.tags, "mlflow.runName": run.recorded.label}))
                _insert(connection, SqlParam, _TEXT, _texts(run, run.recorded.params))
                _insert(connection, SqlMetric, metric, values)
                _insert(connection, SqlLatestMetric, metric, list(latest.values()))
                written()

    def _run(self, run: NewRun) -> dict[str, Any]:
        recorded = run.recorded
        return {
            "run_uuid": run.run_id,
            "name": recorded.label,
            "source_type": "UNKNOWN",
            "source_name": "",
            "entry_point_name": "",
            "user_id": "unknown",
            "status": recorded.status,
            "start_time": recorded.started,
            "end_time": None if recorded.status == "RUNNING" else recorded.since,
            "source_version": "",
            "lifecycle_stage": "active",
            "artifact_uri": self._artifact_uri(run),
            "experiment_id": self._experiment_id,
        }

    def _artifact_uri(self, run: NewRun) -> str:
        return f"{self._location}/{run.run_id}/{self._store.ARTIFACTS_FOLDER_NAME}"


@functools.cache
def _open(uri: str, location: str) -> "SqlAlchemyStore":
    """Return MLflow's own store for the file, cached because opening it checks the whole schema."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    return SqlAlchemyStore(uri, location)


_TEXT = ("key", "value", "run_uuid")


def _texts(run: NewRun, values: dict[str, str]) -> list[tuple[Any, ...]]:
    return [(key, value, run.run_id) for key, value in values.items()]


def _values(run: NewRun) -> list[tuple[Any, ...]]:
    return [
        (key, value, time, step, False, run.run_id)
        for step, time, metrics in run.recorded.steps(after=0)
        for key, value in metrics.items()
    ]


def _insert(connection: "Connection", table: Any, columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    """Insert rows without SQLAlchemy's work on each value, which takes as long as SQLite itself."""
    if rows:
        marks = ", ".join("?" * len(columns))
        connection.exec_driver_sql(f"INSERT INTO {table.__tablename__} ({', '.join(columns)}) VALUES ({marks})", rows)

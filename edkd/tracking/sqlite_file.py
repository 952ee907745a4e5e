"""The SQLite file of an MLflow store: made whole or not at all, set aside where it is broken."""

import contextlib
import sqlite3
import time
from pathlib import Path

from edkd.console import console

_BESIDE = ("-journal", "-wal", "-shm")  # what SQLite keeps beside a file


def make(path: Path) -> None:
    """Make the file with MLflow's schema and default experiment, unless it is there and not empty.

    MLflow changes the schema in many steps and cannot go on with half of them, so they are done in a file beside it.
    To be called with the store's lock.
    """
    if path.is_file() and path.stat().st_size:
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    unfinished = path.with_name(f"{path.name}.new")
    for suffix in ("", *_BESIDE):  # of a process that was killed
        unfinished.with_name(unfinished.name + suffix).unlink(missing_ok=True)
    store = SqlAlchemyStore(f"sqlite:///{unfinished}", (path.parent / "mlartifacts").as_uri())
    store.engine.dispose()
    unfinished.replace(path)


def set_aside_broken(path: Path, *, filling: bool) -> None:
    """Rename a damaged or half-made file and say so; to be called with the store's lock.

    `filling` says that the journals of all runs are about to be read in.
    """
    if not is_broken(path):
        return
    aside = path.with_name(f"{path.name}.broken-{time.strftime('%Y%m%d-%H%M%S')}")
    for suffix in ("", *_BESIDE):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
    begun = "filled anew from the journals" if filling else "begun anew; `edkd sync` fills it from the journals"
    console.print(
        f"MLflow store {path} was damaged or half made: it is now {aside.name}, and {begun}",
        markup=False,
        soft_wrap=True,
    )


def is_broken(path: Path) -> bool:
    """Whether the file is a damaged SQLite file, or was left by an MLflow that was killed while it made the schema.

    An absent or empty file is neither, nor is one that somebody else holds. A file without SQLite's first bytes is
    damaged if its name ends in .db, and otherwise something else that was named by mistake.
    """
    if not path.is_file() or not path.stat().st_size:
        return False
    try:
        # Writable, for a transaction that was cut off is first undone.
        with contextlib.closing(sqlite3.connect(path.as_uri() + "?mode=rw", uri=True)) as database:
            if database.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                return True
            # MLflow makes this table first, and its first row, the default experiment, when the schema is complete.
            if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiments'").fetchone():
                return False
            return database.execute("SELECT 1 FROM experiments").fetchone() is None
    except sqlite3.OperationalError:
        return False
    except sqlite3.DatabaseError:
        with path.open("rb") as file:
            return path.suffix == ".db" or file.read(15) == b"SQLite format 3"


def move_artifacts(path: Path, experiment_id: str, old: str, new: str) -> None:
    """Set right where the files of an experiment lie, a URI: MLflow keeps it with the experiment and with each run.

    MLflow has no call for it.
    """
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", (new, experiment_id))
        database.execute(
            "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, length(?) + 1) "
            "WHERE experiment_id = ? AND substr(artifact_uri, 1, length(?)) = ?",
            (new, old, experiment_id, f"{old}/", f"{old}/"),
        )

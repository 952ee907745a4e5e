"""The SQLite file of an MLflow store: made whole or not at all, set aside where it is broken."""

import contextlib
import sqlite3
import time
from pathlib import Path

from edkd.console import console

_BESIDE = ("-journal", "-wal", "-shm")  # what SQLite keeps beside a file


def make(path: Path) -> None:
    """Make the file with MLflow's schema and default experiment, unless it is there and not empty.

    MLflow builds the schema in many steps and cannot resume a half-built one, so a file beside it is built, then
    renamed. The caller holds the store's lock.
    """
    if path.is_file() and path.stat().st_size:
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    unfinished = path.with_name(f"{path.name}.new")
    for suffix in ("", *_BESIDE):  # left by a killed process
        unfinished.with_name(unfinished.name + suffix).unlink(missing_ok=True)
    store = SqlAlchemyStore(f"sqlite:///{unfinished}", (path.parent / "mlartifacts").as_uri())
    store.engine.dispose()
    unfinished.replace(path)


def set_aside_broken(path: Path, *, filling: bool) -> None:
    """Rename a damaged or half-made file and report it. The caller holds the store's lock.

    `filling` says that the caller is about to read in the journals of all runs.
    """
    if not is_broken(path):
        return
    aside = path.with_name(f"{path.name}.broken-{time.strftime('%Y%m%d-%H%M%S')}")
    for suffix in ("", *_BESIDE):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
    begun = "filled anew from the journals" if filling else "begun anew; `edkd sync` fills it from the journals"
    console.print(
        f"MLflow store {path} was damaged or incomplete: it is now {aside.name}, and {begun}",
        markup=False,
        soft_wrap=True,
    )


def is_broken(path: Path) -> bool:
    """Whether the file is a damaged SQLite file, or was left by an MLflow that was killed while it made the schema.

    False for an absent or empty file, and for one that another process holds. A file without SQLite's first bytes is
    damaged if its name ends in .db; otherwise it is a file of another kind that was named by mistake.
    """
    if not path.is_file() or not path.stat().st_size:
        return False
    try:
        # Writable, because SQLite first rolls back an interrupted transaction.
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
    """Change the URI of an experiment's files from `old` to `new`, for the experiment and for each of its runs.

    MLflow has no call for it.
    """
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", (new, experiment_id))
        database.execute(
            "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, length(?) + 1) "
            "WHERE experiment_id = ? AND substr(artifact_uri, 1, length(?)) = ?",
            (new, old, experiment_id, f"{old}/", f"{old}/"),
        )

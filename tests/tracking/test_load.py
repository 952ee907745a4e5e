"""Reading of runs, and the number of calls that many runs take."""

import contextlib
import os
import shutil
import sqlite3

import pytest

from edkd.errors import EdkdError
from edkd.tracking import SyncReport, load_runs, store, sync, sync_all, sync_run
from tests.tracking.records import END, FAILURE, client, epochs, rows, start, write


def test_load_runs_pages_oldest_first(where, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_PAGE", 2)
    for letter in "edcba":
        write(tmp_path / "runs" / letter, start(run=letter * 16, at=ord(letter)), *epochs(1), END)
    sync_all(tmp_path / "runs", **where)
    assert [run["tags"]["edkd.run"][0] for run in load_runs(where["uri"], "edkd")] == list("abcde")


def test_reading_writes_nothing(tmp_path, empty_store, monkeypatch):
    folder = tmp_path / "read #only 50%"
    folder.mkdir()
    shutil.copy(empty_store, folder / "mlflow.db")
    (folder / "mlflow.db").chmod(0o444)
    folder.chmod(0o555)
    monkeypatch.chdir(tmp_path)
    opened = []
    original = os.open
    monkeypatch.setattr(
        os, "open", lambda path, *more, **named: (opened.append(path), original(path, *more, **named))[1]
    )
    uri = f"sqlite:///{folder}/mlflow.db"
    assert load_runs(uri, "unused") == []
    assert [path for path in opened if str(folder) in str(path)] == []  # no lock, which would be a file beside it
    with pytest.raises(Exception, match="readonly database"):
        store.open_existing(uri).create_experiment("new")
    folder.chmod(0o755)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == [
        folder.name,
        f"{folder.name}/mlflow.db",
    ]


def test_many_runs_take_few_calls(where, tmp_path, monkeypatch):
    from mlflow import MlflowClient

    counts = dict.fromkeys(("search_runs", "create_run", "log_batch"), 0)

    def counting(name):
        original = getattr(MlflowClient, name)

        def counted(*args, **kwargs):
            counts[name] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(MlflowClient, name, counted)

    for name in counts:
        counting(name)
    for number in range(5):
        write(tmp_path / "runs" / str(number), start(run=f"{number:016x}"), *epochs(5), END)
    sync_all(tmp_path / "runs", **where)
    assert counts == {"search_runs": 1 + 2, "create_run": 1, "log_batch": 0}  # of their sweep
    counts.update(dict.fromkeys(counts, 0))
    sync_all(tmp_path / "runs", **where)
    assert counts == {"search_runs": 1, "create_run": 0, "log_batch": 0}


def without_ids(where):
    """What MLflow stores about runs, and their files, with names in place of the ids that it gives them."""
    names = {run["run_id"]: run["name"] for run in load_runs(where["uri"], where["experiment"])}
    texts = {table: "\n".join(found) for table, found in rows(where).items()}
    files = [f"{run_id} {each.path}" for run_id in names for each in client(where).list_artifacts(run_id)]
    texts["files"] = "\n".join(files)
    for run_id, name in names.items():
        texts = {table: text.replace(run_id, name) for table, text in texts.items()}
    return {table: sorted(text.split("\n")) for table, text in texts.items()}


@pytest.mark.parametrize("broken", [False, True])
def test_many_new_runs_are_stored_as_mlflow_stores_one(where, tmp_path, monkeypatch, broken):
    for letter, last in (("a", [END]), ("b", [FAILURE]), ("c", [])):
        write(tmp_path / "runs" / letter, start(run=letter * 16, name=letter * 9, sweep=None), *epochs(3), *last)
        (tmp_path / "runs" / letter / "config.yaml").write_text("seed: 0\n")
    if broken:
        monkeypatch.setattr(sync.bulk.Writer, "write", lambda *_: (_ for _ in ()).throw(sqlite3.OperationalError()))
    results = sync_all(tmp_path / "runs", **where)
    assert [found for _, found in results] == [SyncReport(created=True, epochs_logged=3, ended=True)] * 3
    together = without_ids(where)
    with contextlib.closing(sqlite3.connect(where["uri"].removeprefix("sqlite:///"))) as database, database:
        for table in ("metrics", "latest_metrics", "params", "tags", "runs"):
            database.execute(f"DELETE FROM {table}")
    for letter in "abc":
        sync_run(tmp_path / "runs" / letter, **where)
    assert without_ids(where) == together


def test_reading_what_is_not_there_is_an_error_and_creates_nothing(where, tmp_path):
    with pytest.raises(EdkdError, match=r"there is no MLflow store at .*absent\.db"):
        load_runs(f"sqlite:///{tmp_path}/absent.db", "edkd")
    assert not (tmp_path / "absent.db").exists()
    with pytest.raises(EdkdError, match=r"has no experiment 'edkd'; it has: Default, unused"):
        load_runs(where["uri"], "edkd")

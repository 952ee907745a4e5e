"""Stores that cannot be used."""

import contextlib
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from edkd import tracking
from edkd.errors import EdkdError
from edkd.tracking import load_runs, sqlite_file, store, sync_all, sync_run
from tests.tracking.records import END, epochs, only_run, start, write


@pytest.mark.parametrize(
    "uri", ["mlruns", "./mlruns", "file:///tmp/mlruns", "sqlite://", "sqlite:///:memory:", "ftp://x"]
)
def test_a_uri_that_mlflow_would_refuse_is_refused_in_one_line(uri, tmp_path):
    with pytest.raises(EdkdError, match="allowed are sqlite:///FILE, http://…") as refusal:
        tracking.create_store(uri=uri, experiment="edkd", artifacts=None)
    assert uri in str(refusal.value)
    assert "\n" not in str(refusal.value)


def refused(path):
    with pytest.raises(EdkdError, match="it has to be a writable SQLite file in a writable folder") as refusal:
        tracking.create_store(uri=f"sqlite:///{path}", experiment="edkd", artifacts=None)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("not a database, but somebody's notes\n" * 50)
    refused(path)
    refused(tmp_path)
    refused(path / "below.db")
    assert path.read_text().startswith("not a database")
    assert [each.name for each in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_file_or_folder_is_refused(tmp_path, empty_store):
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    (tmp_path / "mlflow.db").chmod(0o444)
    refused(tmp_path / "mlflow.db")
    tmp_path.chmod(0o555)
    refused(tmp_path / "new.db")
    refused(tmp_path / "new" / "mlflow.db")
    tmp_path.chmod(0o755)
    assert [each.name for each in tmp_path.iterdir()] == ["mlflow.db"]


KILLED = """
import os, sys
import sqlalchemy
from edkd import tracking

seen = 0
def stop(connection, cursor, statement, *_):
    global seen
    seen += statement.lstrip().startswith("CREATE TABLE")
    if seen == 12:
        os._exit(9)
sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", stop)
tracking.create_store(uri=sys.argv[1], experiment="edkd", artifacts=None)
"""


def test_a_process_that_is_killed_while_it_makes_the_store_leaves_none(tmp_path):
    where = {"uri": f"sqlite:///{tmp_path}/mlflow.db", "experiment": "edkd", "artifacts": None}
    command = [sys.executable, "-c", KILLED, where["uri"]]
    assert subprocess.run(command, check=False, cwd=Path(__file__).parents[2]).returncode == 9
    assert not sqlite_file.is_broken(tmp_path / "mlflow.db")
    tracking.create_store(**where)
    assert load_runs(where["uri"], "edkd") == []
    assert not (tmp_path / "mlflow.db.new").exists()


def test_files_lie_beside_a_sqlite_store_wherever_the_process_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    where = {"uri": f"sqlite:///{tmp_path}/out/mlflow.db", "experiment": "edkd", "artifacts": None}
    (tmp_path / "out").mkdir()
    sync_run(write(tmp_path / "out" / "runs" / "kd-s0", start(), *epochs(1), END), **where)
    assert list((tmp_path / "out" / "mlartifacts").rglob("summary.json"))
    assert not (tmp_path / "mlruns").exists()


def test_a_description_that_somebody_wrote_stays(where):
    opened = tracking.store.open_store(**where)
    opened.client.set_experiment_tag(opened.experiment_id, "mlflow.note.content", "ours")
    tracking.store._open.cache_clear()
    tracking.store.open_store(**where)
    assert opened.client.get_experiment(opened.experiment_id).tags["mlflow.note.content"] == "ours"


def half_made(path):
    """As MLflow leaves it that is killed: some tables, and no experiment."""
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("DELETE FROM experiments")
        database.execute("DROP TABLE trace_info")


def damaged(path):
    content = path.read_bytes()
    path.write_bytes(content[:20000] + b"x" * 20000 + content[40000:])


def no_database(path):
    path.write_bytes(bytes(range(255, -1, -1)) * 20)


@pytest.mark.parametrize("breaking", [half_made, damaged, no_database])
def test_a_broken_store_is_set_aside_and_filled_again(where, run_dir, breaking, capsys):
    path = Path(where["uri"].removeprefix("sqlite:///"))
    breaking(path)
    broken = path.read_bytes()
    write(run_dir, start(), *epochs(1), END)
    tracking.create_store(**where)
    (aside,) = path.parent.glob("mlflow.db.broken-*")
    assert aside.read_bytes() == broken
    assert "`edkd sync` fills it from the journals" in capsys.readouterr().err
    sync_all(run_dir.parent, **where)
    assert only_run(where)["status"] == "FINISHED"
    assert len(list(path.parent.glob("mlflow.db.broken-*"))) == 1


def test_reading_a_broken_store_says_what_mends_it_and_the_sync_does_not_advise_itself(where, run_dir, capsys):
    path = Path(where["uri"].removeprefix("sqlite:///"))
    no_database(path)
    with pytest.raises(EdkdError) as refusal:
        load_runs(where["uri"], "edkd")
    cure = f"`edkd sync --uri {where['uri']}` sets it aside and fills another from the journals"
    assert str(refusal.value) == f"MLflow store {where['uri']} is damaged (file is not a database): {cure}"
    write(run_dir, start(), *epochs(1), END)
    sync_all(run_dir.parent, **where)
    (aside,) = path.parent.glob("mlflow.db.broken-*")
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "incomplete" in line]
    assert line.endswith(f"it is now {aside.name}, and filled anew from the journals")


def test_a_path_that_mlflow_would_read_as_another_is_refused_at_once(tmp_path):
    with pytest.raises(EdkdError, match="the path holds a % and two digits"):
        tracking.create_store(uri=f"sqlite:///{tmp_path}/x%20y/mlflow.db", experiment="edkd", artifacts=None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("port", [None, 65536])
def test_pages_at_a_port_that_cannot_be_had(where, port):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = port or server.getsockname()[1]
        with pytest.raises(EdkdError, match=f"cannot serve at port {port}: .*; --port names another"):
            tracking.serve(**where, port=port)


def test_a_deleted_experiment_is_named(where):
    opened = store.open_store(**where)
    opened.client.delete_experiment(opened.experiment_id)
    store._open.cache_clear()
    with pytest.raises(EdkdError, match=r"experiment 'edkd' of the MLflow store .* was deleted: restore it"):
        tracking.create_store(**where)


def test_the_password_of_a_server_stays_out_of_messages(run_dir):
    write(run_dir, start())
    with pytest.raises(EdkdError, match=r"MLflow store http://127\.0\.0\.1:9 failed") as refusal:
        sync_run(run_dir, uri="http://me:secret@127.0.0.1:9", experiment="edkd", artifacts=None)
    assert str(refusal.value) == "MLflow store http://127.0.0.1:9 failed: Connection refused"

"""Against real SQLite stores; the journals are written by hand, as the contract between training and tracking."""

import contextlib
import json
import logging
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edkd import tracking
from edkd.errors import EdkdError
from edkd.rundir import lock
from edkd.tracking import LiveTracker, SyncReport, live, load_runs, sqlite_file, store, sync, sync_all, sync_run

# MLflow 3.17 with SQLAlchemy 2.1, at its import
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning")

RUN = "0123456789abcdef"
TAGS = {"pair": "vgg13-vgg8", "teacher": "vgg13", "student": "vgg8", "distiller": "kd", "dataset": "digits-16"}
END = {
    "event": "end",
    "time": 2000.0,
    "last": {"epoch": 3, "top1": 30.0, "top5": 80.0, "loss": 1.5},
    "best": {"epoch": 2, "top1": 31.0, "top5": 81.0, "loss": 1.4, "by": "test"},
    "seconds": 12.5,
    "peak_memory_mb": 512.0,
}
FAILURE = {"event": "failure", "time": 1500.0, "error": "ValueError: loss is not finite", "epoch": 3}


def start(run=RUN, at=1000.0, **more):
    record = {"event": "start", "time": at, "run": run, "name": f"digits-16/vgg13-vgg8/kd-s0-{run[:8]}"}
    distiller = {"_target_": "edkd.distillers.KD", "temperature": 4.0}
    record |= {"sweep": "nightly", "config": {"seed": 0, "distiller": distiller, "milestones": [1, 2]}}
    record |= {"tags": {**TAGS, "seed": "0", "config_hash": run, "git_dirty": False}, "versions": {"torch": "2.13.0"}}
    record |= {"host": "node7", "device": "cpu", "threads": 2, "data_sha256": "d" * 64}
    return record | {"teacher": {"id": "import:1", "sha256": "e" * 64, "top1": 74.64}} | more


def epoch(number, *, at=None, shift=0.0):
    return {
        "event": "epoch",
        "time": 1000.0 + number if at is None else at,
        "epoch": number,
        "metrics": {"train/loss": 4.0 - number + shift, "test/top1": 10.0 * number, "lr": 0.05},
        "seconds": {"train": 3.0, "test": 0.5},
        "images_per_second": 400.0,
    }


def epochs(count, **more):
    return [epoch(number, **more) for number in range(1, count + 1)]


def write(run_dir, *records):
    """Append to the journal."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / "journal.jsonl").open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
    return run_dir


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory):
    """A SQLite file with MLflow's schema, which takes a second to make."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    tracking.create_store(uri=f"sqlite:///{path}", experiment="unused", artifacts=None)
    return path


@pytest.fixture
def where(tmp_path, empty_store):
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return {
        "uri": f"sqlite:///{tmp_path}/mlflow.db",
        "experiment": "edkd",
        "artifacts": str(tmp_path / "odd %20 #name"),
    }


@pytest.fixture
def run_dir(tmp_path):
    return tmp_path / "runs" / "kd-s0"


@pytest.fixture
def calls(monkeypatch):
    """The number of metrics, parameters and tags of each batch that was logged."""
    from mlflow import MlflowClient

    original, sizes = MlflowClient.log_batch, []

    def counting(self, run_id, metrics=(), params=(), tags=()):
        sizes.append((len(metrics), len(params), len(tags)))
        original(self, run_id, metrics=metrics, params=params, tags=tags)

    monkeypatch.setattr(MlflowClient, "log_batch", counting)
    return sizes


def client(where):
    return store.open_store(**where).client


def only_run(where):
    (run,) = load_runs(where["uri"], where["experiment"])
    return run


def history(where, key, run=None):
    """The values of a metric as (step, value); a value that is stored twice appears twice."""
    points = client(where).get_metric_history((run or only_run(where))["run_id"], key)
    return sorted((point.step, point.value) for point in points)


NOTHING = SyncReport(created=False, epochs_logged=0, ended=False)


def rows(where):
    """Everything that MLflow stores about runs."""
    tables = ("runs", "metrics", "latest_metrics", "params", "tags")
    with contextlib.closing(sqlite3.connect(where["uri"].removeprefix("sqlite:///"))) as database:
        return {table: sorted(map(repr, database.execute(f"SELECT * FROM {table}"))) for table in tables}


# One run


def test_a_finished_run_comes_to_mlflow_whole(where, run_dir):
    write(run_dir, start(), *epochs(3), END)
    (run_dir / "config.yaml").write_text("seed: 0\n")
    assert sync_run(run_dir, **where) == SyncReport(created=True, epochs_logged=3, ended=True)
    run = only_run(where)
    assert (run["status"], run["name"]) == ("FINISHED", "digits-16/vgg13-vgg8/kd-s0-01234567")
    assert (run["start_time"], run["end_time"]) == (1_000_000, 2_000_000)
    assert run["params"] == {
        "seed": "0",
        "distiller.temperature": "4.0",
        "milestones": "[1, 2]",
    }
    expected = TAGS | {"seed": "0", "config_hash": RUN, "git_dirty": "False", "host": "node7", "device": "cpu"}
    expected |= {"teacher_id": "import:1", "teacher_sha256": "e" * 64, "teacher_top1": "74.64"}
    expected |= {"versions.torch": "2.13.0", "best_by": "test", "edkd.run": RUN}
    assert expected.items() <= run["tags"].items()
    assert run["metrics"] == {
        "train/loss": 1.0, "test/top1": 30.0, "lr": 0.05,
        "seconds/train": 3.0, "seconds/test": 0.5, "images_per_second": 400.0,
        "last/epoch": 3.0, "last/top1": 30.0, "last/top5": 80.0, "last/loss": 1.5,
        "best/epoch": 2.0, "best/top1": 31.0, "best/top5": 81.0, "best/loss": 1.4,
        "seconds": 12.5, "peak_memory_mb": 512.0, "teacher/top1": 74.64,
    }  # fmt: skip
    assert history(where, "train/loss") == [(1, 3.0), (2, 2.0), (3, 1.0)]
    assert history(where, "best/top1") == [(0, 31.0)]  # one step, of which MLflow draws bars
    assert client(where).get_run(run["run_id"]).info.run_name == "kd vgg13→vgg8 s0"
    assert {"directory": "runs/kd-s0"}.items() <= run["tags"].items()
    (point, *_) = client(where).get_metric_history(run["run_id"], "lr")
    assert (point.step, point.timestamp) == (1, 1_001_000)
    (folder,) = Path(where["artifacts"]).glob("*/artifacts")
    assert (folder / "config.yaml").read_text() == "seed: 0\n"
    assert json.loads((folder / "summary.json").read_text()) == END
    before = rows(where)
    assert sync_run(run_dir, **where) == NOTHING
    assert rows(where) == before


def test_accuracies_have_two_decimals_in_mlflow_and_all_for_the_analysis(where, run_dir):
    last = END["last"] | {"top1": 45.682451253481894}
    write(run_dir, start(), *epochs(3), END | {"last": last})
    (run_dir / "best.pt").touch()
    sync_run(run_dir, **where)
    run = only_run(where)
    assert history(where, "last/top1") == [(0, 45.68)]
    assert run["metrics"]["last/top1"] == 45.682451253481894
    assert run["tags"]["weights"] == "runs/kd-s0/best.pt"


def test_live_epochs_cost_one_batch_each_and_end_up_as_if_synced_late(where, run_dir, tmp_path, calls):
    with lock.hold(run_dir):
        write(run_dir, start())
        sync_run(run_dir, **where)
        for number in (1, 2, 3):
            calls.clear()
            write(run_dir, epoch(number))
            assert sync_run(run_dir, **where) == SyncReport(created=False, epochs_logged=1, ended=False)
            assert calls == [(6, 0, 1)]
            assert only_run(where)["status"] == "RUNNING"
            assert only_run(where)["end_time"] is None
        write(run_dir, END)
        assert sync_run(run_dir, **where).ended
    late = where | {"experiment": "late"}
    assert sync_run(run_dir, **late).created
    live_run, late_run = only_run(where), only_run(late)
    assert {key for key in live_run if live_run[key] != late_run[key]} == {"run_id", "tags"}
    other = {key for key in live_run["tags"] if live_run["tags"][key] != late_run["tags"][key]}
    assert other == {"mlflow.parentRunId"}
    assert all(history(where, key) == history(late, key) for key in live_run["metrics"])


def test_a_failed_run_is_resumed_and_finishes_without_duplicates(where, run_dir):
    write(run_dir, start(), *epochs(3), FAILURE)
    assert sync_run(run_dir, **where).ended
    failed = only_run(where)
    assert (failed["status"], failed["end_time"]) == ("FAILED", 1_500_000)
    assert failed["tags"]["error"] == FAILURE["error"]
    with lock.hold(run_dir):
        resumed = start(at=1600.0, host="node8", config={"seed": 0, "batch": 64}, resumed_from=2)
        write(run_dir, resumed, epoch(3, at=1610.0), epoch(4, at=1620.0))
        assert sync_run(run_dir, **where) == SyncReport(created=False, epochs_logged=1, ended=False)
        running = only_run(where)
        assert running["status"] == "RUNNING"
        assert "error" not in running["tags"]
        assert (running["tags"]["host"], running["tags"]["attempts"]) == ("node8", "2")
        assert running["params"]["batch"] == "64"
    write(run_dir, END)
    sync_run(run_dir, **where)
    finished = only_run(where)
    assert (finished["status"], finished["run_id"]) == ("FINISHED", failed["run_id"])
    assert (finished["start_time"], finished["end_time"]) == (1_000_000, 2_000_000)
    assert history(where, "test/top1") == [(1, 10.0), (2, 20.0), (3, 30.0), (4, 40.0)]


def test_a_run_that_ends_once_more_repeats_no_value(where, run_dir):
    write(run_dir, start(), *epochs(3), END)
    sync_run(run_dir, **where)
    write(run_dir, start(at=2100.0), END | {"time": 2200.0})
    assert sync_run(run_dir, **where) == SyncReport(created=False, epochs_logged=0, ended=True)
    run = only_run(where)
    assert (run["end_time"], run["tags"]["attempts"]) == (2_200_000, "2")
    assert history(where, "last/top1") == [(0, 30.0)]


def test_a_run_without_a_last_word_runs_where_held_and_was_killed_where_not(where, run_dir):
    write(run_dir, start(), *epochs(2))
    with lock.hold(run_dir):
        sync_run(run_dir, **where)
        assert only_run(where)["status"] == "RUNNING"
    assert sync_run(run_dir, **where).ended
    assert (only_run(where)["status"], only_run(where)["end_time"]) == ("KILLED", 1_002_000)
    with lock.hold(run_dir):
        write(run_dir, start(at=1100.0))
        sync_run(run_dir, **where)
        assert only_run(where)["status"] == "RUNNING"
        write(run_dir, {"event": "interrupted", "time": 1200.0, "epoch": 2})
        assert sync_run(run_dir, **where).ended
    assert (only_run(where)["status"], only_run(where)["end_time"]) == ("KILLED", 1_200_000)


def test_a_pruned_run_says_so_and_fails_no_sweep(where, run_dir):
    sweep = tracking.start_sweep("digits-1", **where)
    write(run_dir, start(), *epochs(2), {"event": "pruned", "time": 1200.0, "epoch": 2})
    sync_run(run_dir, **where)
    run = only_run(where)
    assert (run["status"], run["tags"]["pruned_after"]) == ("KILLED", "2")
    assert tracking.settle_sweeps({"digits-1": {"pruned": 1, "finished": 2}}, **where) == {"digits-1": "FINISHED"}
    assert client(where).get_run(sweep).data.tags["runs.pruned"] == "1"


def test_a_run_with_other_values_than_the_journal_is_made_anew(where, run_dir):
    write(run_dir, start(), *epochs(3))
    sync_run(run_dir, **where)
    before = only_run(where)
    write(run_dir, start(at=1100.0), *epochs(3, shift=0.25)[1:], END)
    assert sync_run(run_dir, **where) == SyncReport(created=True, epochs_logged=3, ended=True)
    assert only_run(where)["run_id"] != before["run_id"]
    assert history(where, "train/loss") == [(1, 3.0), (2, 2.25), (3, 1.25)]
    assert client(where).get_run(before["run_id"]).info.lifecycle_stage == "deleted"
    shutil.rmtree(run_dir)  # and one that is shorter than what MLflow has
    write(run_dir, start(at=5000.0), *epochs(1))
    assert sync_run(run_dir, **where).created
    assert history(where, "lr") == [(1, 0.05)]


@pytest.mark.parametrize("tag", ["edkd.synced", "edkd.state"])
def test_a_crash_between_values_and_their_mark_leaves_no_duplicates(where, run_dir, tag):
    write(run_dir, start(), *epochs(3), END)
    sync_run(run_dir, **where)
    before = rows(where)
    client(where).delete_tag(only_run(where)["run_id"], tag)
    assert rows(where) != before
    sync_run(run_dir, **where)
    assert rows(where) == before


def test_a_run_that_was_deleted_in_mlflow_comes_back(where, run_dir):
    write(run_dir, start(), *epochs(2), END)
    sync_run(run_dir, **where)
    client(where).delete_run(only_run(where)["run_id"])
    assert sync_run(run_dir, **where) == SyncReport(created=True, epochs_logged=2, ended=True)
    assert only_run(where)["metrics"]["last/top1"] == 30.0


def test_twins_made_by_hosts_without_a_common_lock_become_one(where, run_dir):
    write(run_dir, start(), *epochs(1))
    sync_run(run_dir, **where)
    opened, tags = store.open_store(**where), only_run(where)["tags"]
    ours = {key: tags[key] for key in ("edkd.run", "edkd.path")}
    opened.client.create_run(opened.experiment_id, start_time=2, tags=ours)
    assert sync_run(run_dir, **where) == SyncReport(created=False, epochs_logged=1, ended=True)
    assert only_run(where)["start_time"] == 2


def test_two_people_who_train_one_configuration_keep_a_run_each(where, run_dir, tmp_path):
    other = write(tmp_path / "elsewhere", start(), *epochs(1))
    write(run_dir, start(), *epochs(2))
    for _ in range(2):
        sync_run(run_dir, **where)
        sync_run(other, **where)
    assert sorted(len(history(where, "lr", run)) for run in load_runs(where["uri"], where["experiment"])) == [1, 2]


def logged_by_an_earlier_version(where, folder):
    """The runs below a folder as earlier versions logged them: known by a hash of the absolute path."""
    for path in folder.rglob("journal.jsonl"):
        sync_run(path.parent, **where)
    opened = store.open_store(**where)
    for run in load_runs(where["uri"], where["experiment"]):
        opened.client.set_tag(run["run_id"], "edkd.directory", "0" * 16)
        opened.client.delete_tag(run["run_id"], "edkd.path")


@pytest.mark.parametrize("moving", [shutil.move, shutil.copytree])
@pytest.mark.parametrize("earlier", [False, True])
def test_outputs_that_are_moved_keep_their_runs_and_files(tmp_path, empty_store, moving, earlier):
    def place(name):
        uri, artifacts = f"sqlite:///{tmp_path}/{name}/mlflow.db", str(tmp_path / name / "mlartifacts")
        return {"uri": uri, "experiment": "edkd", "artifacts": artifacts}

    first = write(tmp_path / "old" / "runs" / "digits" / "a-b" / "kd-s0-01234567", start(), *epochs(2), END)
    (first / "config.yaml").write_text("seed: 0\n")
    shutil.copy(empty_store, tmp_path / "old" / "mlflow.db")
    sync_run(first, **place("old"))
    if earlier:
        logged_by_an_earlier_version(place("old"), tmp_path / "old")
    before = only_run(place("old"))["run_id"]
    moving(tmp_path / "old", tmp_path / "new place")
    there = set((tmp_path / "old").rglob("*"))
    where = place("new place")
    sync_all(tmp_path / "new place" / "runs", **where)
    assert only_run(where)["run_id"] == before
    second = start(run="f" * 16), *epochs(1), END
    write(tmp_path / "new place" / "runs" / "digits" / "a-b" / "kd-s1-ffffffff", *second)
    sync_all(tmp_path / "new place" / "runs", **where)
    assert {run["tags"]["edkd.path"] for run in load_runs(where["uri"], "edkd")} == {
        "digits/a-b/kd-s0-01234567",
        "digits/a-b/kd-s1-ffffffff",
    }
    assert set((tmp_path / "old").rglob("*")) == there
    for run in load_runs(where["uri"], "edkd"):
        client(where).download_artifacts(run["run_id"], "summary.json", str(tmp_path))
    assert len(list((tmp_path / "new place" / "mlartifacts").glob("*/artifacts/summary.json"))) == 2


def test_on_a_server_each_person_has_a_run(tmp_path, monkeypatch):
    opened = store.Store(client=None, uri="https://mlflow", experiment="edkd", experiment_id="1")
    monkeypatch.setenv("USER", "ann")
    assert sync._path(opened, tmp_path / "outputs" / "runs" / "a" / "b" / "kd-s0") == "ann:a/b/kd-s0"


def test_long_and_many_values_respect_the_limits_of_mlflow(where, run_dir, calls):
    config = {f"key {number}": number for number in range(230)} | {"long": "x" * 7000, "a=b": {}}
    many = [epoch(number) for number in range(1, 401)]
    write(run_dir, start(config=config), *many, FAILURE | {"error": "y" * 9000})
    assert sync_run(run_dir, **where) == SyncReport(created=True, epochs_logged=400, ended=True)
    run = only_run(where)
    assert len(run["params"]) == 232
    assert run["params"]["long"] == "x" * 6000
    assert run["params"]["a_b"] == "{}"
    assert run["tags"]["error"] == "y" * 5000
    assert [len(history(where, key, run)) for key in ("lr", "seconds/test")] == [400, 400]
    assert max(sum(sizes) for sizes in calls) <= 1000
    assert sum(1 for metrics, _, _ in calls if metrics) == 3  # 2400 values


def test_what_is_no_number_is_left_out(where, run_dir):
    broken = epoch(1)
    broken["metrics"] |= {"train/loss": None}
    last = END["last"] | {"loss": None}
    write(run_dir, start(sweep=None, teacher=None), broken, END | {"last": last})
    sync_run(run_dir, **where)
    run = only_run(where)
    assert not {"train/loss", "last/loss"} & run["metrics"].keys()
    assert not {"mlflow.parentRunId", "sweep", "teacher_id"} & run["tags"].keys()


def test_a_journal_without_a_start_or_with_half_a_line_is_tolerated(where, run_dir):
    run_dir.mkdir(parents=True)
    (run_dir / "journal.jsonl").write_text('{"event": "sta')
    assert sync_run(run_dir, **where) == NOTHING
    assert load_runs(where["uri"], "edkd") == []
    (run_dir / "journal.jsonl").unlink()
    write(run_dir, start(), *epochs(2))
    with (run_dir / "journal.jsonl").open("a") as file:
        file.write('{"event": "epoch", "epo')
    assert sync_run(run_dir, **where).epochs_logged == 2


# Many runs


def test_sync_all_reports_each_run_and_goes_on_after_a_bad_one(where, tmp_path):
    runs = tmp_path / "runs"
    write(runs / "a" / "kd", start(run="a" * 16), *epochs(2), END)
    write(runs / "b" / "damaged", start(run="b" * 16))
    (runs / "b" / "damaged" / "journal.jsonl").write_text('nonsense\n{"event": "end", "time": 1}\n')
    write(runs / "c" / "edited", start(run="c" * 16), {"event": "epoch", "time": 1.0, "epoch": 1})
    write(runs / "d" / "kd", start(run="d" * 16), *epochs(1), FAILURE)
    results = sync_all(runs, **where)
    assert [path.parent.name for path, _ in results] == ["a", "b", "c", "d"]
    failed = [str(found) for _, found in results if isinstance(found, EdkdError)]
    assert "line 1 of" in failed[0] and "metrics" in failed[1] and "\n" not in "".join(failed)
    statuses = {run["tags"]["config_hash"]: run["status"] for run in load_runs(where["uri"], "edkd")}
    assert statuses == {"a" * 16: "FINISHED", "d" * 16: "FAILED"}
    before = rows(where)
    assert [found for _, found in sync_all(runs, **where) if isinstance(found, SyncReport)] == [NOTHING] * 2
    assert rows(where) == before


def test_a_sweep_is_the_parent_of_its_runs(where, tmp_path):
    parent = tracking.start_sweep("nightly", **where)
    assert client(where).get_run(parent).info.status == "RUNNING"
    for letter in "ab":
        write(tmp_path / "runs" / letter, start(run=letter * 16), *epochs(1), END)
    sync_all(tmp_path / "runs", **where)
    runs = load_runs(where["uri"], "edkd")  # the parent is not among them
    assert [run["tags"]["mlflow.parentRunId"] for run in runs] == [parent, parent]
    tracking.settle_sweeps({"nightly": {"finished": 2, "failed": 1}}, **where)
    run = client(where).get_run(parent)
    assert (run.info.status, run.info.run_name) == ("FAILED", "sweep nightly")
    assert {"runs.finished": "2", "runs.failed": "1", "edkd.sweep": "nightly"}.items() <= run.data.tags.items()
    assert tracking.start_sweep("nightly", **where) == parent
    assert client(where).get_run(parent).info.status == "RUNNING"


def test_sweeps_that_ended_are_settled_once(where):
    parents = {name: tracking.start_sweep(name, **where) for name in ("good", "bad", "mended", "going")}
    tracking.settle_sweeps({"mended": {"finished": 1, "failed": 1}}, **where)
    outcomes = {"good": {"finished": 2}, "bad": {"finished": 1, "new": 1}, "mended": {"finished": 2}}
    outcomes["unseen"] = {"new": 1}
    expected = {"good": "FINISHED", "bad": "FAILED", "mended": "FINISHED"}
    assert tracking.settle_sweeps(outcomes, **where) == expected
    runs = {name: client(where).get_run(run_id) for name, run_id in parents.items()}
    assert {name: run.info.status for name, run in runs.items()} == expected | {"going": "RUNNING"}
    counted = {key: value for key, value in runs["mended"].data.tags.items() if key.startswith("runs.")}
    assert counted == {"runs.finished": "2"}
    assert tracking.settle_sweeps(outcomes, **where) == {}
    assert len(rows(where)["runs"]) == 4, "no parent is made for a sweep that nothing was logged of"


def test_who_starts_a_sweep_at_the_same_moment_gets_the_same_parent(where, monkeypatch):
    from mlflow import MlflowClient

    original = MlflowClient.create_run

    def slow(self, *args, **kwargs):
        time.sleep(0.2)  # long enough for the others to look in vain
        return original(self, *args, **kwargs)

    tracking.create_store(**where)
    monkeypatch.setattr(MlflowClient, "create_run", slow)
    with ThreadPoolExecutor(4) as pool:
        parents = list(pool.map(lambda _: tracking.start_sweep("nightly", **where), range(4)))
    assert len(set(parents)) == 1
    assert len(rows(where)["runs"]) == 1


CROWD = """
import json, multiprocessing, sys
from pathlib import Path

network = []
def watch(event, arguments):
    if event in ("socket.getaddrinfo", "socket.connect") and not isinstance(arguments[-1], (str, bytes)):
        network.append(repr((event, arguments)))
sys.addaudithook(watch)

from edkd import tracking
where, runs = json.loads(sys.argv[1]), Path(sys.argv[2])
tracking.create_store(**where | {"uri": sys.argv[3]})  # another one: what is slow to import is imported once

def work(number, barrier, answers):
    barrier.wait()
    try:
        names = (f"own{number}", f"pair{number % 4}", "common")
        reports = [tracking.sync_run(runs / name, **where) for name in names]
        created, logged = sum(report.created for report in reports), sum(report.epochs_logged for report in reports)
        answers.put({"created": created, "logged": logged, "network": network})
    except BaseException as error:
        answers.put({"error": repr(error)})

context = multiprocessing.get_context("fork")
barrier, answers = context.Barrier(8), context.Queue()
processes = [context.Process(target=work, args=(number, barrier, answers)) for number in range(8)]
for process in processes: process.start()
print(json.dumps([answers.get(timeout=120) for _ in processes]))
for process in processes: process.join()
"""


def test_eight_processes_at_once_make_no_twins_no_noise_and_no_network_traffic(tmp_path, empty_store):
    """The store is not there before."""
    where = {"uri": f"sqlite:///{tmp_path}/mlflow.db", "experiment": "edkd", "artifacts": str(tmp_path / "artifacts")}
    shutil.copy(empty_store, tmp_path / "other.db")
    runs = tmp_path / "runs"
    names = [*(f"own{number}" for number in range(8)), *(f"pair{number}" for number in range(4)), "common"]
    for number, name in enumerate(names):
        write(runs / name, start(run=f"{number:016x}"), *epochs(5), END)
    untouched = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW", "DO_NOT", "PYTEST"))}
    done = subprocess.run(
        [sys.executable, "-c", CROWD, json.dumps(where), str(runs), f"sqlite:///{tmp_path}/other.db"],
        capture_output=True, text=True, check=False, timeout=200, env=untouched, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    answers = json.loads(done.stdout)
    assert [answer for answer in answers if "error" in answer or answer["network"]] == []
    assert sum(answer["created"] for answer in answers) == 13
    assert sum(answer["logged"] for answer in answers) == 13 * 5
    loaded = load_runs(where["uri"], "edkd")
    assert sorted(run["tags"]["edkd.run"] for run in loaded) == [f"{number:016x}" for number in range(13)]
    assert {run["status"] for run in loaded} == {"FINISHED"}
    assert len({run["tags"]["mlflow.parentRunId"] for run in loaded}) == 1
    assert [len(history(where, "lr", run)) for run in loaded] == [5] * 13
    assert len(rows(where)["runs"]) == 14  # with one parent, and none that was made twice and deleted again


# Reading


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


# Stores that cannot be used


@pytest.mark.parametrize(
    "uri", ["mlruns", "./mlruns", "file:///tmp/mlruns", "sqlite://", "sqlite:///:memory:", "ftp://x"]
)
def test_a_uri_that_mlflow_would_refuse_is_refused_in_one_line(uri, tmp_path):
    with pytest.raises(EdkdError, match="allowed are sqlite:///FILE, http://…") as refusal:
        tracking.create_store(uri=uri, experiment="edkd", artifacts=None)
    assert uri in str(refusal.value)
    assert "\n" not in str(refusal.value)


def refused(path):
    began = time.monotonic()
    with pytest.raises(EdkdError, match="it has to be a writable SQLite file in a writable folder") as refusal:
        tracking.create_store(uri=f"sqlite:///{path}", experiment="edkd", artifacts=None)
    assert time.monotonic() - began < 60  # MLflow tries for 100 s
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


# Beside the training


def test_the_live_tracker_follows_the_journal(where, run_dir, caplog):
    with lock.hold(run_dir):
        assert not sync_run(run_dir, **where).created  # as the tracker does at once, before there is a journal
        tracker = LiveTracker(run_dir, **where)
        write(run_dir, start())
        for number in (1, 2, 3):
            write(run_dir, epoch(number))
            tracker.notify()
        wait_for(lambda: history(where, "lr") == [(1, 0.05), (2, 0.05), (3, 0.05)])
        assert only_run(where)["status"] == "RUNNING"
        write(run_dir, END)
        assert tracker.close()
    assert warnings_of(caplog) == []
    assert only_run(where)["status"] == "FINISHED"


def wait_for(condition):
    until = time.monotonic() + 30
    while True:
        with contextlib.suppress(EdkdError, ValueError):  # nothing there yet
            if condition():
                return
        assert time.monotonic() < until, "did not happen within 30 s"
        time.sleep(0.02)


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_dead_server_costs_the_training_nothing_but_one_warning(run_dir, caplog, where):
    with lock.hold(run_dir):
        write(run_dir, start())
        began = time.monotonic()
        tracker = LiveTracker(run_dir, uri="http://127.0.0.1:9", experiment="edkd", artifacts=None)
        for number in range(1, 501):
            write(run_dir, epoch(number))
            tracker.notify()
        assert time.monotonic() - began < 60  # a single request is tried for minutes
        write(run_dir, END)
        assert not tracker.close()
    (warning,) = warnings_of(caplog)
    assert warning.startswith("tracking failed: MLflow store http://127.0.0.1:9 failed")
    assert warning.endswith("training goes on; `edkd sync` will bring MLflow up to date")
    assert sync_run(run_dir, **where).epochs_logged == 500


def test_a_server_that_does_not_answer_holds_nobody_up(run_dir, caplog, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    write(run_dir, start())
    with socket.create_server(("127.0.0.1", 0)) as server:
        uri = f"http://127.0.0.1:{server.getsockname()[1]}"
        tracker = LiveTracker(run_dir, uri=uri, experiment="edkd", artifacts=None)
        tracker.notify()
        assert not tracker.close(timeout=0.2)  # the request goes on for 1 s
        assert warnings_of(caplog) == [
            "tracking failed: not done after 0.2 s; training goes on; `edkd sync` will bring MLflow up to date"
        ]
        tracker._thread.join(30)
    assert not tracker._thread.is_alive()
    assert len(warnings_of(caplog)) == 1


def test_failures_are_warned_of_once_and_tried_again_after_a_pause(run_dir, caplog, monkeypatch):
    tries = []

    def failing(*_, **__):
        tries.append(time.monotonic())
        if len(tries) < 3:
            raise RuntimeError("a bug\nin two lines")

    monkeypatch.setattr(live, "sync_run", failing)
    monkeypatch.setattr(live, "PAUSE", 0.1)
    tracker = LiveTracker(run_dir, uri="sqlite:///unused.db", experiment="edkd", artifacts=None)
    until = time.monotonic() + 30
    while len(tries) < 3 and time.monotonic() < until:
        tracker.notify()
        time.sleep(0.005)
    assert min(tries[1] - tries[0], tries[2] - tries[1]) >= 0.1
    assert tracker.close()
    (warning,) = warnings_of(caplog)
    assert "a bug in two lines" in warning


def test_importing_tracking_imports_neither_mlflow_nor_torch():
    code = "import sys, edkd.tracking; print(sorted({'mlflow', 'torch', 'pandas', 'sqlalchemy'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout.strip() == "[]"

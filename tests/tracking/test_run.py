"""A run in MLflow, from its journal."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from edkd import tracking
from edkd.rundir import lock
from edkd.tracking import SyncReport, load_runs, store, sync, sync_all, sync_run, uri
from tests.tracking.records import (
    END,
    FAILURE,
    NOTHING,
    RUN,
    TAGS,
    client,
    epoch,
    epochs,
    history,
    only_run,
    rows,
    start,
    write,
)


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


@pytest.mark.parametrize("moving", [shutil.move, shutil.copytree])
def test_outputs_that_are_moved_keep_their_runs_and_files(tmp_path, empty_store, moving):
    def place(name):
        uri, artifacts = f"sqlite:///{tmp_path}/{name}/mlflow.db", str(tmp_path / name / "mlartifacts")
        return {"uri": uri, "experiment": "edkd", "artifacts": artifacts}

    first = write(tmp_path / "old" / "runs" / "digits" / "a-b" / "kd-s0-01234567", start(), *epochs(2), END)
    (first / "config.yaml").write_text("seed: 0\n")
    shutil.copy(empty_store, tmp_path / "old" / "mlflow.db")
    sync_run(first, **place("old"))
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
    opened, run = store.Store(client=None, uri="https://mlflow", experiment="edkd", experiment_id="1"), "runs/a/b/kd-s0"
    monkeypatch.setattr(uri.pwd, "getpwuid", lambda number: SimpleNamespace(pw_name="ann"))
    monkeypatch.setenv("USER", "bob")  # of sudo or cron
    assert sync._path(opened, tmp_path / run) == "ann:a/b/kd-s0"
    monkeypatch.setattr(uri.pwd, "getpwuid", {}.__getitem__)  # in a container
    assert sync._path(opened, tmp_path / run) == f"{os.getuid()}:a/b/kd-s0"


def test_the_runs_of_a_folder_that_cannot_be_written_reach_ones_own_store(where, run_dir, monkeypatch):
    write(run_dir, start(), *epochs(2), END)
    there = set(run_dir.iterdir())
    nowhere = SimpleNamespace(access=lambda path, mode: False, W_OK=os.W_OK)  # root may write everywhere
    monkeypatch.setattr(sync, "os", nowhere)
    assert sync_run(run_dir, **where) == SyncReport(created=True, epochs_logged=2, ended=True)
    assert set(run_dir.iterdir()) == there


def test_the_command_that_brings_a_store_up_to_date():
    assert tracking.sync_command("sqlite:///outputs/mlflow.db", "edkd") == "edkd sync"
    assert tracking.sync_command("sqlite:////x/y z/mlflow.db", "edkd") == "edkd sync --output '/x/y z'"
    assert tracking.sync_command("sqlite:////x/mine.db", "e") == "edkd sync --uri sqlite:////x/mine.db --experiment e"
    assert tracking.sync_command("http://login1:5000", "edkd") == "edkd sync --uri http://login1:5000"
    assert tracking.sync_command("postgresql://me:secret@db/x", "edkd") == "edkd sync --uri URI"


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

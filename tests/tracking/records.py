"""Journals written by hand, as the contract between training and tracking, and what MLflow stored of them."""

import contextlib
import json
import sqlite3

from edkd.tracking import SyncReport, load_runs, store

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

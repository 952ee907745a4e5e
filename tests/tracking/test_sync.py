"""Many runs, and sweeps as their parents."""

import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from edkd import tracking
from edkd.errors import EdkdError
from edkd.tracking import SyncReport, load_runs, sync_all
from tests.tracking.records import END, FAILURE, NOTHING, RUN, client, epochs, history, rows, start, write


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


def test_every_sweep_names_its_best_student_whose_model_is_logged_once(where, tmp_path):
    write(tmp_path / "runs" / "kd-s0", start(), *epochs(1), END)
    tracking.sync_all(tmp_path / "runs", **where)
    logged = []
    for sweep in ("nightly", "later"):
        parent = tracking.start_sweep(sweep, **where)
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2))
        logged.append(tracking.log_model(network, torch.zeros(2, 3, 2, 2), run=RUN, sweep=sweep, **where))
        assert client(where).get_run(parent).data.tags["best_student"].startswith("kd vgg13→vgg8 s0: ")
    assert logged[0].startswith("models:/") and logged[1] is None


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
    assert tracking.settle_sweeps({"bad": {"finished": 2, "new": 1}}, **where) == {"bad": "FAILED"}
    assert client(where).get_run(parents["bad"]).data.tags["runs.finished"] == "2"
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

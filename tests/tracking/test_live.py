"""MLflow beside the training."""

import contextlib
import logging
import socket
import subprocess
import sys
import time
from pathlib import Path

from edkd.errors import EdkdError
from edkd.rundir import lock
from edkd.tracking import LiveTracker, live, sync_run
from tests.tracking.records import END, epoch, history, only_run, start, write


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
        tracker = LiveTracker(run_dir, uri="http://127.0.0.1:9", experiment="edkd", artifacts=None)
        for number in range(1, 501):
            write(run_dir, epoch(number))
            tracker.notify()
        write(run_dir, END)
        assert not tracker.close()
    (warning,) = warnings_of(caplog)
    assert warning.startswith("tracking failed: MLflow store http://127.0.0.1:9 failed")
    assert warning.endswith("training goes on; `edkd sync --uri http://127.0.0.1:9` will bring MLflow up to date")
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
        (warning,) = warnings_of(caplog)
        assert warning.startswith("tracking failed: not done after 0.2 s; training goes on; `edkd sync --uri ")
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

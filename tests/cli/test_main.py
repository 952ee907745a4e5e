"""The `edkd` command, on runs that `launch.py` made."""

import re
import subprocess
import sys
from pathlib import Path

from mlflow import MlflowClient

from edkd import __version__, tracking
from edkd.rundir import lock
from tests.commandline import Ended, edkd, error, journals, run_file

# ---- sync


def test_sync_brings_mlflow_up_to_date_once(output: Path) -> None:
    first = edkd("sync")
    assert (first.code, first.err) == (0, "")
    said = sorted(line.rpartition(": ")[2] for line in first.out.splitlines())
    assert said == ["2 epochs logged", "2 epochs logged", "FINISHED"], "the runs, and their sweep"
    runs = tracking.load_runs(f"sqlite:///{output / 'mlflow.db'}", "edkd")
    expected = {records[0]["run"]: records[-1]["last"]["top1"] for records in journals(output).values()}
    assert {run["tags"]["edkd.run"]: run["metrics"]["last/top1"] for run in runs} == expected

    second = edkd("sync")
    assert second == Ended(0, "outputs and MLflow agree\n", "")
    assert tracking.load_runs(f"sqlite:///{output / 'mlflow.db'}", "edkd") == runs


def test_sync_leaves_a_sweep_that_goes_on_alone(output: Path) -> None:
    (output / "sweeps").mkdir(exist_ok=True)
    (sweep,) = {record["sweep"] for records in journals(output).values() for record in records if "sweep" in record}
    store = f"sqlite:///{output / 'mlflow.db'}"

    def status() -> str:
        client = MlflowClient(store)
        (parent,) = client.search_runs(["1"], f"tags.`edkd.sweep` = '{sweep}'")
        return str(parent.info.status)

    run = run_file(output, "kd", "journal.jsonl")
    whole = run.read_bytes()
    run.write_bytes(b"".join(whole.splitlines(keepends=True)[:2]))
    with lock.hold(run.parent):
        assert edkd("sync").code == 0
        assert status() == "RUNNING"
    assert edkd("sync").out.endswith(f"sweep {sweep}: FAILED\n")
    assert status() == "FAILED"
    run.write_bytes(whole)
    assert edkd("sync").out.endswith(f"sweep {sweep}: FINISHED\n")


def test_a_reader_who_has_enough_ends_the_command_quietly(output: Path) -> None:
    command = [sys.executable, "-m", "edkd.cli.main", "status", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
    assert (process.returncode, said) == (141, b"")


def test_what_cannot_be_synced(output: Path) -> None:
    assert error(edkd("ui", "--output", "elsewhere")).startswith("neither mlflow.db nor runs/ in elsewhere; --output ")
    assert error(edkd("sync", "--output", "elsewhere")).startswith("no runs in elsewhere/runs; --output DIR names ")
    assert error(edkd("sync", "--uri", "mlruns")).startswith("tracking URI 'mlruns': folders such as ./mlruns")
    (output / "mlflow.db").mkdir()
    assert error(edkd("sync")).startswith(f"MLflow store {output / 'mlflow.db'} cannot be used (")
    (output / "mlflow.db").rmdir()
    journal = run_file(output, "kd", "journal.jsonl")
    journal.write_text("damage\n" + journal.read_text())
    done = edkd("sync")
    assert done.code == 1
    assert done.out.count("2 epochs logged") == 1
    damaged, total = done.err.splitlines()
    assert damaged.endswith(
        f"line 1 of {journal.relative_to(output.parent)} is not a journal record; "
        "the file was damaged: restore or move it"
    )
    assert total == "edkd: 1 run could not be brought to sqlite:///outputs/mlflow.db"


# ---- the rest


def test_usage() -> None:
    assert edkd("--version") == Ended(0, f"edkd {__version__}\n", "")
    for wrong in ([], ["evaluate"], ["train"], ["teachers"], ["status", "--stat"], ["logs", "run", "--lines", "x"]):
        done = edkd(*wrong)
        assert done.code == 2 and re.fullmatch("edkd: .*; see edkd( [a-z]+)? --help\n", done.err)

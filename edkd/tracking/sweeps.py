"""The parent run of a sweep, under which MLflow shows the runs that the sweep trained."""

import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from edkd.tracking.recorded import Status
from edkd.tracking.store import Store, find_one, one_line, open_store, open_writable, search
from edkd.tracking.uri import lock

_COUNT = "runs."  # prefix of the tag with the number of runs in a state


def start_sweep(sweep: str, *, uri: str, experiment: str, artifacts: str | None) -> str:
    """Find or make the parent run of a sweep, set it running, and return its MLflow run id.

    Raises `EdkdError` if the store cannot be used.
    """
    with one_line(uri):
        store = open_store(uri, experiment, artifacts)
        run_id = parent(store, sweep, started=int(time.time() * 1000))
        store.client.update_run(run_id, status="RUNNING")
    return run_id


def settle_sweeps(
    outcomes: Mapping[str, Mapping[str, int]], *, uri: str, experiment: str, artifacts: str | None
) -> dict[str, Status]:
    """Set status and counts of ended sweeps whose parent runs have others; return the new status by changed sweep.

    outcomes: for each sweep, the number of runs in each state. They become tags such as ``runs.failed``. Raises
    `EdkdError` if the store cannot be used.
    """
    from mlflow.entities import RunTag

    settled: dict[str, Status] = {}
    with one_line(uri):
        store = open_store(uri, experiment, artifacts)
        for run in search(store.client, store.experiment_id, "tags.`edkd.sweep` != ''"):
            run_id, sweep = run.info.run_id, run.data.tags["edkd.sweep"]
            counts = outcomes.get(sweep)
            if counts is None:
                continue
            status, tags = _status(counts), {f"{_COUNT}{state}": str(count) for state, count in counts.items()}
            earlier = {tag: value for tag, value in run.data.tags.items() if tag.startswith(_COUNT)}
            if (run.info.status, earlier) == (status, tags):
                continue
            settled[sweep] = status
            for tag in earlier.keys() - tags.keys():
                store.client.delete_tag(run_id, tag)
            store.client.log_batch(run_id, tags=[RunTag(*tag) for tag in tags.items()])
            store.client.set_terminated(run_id, status=status)
    return settled


def attach(
    uri: str, run_ids: Iterable[str], *, paths: Iterable[Path], sentence: str, metrics: Mapping[str, float]
) -> None:
    """Log files, a description and metrics to the parent runs of sweeps, in place of earlier ones.

    A read-only SQLite store stays unchanged. Raises `EdkdError` if the store cannot be used.
    """
    from mlflow.entities import Metric, RunTag

    with one_line(uri):
        client = open_writable(uri)
        if client is None:
            return
        now = int(time.time() * 1000)
        values = [Metric(re.sub(r"[^\w.\- /]", "_", key), value, now, 0) for key, value in metrics.items()]
        for run_id in run_ids:
            for path in paths:
                client.log_artifact(run_id, str(path))
            client.log_batch(run_id, metrics=values, tags=[RunTag("mlflow.note.content", sentence)])


def _status(counts: Mapping[str, int]) -> Status:
    """The status of an ended sweep; `counts` has the number of its runs in each state."""
    return "FINISHED" if {state for state, count in counts.items() if count} <= {"finished", "pruned"} else "FAILED"


def parent(store: Store, sweep: str, *, started: int) -> str:
    """The MLflow run id of a sweep's parent run. An absent run is made with start time `started` (unix ms)."""
    condition = f"tags.`edkd.sweep` = '{sweep}'"
    run = find_one(store, condition)
    if run is None:
        with lock(store.uri):
            run = find_one(store, condition) or store.client.create_run(
                store.experiment_id, start_time=started, run_name=f"sweep {sweep}", tags={"edkd.sweep": sweep}
            )
    return run.info.run_id

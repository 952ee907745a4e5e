"""The parent run of a sweep, under which MLflow shows the runs that the sweep trained."""

import time
from collections.abc import Mapping

from edkd.tracking.store import Store, find_one, lock, one_line, open_store, search
from edkd.tracking.story import Status

_COUNT = "runs."  # before a state: the tag with the number of runs in it


def start_sweep(sweep: str, *, uri: str, experiment: str, artifacts: str | None) -> str:
    """Find or make the parent run of a sweep, set it running, and return its MLflow run id.

    Raises `EdkdError` if the store cannot be used.
    """
    with one_line(uri):
        store = open_store(uri, experiment, artifacts)
        run_id = parent(store, sweep, started=_now())
        store.client.update_run(run_id, status="RUNNING")
    return run_id


def finish_sweep(sweep: str, *, uri: str, experiment: str, artifacts: str | None, counts: Mapping[str, int]) -> None:
    """Give the parent run of a sweep the status that its runs have earned, and a tag for each count of them.

    counts: the number of runs in each state, as in ``runs.failed``. Raises `EdkdError` if the store cannot be used.
    """
    with one_line(uri):
        store = open_store(uri, experiment, artifacts)
        _finish(store, parent(store, sweep, started=_now()), counts)


def settle_sweeps(
    outcomes: Mapping[str, Mapping[str, int]], *, uri: str, experiment: str, artifacts: str | None
) -> dict[str, Status]:
    """Give ended sweeps their status where their parent runs say otherwise; returns which, and which status.

    outcomes: of each sweep the number of runs in each state. Whoever launched it may have gone, or the store have been
    away, when it ended. Raises `EdkdError` if the store cannot be used.
    """
    settled: dict[str, Status] = {}
    with one_line(uri):
        store = open_store(uri, experiment, artifacts)
        for run in search(store.client, store.experiment_id, "tags.`edkd.sweep` != ''"):
            counts = outcomes.get(run.data.tags["edkd.sweep"])
            if counts and run.info.status != status_of(counts):
                settled[run.data.tags["edkd.sweep"]] = status_of(counts)
                _finish(store, run.info.run_id, counts)
    return settled


def status_of(counts: Mapping[str, int]) -> Status:
    """The status of an ended sweep with so many runs in each state."""
    return "FINISHED" if {state for state, count in counts.items() if count} <= {"finished"} else "FAILED"


def parent(store: Store, sweep: str, *, started: int) -> str:
    """The MLflow run id of a sweep's parent run, made where there is none as started then (unix ms)."""
    condition = f"tags.`edkd.sweep` = '{sweep}'"
    run = find_one(store, condition)
    if run is None:
        with lock(store):
            run = find_one(store, condition) or store.client.create_run(
                store.experiment_id, start_time=started, run_name=f"sweep {sweep}", tags={"edkd.sweep": sweep}
            )
    return run.info.run_id


def _finish(store: Store, run_id: str, counts: Mapping[str, int]) -> None:
    from mlflow.entities import RunTag

    for tag in store.client.get_run(run_id).data.tags:  # of an earlier end
        if tag.startswith(_COUNT) and tag.removeprefix(_COUNT) not in counts:
            store.client.delete_tag(run_id, tag)
    store.client.log_batch(run_id, tags=[RunTag(f"{_COUNT}{state}", str(count)) for state, count in counts.items()])
    store.client.set_terminated(run_id, status=status_of(counts))


def _now() -> int:
    return int(time.time() * 1000)

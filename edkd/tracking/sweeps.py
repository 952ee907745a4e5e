"""The parent run of a sweep, under which MLflow shows the runs that the sweep trained."""

import time

from edkd.tracking.store import Store, find_one, lock, one_line, open_store
from edkd.tracking.story import Status


def start_sweep(sweep: str, *, uri: str, experiment: str, artifacts: str | None) -> str:
    """Find or make the parent run of a sweep, set it running, and return its MLflow run id.

    Raises `EdkdError` if the store cannot be used.
    """
    with one_line(uri):
        store = open_store(uri, experiment, artifacts)
        run_id = parent(store, sweep, started=_now())
        store.client.update_run(run_id, status="RUNNING")
    return run_id


def finish_sweep(
    sweep: str, *, uri: str, experiment: str, artifacts: str | None, status: Status, counts: dict[str, int]
) -> None:
    """Give the parent run of a sweep its status and a tag for each count, such as ``runs.failed``.

    Raises `EdkdError` if the store cannot be used.
    """
    with one_line(uri):
        store = open_store(uri, experiment, artifacts)
        from mlflow.entities import RunTag

        run_id = parent(store, sweep, started=_now())
        store.client.log_batch(run_id, tags=[RunTag(f"runs.{key}", str(count)) for key, count in counts.items()])
        store.client.set_terminated(run_id, status=status)


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


def _now() -> int:
    return int(time.time() * 1000)

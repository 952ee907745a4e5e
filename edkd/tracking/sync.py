"""Bringing MLflow up to date with journals: every write about a run is here."""

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from filelock import FileLock

from edkd.errors import EdkdError
from edkd.rundir import journal, lock
from edkd.rundir.paths import JOURNAL, RunDir
from edkd.tracking.store import PATIENCE, Store, create_store, is_server, one_line, only, open_store, search
from edkd.tracking.story import Story, tell
from edkd.tracking.sweeps import parent

if TYPE_CHECKING:
    from mlflow.entities import Run

_METRICS = 900  # in one call: MLflow takes 1000 entries, tags included
_PARAMS = 100  # in one call: MLflow's limit


class SyncReport(NamedTuple):
    """What a sync did: made the MLflow run (anew), logged so many epochs, gave the run its final status."""

    created: bool
    epochs_logged: int
    ended: bool


def sync_run(run_dir: Path, *, uri: str, experiment: str, artifacts: str | None) -> SyncReport:
    """Bring MLflow up to date with the journal of one run directory.

    The MLflow run is made where there is none, and made anew where it holds other values than the journal. A journal
    without a start has nothing to log yet. Raises `EdkdError` if the journal or the store cannot be used; what was
    logged until then stays and is not repeated.
    """
    with one_line(uri):
        store = open_store(uri, experiment, artifacts)
        with FileLock(RunDir(run_dir).mlflow_lock, timeout=PATIENCE):
            # Asked before and after: a run that ends while its journal is read is not one that was killed.
            held = lock.is_held(run_dir)
            records = journal.read(run_dir)
            story = tell(records, RunDir(run_dir).journal, held=(held or lock.is_held(run_dir)) is not None)
            if story is None:
                return SyncReport(created=False, epochs_logged=0, ended=False)
            return _sync(store, run_dir, story)


def sync_all(
    runs_root: Path, *, uri: str, experiment: str, artifacts: str | None
) -> list[tuple[Path, SyncReport | EdkdError]]:
    """Sync all run directories below ``runs_root``, in the order of their names; returns what came of each.

    What is wrong with one run stops no other. Raises `EdkdError` if the store cannot be used.
    """
    create_store(uri=uri, experiment=experiment, artifacts=artifacts)
    results: list[tuple[Path, SyncReport | EdkdError]] = []
    for path in sorted(runs_root.rglob(JOURNAL)):
        try:
            results.append((path.parent, sync_run(path.parent, uri=uri, experiment=experiment, artifacts=artifacts)))
        except EdkdError as error:
            results.append((path.parent, error))
    return results


def _sync(store: Store, run_dir: Path, story: Story) -> SyncReport:
    client = store.client
    path = _path(store, run_dir)
    run = _find(store, run_dir, path, story)
    mark = None if run is None else run.data.tags.get("edkd.synced")
    if run is not None and mark is not None and all(epoch.mark != mark for epoch in story.epochs):
        client.delete_run(run.info.run_id)  # it has other values than the journal
        run = None
    created = run is None
    if run is None:
        run = client.create_run(
            store.experiment_id,
            start_time=story.started,
            run_name=story.name,
            tags={"edkd.run": story.run, "edkd.path": path},
        )
    epochs_logged = _log_epochs(store, run, story)
    changed = run.data.tags.get("edkd.state") != story.state
    if changed:
        _log_state(store, run, story, run_dir)
    return SyncReport(created, epochs_logged, ended=changed and story.status != "RUNNING")


def _path(store: Store, run_dir: Path) -> str:
    """Which of all runs of one configuration this is: its path below `runs/`, the same wherever that folder is moved.

    On a server two people may have it, so it begins with the user's name there.
    """
    parts = run_dir.absolute().parts
    below = "/".join(parts[len(parts) - parts[::-1].index("runs") :] if "runs" in parts else parts[-1:])
    return f"{os.environ.get('USER', os.getuid())}:{below}" if is_server(store.uri) else below


def _find(store: Store, run_dir: Path, path: str, story: Story) -> "Run | None":
    """The MLflow run of a run directory, None where there is none.

    One that an earlier version logged carries a hash of the directory's absolute path instead, which holds until
    it is moved: then it is known by the values that it has. It is given its path.
    """
    runs = search(store.client, store.experiment_id, f"tags.`edkd.run` = '{story.run}'")
    run = only(store, [run for run in runs if run.data.tags.get("edkd.path") == path])
    if run is not None:
        return run
    here = hashlib.sha256(str(run_dir.resolve()).encode()).hexdigest()[:16]
    marks: set[str | None] = {epoch.mark for epoch in story.epochs} or {None}
    earlier = [run for run in runs if "edkd.path" not in run.data.tags]
    ours = [run for run in earlier if run.data.tags.get("edkd.directory") == here]
    ours += [run for run in earlier if run.data.tags.get("edkd.synced") in marks]
    if not ours:
        return None
    store.client.set_tag(ours[0].info.run_id, "edkd.path", path)
    return ours[0]


def _log_epochs(store: Store, run: "Run", story: Story) -> int:
    """Log the epochs that are missing: one call for one epoch, few calls for many."""
    from mlflow.entities import Metric, RunTag

    synced = int(run.data.tags.get("edkd.synced", "0").partition(":")[0])
    missing = [epoch for epoch in story.epochs if epoch.number > synced]
    metrics = [
        Metric(key, value, epoch.time, epoch.number) for epoch in missing for key, value in epoch.metrics.items()
    ]
    # The tag is stored after all metrics. A crash before that repeats them, and equal ones are stored once.
    while metrics:
        some, metrics = metrics[:_METRICS], metrics[_METRICS:]
        tags = [] if metrics else [RunTag("edkd.synced", missing[-1].mark)]
        store.client.log_batch(run.info.run_id, metrics=some, tags=tags)
    return len(missing)


def _log_state(store: Store, run: "Run", story: Story, run_dir: Path) -> None:
    """Log all that is not an epoch: what the run is, and how it stands. The tag that says so is set last."""
    from mlflow.entities import Param, RunTag

    client, run_id = store.client, run.info.run_id
    tags = dict(story.tags)
    if story.sweep is not None:
        tags["mlflow.parentRunId"] = parent(store, story.sweep, started=story.started)
    if story.error is not None:
        tags["error"] = story.error
    elif "error" in run.data.tags:
        client.delete_tag(run_id, "error")
    # MLflow lets no parameter change: what differs in a resumed run (a path, the device) keeps its first value.
    params = [Param(key, value) for key, value in story.params.items() if key not in run.data.params]
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
    for begin in range(0, len(params), _PARAMS):
        client.log_batch(run_id, params=params[begin : begin + _PARAMS])
    if story.status == "RUNNING":
        client.update_run(run_id, status="RUNNING")
    else:
        _log_end(store, run, story, run_dir)
    client.set_tag(run_id, "edkd.state", story.state)


def _log_end(store: Store, run: "Run", story: Story, run_dir: Path) -> None:
    from mlflow.entities import Metric

    client, run_id = store.client, run.info.run_id
    step = story.epochs[-1].number if story.epochs else 0
    final = {key: value for key, value in story.final.items() if run.data.metrics.get(key) != value}
    client.log_batch(run_id, metrics=[Metric(key, value, story.since, step) for key, value in final.items()])
    config = RunDir(run_dir).config
    if config.exists():
        client.log_artifact(run_id, str(config))
    if story.summary is not None:
        client.log_dict(run_id, story.summary, "summary.json")
    client.set_terminated(run_id, status=story.status, end_time=story.since)

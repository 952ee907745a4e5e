"""Bringing MLflow up to date with journals: every write about a run is here."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from filelock import FileLock

from edkd.errors import EdkdError
from edkd.rundir import files, journal, lock
from edkd.rundir.paths import JOURNAL, RunDir
from edkd.tracking.store import PATIENCE, Store, create_store, find_one, one_line, open_store, redacted
from edkd.tracking.story import Epoch, Story, tell
from edkd.tracking.sweeps import parent

if TYPE_CHECKING:
    from mlflow.entities import Run

_METRICS = 900  # in one call: MLflow takes 1000 entries, tags included
_PARAMS = 100  # in one call, and as many tags: MLflow's limit

Item = TypeVar("Item")


class SyncReport(NamedTuple):
    """What a sync did: made the MLflow run (anew), logged so many epochs, gave the run its final status."""

    created: bool
    epochs_logged: int
    ended: bool


class SyncResult(NamedTuple):
    """What `sync_all` did in one run directory: either the report, or the one line that says why there is none."""

    run_dir: Path
    report: SyncReport | None
    error: str | None


def sync_run(run_dir: Path, *, uri: str, experiment: str, artifacts: str | None) -> SyncReport:
    """Bring MLflow up to date with the journal of one run directory.

    The MLflow run is made where there is none, and made anew where it holds other values than the journal. A journal
    without a start has nothing to log yet. Raises `EdkdError` if the journal or the store cannot be used; what was
    logged until then stays and is not repeated.
    """
    run_dir = Path(run_dir)
    with one_line(uri):
        store = open_store(uri, experiment, artifacts)
        with FileLock(RunDir(run_dir).mlflow_lock, timeout=PATIENCE):
            story = _read(run_dir)
            if story is None:
                return SyncReport(created=False, epochs_logged=0, ended=False)
            return _sync(store, run_dir, story)


def sync_all(runs_root: Path, *, uri: str, experiment: str, artifacts: str | None) -> list[SyncResult]:
    """Sync all run directories below ``runs_root``, in the order of their names.

    What is wrong with one run is said in its result and stops no other. Raises `EdkdError` if the store cannot be used.
    """
    create_store(uri=uri, experiment=experiment, artifacts=artifacts)
    results = []
    for path in sorted(Path(runs_root).rglob(JOURNAL)):
        report, reason = None, None
        try:
            report = sync_run(path.parent, uri=uri, experiment=experiment, artifacts=artifacts)
        except EdkdError as error:
            reason = str(error)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reason = f"a record of {path} lacks what it needs ({type(error).__name__}: {error}); restore or move it"
        results.append(SyncResult(path.parent, report, reason))
    return results


def _read(run_dir: Path) -> Story | None:
    # Asked before and after: a run that ends while its journal is read is not one that was killed.
    held = lock.is_held(run_dir)
    records = journal.read(run_dir)
    return tell(records, held=(held or lock.is_held(run_dir)) is not None)


def _sync(store: Store, run_dir: Path, story: Story) -> SyncReport:
    client = store.client
    run = _find(store, run_dir, story)
    if run is not None and not _agrees(run, story):
        client.delete_run(run.info.run_id)
        run = None
    created = run is None
    if run is None:
        run = client.create_run(
            store.experiment_id,
            start_time=story.started,
            run_name=story.name,
            tags={"edkd.run": story.run, "edkd.directory": _identity(run_dir)},
        )
    _write_note(store, run_dir, run.info.run_id)
    epochs_logged = _log_epochs(store, run, story)
    changed = run.data.tags.get("edkd.state") != story.state
    if changed:
        _log_state(store, run, story, run_dir)
    return SyncReport(created, epochs_logged, ended=changed and story.status != "RUNNING")


def _find(store: Store, run_dir: Path, story: Story) -> "Run | None":
    """The MLflow run of a run directory: the noted one if it is still there, else the one with its tag."""
    from mlflow.exceptions import MlflowException

    run_id = _read_note(store, run_dir)
    if run_id is not None:
        try:
            run = store.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
        else:
            if run.info.lifecycle_stage == "active" and run.data.tags.get("edkd.run") == story.run:
                return run
    return find_one(store, f"tags.`edkd.run` = '{story.run}' AND tags.`edkd.directory` = '{_identity(run_dir)}'")


def _identity(run_dir: Path) -> str:
    """Names a run directory among all that log to one store; not its path, which may hold quotes and be long."""
    return hashlib.sha256(str(run_dir.resolve()).encode()).hexdigest()[:16]


def _agrees(run: "Run", story: Story) -> bool:
    """Whether the epochs that MLflow has are the first ones of the journal, with the same values."""
    mark = run.data.tags.get("edkd.synced")
    return mark is None or any(epoch.mark == mark for epoch in story.epochs)


def _log_epochs(store: Store, run: "Run", story: Story) -> int:
    """Log the epochs that are missing: one call for one epoch, few calls for many."""
    from mlflow.entities import Metric, RunTag

    synced = int(run.data.tags.get("edkd.synced", "0").partition(":")[0])
    missing = [epoch for epoch in story.epochs if epoch.number > synced]
    for epochs in _batches(missing):
        metrics = [
            Metric(key, value, epoch.time, epoch.number) for epoch in epochs for key, value in epoch.metrics.items()
        ]
        # The tag is stored after the metrics. A crash between the two repeats them, and equal ones are stored once.
        store.client.log_batch(run.info.run_id, metrics=metrics, tags=[RunTag("edkd.synced", epochs[-1].mark)])
    return len(missing)


def _batches(epochs: list[Epoch]) -> Iterator[list[Epoch]]:
    batch: list[Epoch] = []
    size = 0
    for epoch in epochs:
        if batch and size + len(epoch.metrics) > _METRICS:
            yield batch
            batch, size = [], 0
        batch.append(epoch)
        size += len(epoch.metrics)
    if batch:
        yield batch


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
    for some_tags in _chunks([RunTag(key, value) for key, value in tags.items()], _PARAMS):
        client.log_batch(run_id, tags=some_tags)
    for some_params in _chunks(params, _PARAMS):
        client.log_batch(run_id, params=some_params)
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


def _read_note(store: Store, run_dir: Path) -> str | None:
    try:
        note = json.loads(RunDir(run_dir).mlflow.read_bytes())
    except (OSError, ValueError):
        return None
    here = {"uri": redacted(store.uri), "experiment": store.experiment}
    return note.get("run_id") if isinstance(note, dict) and here.items() <= note.items() else None


def _write_note(store: Store, run_dir: Path, run_id: str) -> None:
    if _read_note(store, run_dir) == run_id:
        return
    note = {"uri": redacted(store.uri), "experiment": store.experiment, "run_id": run_id}
    with contextlib.suppress(OSError):  # without the note the next sync searches
        files.write_text(RunDir(run_dir).mlflow, json.dumps(note) + "\n")


def _chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    for begin in range(0, len(items), size):
        yield items[begin : begin + size]

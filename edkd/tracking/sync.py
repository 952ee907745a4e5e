"""Bringing MLflow up to date with journals: every write about a run is here."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from filelock import FileLock

from edkd.console import counting
from edkd.errors import EdkdError
from edkd.rundir import journal, lock
from edkd.rundir.paths import JOURNAL, RunDir
from edkd.tracking.store import PATIENCE, Store, create_store, is_server, one_line, only, open_store, search
from edkd.tracking.story import Story, tell
from edkd.tracking.sweeps import parent

if TYPE_CHECKING:
    from mlflow.entities import Run

_METRICS = 800  # in one call: MLflow takes 1000 entries, of which ...
_OTHERS = 100  # ... parameters and tags may be so many each

Known = Mapping[str, "list[Run]"]  # runs of MLflow by `edkd.run`


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
        return _sync(open_store(uri, experiment, artifacts), run_dir, known={}, parents={})


def sync_all(
    runs_root: Path, *, uri: str, experiment: str, artifacts: str | None
) -> list[tuple[Path, SyncReport | EdkdError]]:
    """Sync all run directories below ``runs_root``, in the order of their names; returns what came of each.

    What is wrong with one run stops no other. Raises `EdkdError` if the store cannot be used.
    """
    create_store(uri=uri, experiment=experiment, artifacts=artifacts)
    paths = sorted(runs_root.rglob(JOURNAL))
    known: dict[str, list[Run]] = {}
    parents: dict[str, str] = {}
    results: list[tuple[Path, SyncReport | EdkdError]] = []
    with counting("runs brought to MLflow", len(paths)) as update:
        with one_line(uri):
            store = open_store(uri, experiment, artifacts)
            for run in search(store.client, store.experiment_id, "tags.`edkd.run` != ''"):
                known.setdefault(run.data.tags["edkd.run"], []).append(run)
        for path in paths:
            try:
                with one_line(uri):
                    results.append((path.parent, _sync(store, path.parent, known=known, parents=parents)))
            except EdkdError as error:
                results.append((path.parent, error))
            update(len(results))
    return results


def _sync(store: Store, run_dir: Path, *, known: Known, parents: dict[str, str]) -> SyncReport:
    """Sync one run. One that is `known` to have all is not asked for again; `parents` fills with sweeps' runs."""
    with FileLock(RunDir(run_dir).mlflow_lock, timeout=PATIENCE):
        # Asked before and after: a run that ends while its journal is read is not one that was killed.
        held = lock.is_held(run_dir)
        records = journal.read(run_dir)
        story = tell(records, RunDir(run_dir).journal, held=(held or lock.is_held(run_dir)) is not None)
        path = _path(store, run_dir)
        if story is None or any(_has_all(run, path, story) for run in known.get(story.run, ())):
            return SyncReport(created=False, epochs_logged=0, ended=False)
        return _bring(store, run_dir, path, story, parents)


def _has_all(run: "Run", path: str, story: Story) -> bool:
    tags = run.data.tags
    synced = story.epochs[-1].mark if story.epochs else None
    return (tags.get("edkd.path"), tags.get("edkd.synced"), tags.get("edkd.state")) == (path, synced, story.state)


def _bring(store: Store, run_dir: Path, path: str, story: Story, parents: dict[str, str]) -> SyncReport:
    client = store.client
    run = _find(store, run_dir, path, story)
    mark = None if run is None else run.data.tags.get("edkd.synced")
    if run is not None and mark is not None and all(epoch.mark != mark for epoch in story.epochs):
        client.delete_run(run.info.run_id)  # it has other values than the journal
        run = None
    changed = run is None or run.data.tags.get("edkd.state") != story.state
    tags = dict(story.tags) if changed else {}
    if changed and story.sweep is not None:
        if story.sweep not in parents:
            parents[story.sweep] = parent(store, story.sweep, started=story.started)
        tags["mlflow.parentRunId"] = parents[story.sweep]
    if changed and story.error is not None:
        tags["error"] = story.error
    created = run is None
    if run is None:
        run = client.create_run(
            store.experiment_id,
            start_time=story.started,
            run_name=story.name,
            tags={**tags, "edkd.run": story.run, "edkd.path": path},
        )
        tags = {}
    elif story.error is None and "error" in run.data.tags:
        client.delete_tag(run.info.run_id, "error")
    epochs_logged = _log_values(store, run, story, tags, changed=changed)
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


def _log_values(store: Store, run: "Run", story: Story, tags: dict[str, str], *, changed: bool) -> int:
    """Log the epochs that are missing, in few calls, and return their number.

    Of a run whose state has changed its other values go along.
    """
    from mlflow.entities import Metric, Param, RunTag

    synced = int(run.data.tags.get("edkd.synced", "0").partition(":")[0])
    missing = [epoch for epoch in story.epochs if epoch.number > synced]
    metrics = [
        Metric(key, value, epoch.time, epoch.number) for epoch in missing for key, value in epoch.metrics.items()
    ]
    params: list[Param] = []
    if changed:
        step = story.epochs[-1].number if story.epochs else 0
        final = {key: value for key, value in story.final.items() if run.data.metrics.get(key) != value}
        metrics += [Metric(key, value, story.since, step) for key, value in final.items()]
        # MLflow lets no parameter change: what differs in a resumed run (a path, the device) keeps its first value.
        params = [Param(key, value) for key, value in story.params.items() if key not in run.data.params]
    # The last tag is stored after all metrics. A crash before that repeats them, and equal ones are stored once.
    marks = [RunTag(key, value) for key, value in tags.items()]
    marks += [RunTag("edkd.synced", missing[-1].mark)] if missing else []
    while metrics or params or marks:
        last = len(metrics) <= _METRICS and len(params) <= _OTHERS
        some = marks[:_OTHERS] if last else []
        store.client.log_batch(run.info.run_id, metrics=metrics[:_METRICS], params=params[:_OTHERS], tags=some)
        metrics, params, marks = metrics[_METRICS:], params[_OTHERS:], marks[len(some) :]
    return len(missing)


def _log_state(store: Store, run: "Run", story: Story, run_dir: Path) -> None:
    """Log how the run stands, with the files of one that has ended. The tag that says so is set last."""
    client, run_id = store.client, run.info.run_id
    if story.status != "RUNNING":
        config = RunDir(run_dir).config
        if config.exists():
            client.log_artifact(run_id, str(config))
        if story.summary is not None:
            client.log_dict(run_id, story.summary, "summary.json")
        client.set_terminated(run_id, status=story.status, end_time=story.since)
    elif run.info.status != "RUNNING":
        client.update_run(run_id, status="RUNNING")
    client.set_tag(run_id, "edkd.state", story.state)

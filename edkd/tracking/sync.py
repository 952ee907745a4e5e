"""Bring MLflow up to date with journals: everything that a journal holds is logged from here."""

import contextlib
import itertools
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from filelock import FileLock

from edkd.console import counting
from edkd.errors import EdkdError
from edkd.rundir import journal, lock
from edkd.rundir.paths import JOURNAL, RunDir
from edkd.tracking import bulk
from edkd.tracking.recorded import RecordedRun, shown, summarise
from edkd.tracking.store import Store, create_store, one_line, only, open_store, search
from edkd.tracking.sweeps import parent
from edkd.tracking.uri import PATIENCE, is_server, lock_file, user

if TYPE_CHECKING:
    from mlflow.entities import Run

_METRICS = 800  # in one call: MLflow takes 1000 entries, among them ...
_OTHERS = 100  # ... at most 100 parameters and 100 tags
_TOGETHER = 200  # new runs in one transaction


class SyncReport(NamedTuple):
    """What a sync did: made the MLflow run (anew), logged a number of epochs, logged the run's final status."""

    created: bool
    epochs_logged: int
    ended: bool


_NOTHING = SyncReport(created=False, epochs_logged=0, ended=False)


def sync_run(run_dir: Path, *, uri: str, experiment: str, artifacts: str | None) -> SyncReport:
    """Bring MLflow up to date with the journal of one run directory.

    The MLflow run is made where there is none, and made anew where it holds other values than the journal. A journal
    without a start has nothing to log yet. Raises `EdkdError` if the journal or the store cannot be used; what was
    logged until then stays and is not repeated.
    """
    with one_line(uri):
        return _sync(open_store(uri, experiment, artifacts), run_dir, parents={})


def sync_all(
    runs_root: Path, *, uri: str, experiment: str, artifacts: str | None
) -> list[tuple[Path, SyncReport | EdkdError]]:
    """Sync all run directories below ``runs_root``, in the order of their names; return the outcome of each.

    A failure of one run stops no other. Raises `EdkdError` if the store cannot be used.
    """
    create_store(uri=uri, experiment=experiment, artifacts=artifacts, filling=True)
    folders = sorted(path.parent for path in runs_root.rglob(JOURNAL))
    parents: dict[str, str] = {}
    results: dict[Path, SyncReport | EdkdError] = {}
    with counting("runs brought to MLflow", len(folders)) as update:
        done = itertools.count(1)

        def step() -> None:
            update(next(done))

        with one_line(uri):
            store = open_store(uri, experiment, artifacts)
            known = search(store.client, store.experiment_id, "tags.`edkd.run` != ''")
        for first in range(0, len(folders), _TOGETHER):
            some = folders[first : first + _TOGETHER]
            results |= _sync_together(store, some, known, parents, step)
            for run_dir in some:
                if run_dir not in results:
                    try:
                        with one_line(uri):
                            results[run_dir] = _sync(store, run_dir, parents=parents)
                    except EdkdError as error:
                        results[run_dir] = error
                    step()
    return [(run_dir, results[run_dir]) for run_dir in folders]


def _sync_together(
    store: Store, run_dirs: Sequence[Path], known: "Sequence[Run]", parents: dict[str, str], step: Callable[[], None]
) -> dict[Path, SyncReport | EdkdError]:
    """Sync the runs that MLflow has completely (see `known`) and, in a SQLite file, those that it does not have at all.

    The other runs are not in the result: the caller syncs them one by one. `step` is called for each run in the result.
    """
    journals = {run.data.tags.get("edkd.path"): run.data.tags.get("edkd.journal") for run in known}
    hashes = {run.data.tags["edkd.run"] for run in known}
    results: dict[Path, SyncReport | EdkdError] = {}
    new: dict[Path, tuple[RecordedRun, str]] = {}
    with contextlib.ExitStack() as locks:
        for run_dir in run_dirs:
            path = _path(store, run_dir)
            try:
                with one_line(store.uri):
                    if path in journals and journals[path] == _digest(run_dir):
                        results[run_dir] = _NOTHING
                        step()
                        continue
                    locks.enter_context(_alone(run_dir))
                    recorded, digest = _read(run_dir)
            except EdkdError:
                continue
            if recorded is not None and recorded.run not in hashes and not is_server(store.uri):
                new[run_dir] = recorded, digest
        if new:
            with contextlib.suppress(EdkdError), one_line(store.uri):  # the sync one by one reports the error
                results |= _write_new(store, new, parents, step)
    return results


def _write_new(
    store: Store, new: Mapping[Path, tuple[RecordedRun, str]], parents: dict[str, str], step: Callable[[], None]
) -> dict[Path, SyncReport]:
    """Write runs that MLflow lacked when the sync began; leave out those that were logged since."""
    writer = bulk.Writer(store)
    there = writer.known({recorded.run for recorded, _ in new.values()})
    runs: dict[Path, bulk.NewRun] = {}
    for run_dir, (recorded, digest) in new.items():
        if recorded.run not in there:
            mark = {"edkd.synced": recorded.epochs[-1].mark} if recorded.epochs else {}
            tags = {**_first_tags(store, run_dir, recorded, parents), **mark, **_last_tags(recorded, digest)}
            runs[run_dir] = bulk.NewRun(recorded, tags)
            if recorded.status != "RUNNING":
                with _files(run_dir, recorded) as folder:
                    writer.add_files(runs[run_dir], folder)
    writer.write(runs.values(), step)
    return {
        run_dir: SyncReport(
            created=True, epochs_logged=len(run.recorded.epochs), ended=run.recorded.status != "RUNNING"
        )
        for run_dir, run in runs.items()
    }


def _sync(store: Store, run_dir: Path, *, parents: dict[str, str]) -> SyncReport:
    """Sync one run; `parents` caches the run ids of sweeps."""
    with _alone(run_dir):
        recorded, digest = _read(run_dir)
        if recorded is None:
            return _NOTHING
        return _update(store, run_dir, recorded, digest, parents)


def _alone(run_dir: Path) -> FileLock:
    """The lock by which one process at a time syncs a run; of a folder that others alone may write to, one's own."""
    file = RunDir(run_dir).mlflow_lock if os.access(run_dir, os.W_OK) else lock_file(str(run_dir.absolute()))
    return FileLock(file, timeout=PATIENCE, fallback_to_soft=False)


def _read(run_dir: Path) -> tuple[RecordedRun | None, str]:
    """What the journal holds, and the digest of its file."""
    # Checked before and after the read: a run that ends in between was not killed.
    held = lock.is_held(run_dir)
    digest = _digest(run_dir)
    records = journal.read(run_dir)
    return summarise(records, RunDir(run_dir).journal, held=(held or lock.is_held(run_dir)) is not None), digest


def _digest(run_dir: Path) -> str:
    """A digest of the journal's file, which finds an unchanged journal faster than parsing it."""
    path = RunDir(run_dir).journal
    content = path.read_bytes() if path.exists() else b""  # absent if the run has just begun
    return f"{len(content)}:{zlib.crc32(content):08x}"


def _update(store: Store, run_dir: Path, recorded: RecordedRun, digest: str, parents: dict[str, str]) -> SyncReport:
    from mlflow.entities import RunTag

    client = store.client
    run = _find(store, _path(store, run_dir), recorded)
    mark = None if run is None else run.data.tags.get("edkd.synced")
    if run is not None and mark is not None and all(epoch.mark != mark for epoch in recorded.epochs):
        client.delete_run(run.info.run_id)  # it has other values than the journal
        run = None
    created = run is None
    changed = run is None or run.data.tags.get("edkd.state") != recorded.state
    tags = _first_tags(store, run_dir, recorded, parents) if changed else {}
    if run is None:
        run = client.create_run(store.experiment_id, start_time=recorded.started, run_name=recorded.label, tags=tags)
        tags = {}
    else:
        for tag, still in (("error", recorded.error is not None), ("pruned_after", "pruned_after" in recorded.tags)):
            if tag in run.data.tags and not still:
                client.delete_tag(run.info.run_id, tag)
    epochs_logged = _log_values(store, run, recorded, tags, changed=changed)
    if changed:
        _log_status(store, run, recorded, run_dir)
    last = _last_tags(recorded, digest)
    if changed or any(run.data.tags.get(key) != value for key, value in last.items()):
        client.log_batch(run.info.run_id, tags=[RunTag(key, value) for key, value in last.items()])
    return SyncReport(created, epochs_logged, ended=changed and recorded.status != "RUNNING")


def _first_tags(store: Store, run_dir: Path, recorded: RecordedRun, parents: dict[str, str]) -> dict[str, str]:
    """The tags that an MLflow run is made with, and that are logged again when the run's state has changed."""
    path = _path(store, run_dir)
    tags = {**recorded.tags, "edkd.run": recorded.run, "edkd.name": recorded.name, "edkd.path": path}
    exact = {key: value for key, value in recorded.final.items() if shown({key: value})[key] != value}
    if exact:
        tags["edkd.exact"] = json.dumps(exact)
    files = RunDir(run_dir if is_server(store.uri) else Path("runs") / path)
    tags["directory"] = str(files.path)
    if RunDir(run_dir).best.exists():
        tags["weights"] = str(files.best)
    if recorded.sweep is not None:
        if recorded.sweep not in parents:
            parents[recorded.sweep] = parent(store, recorded.sweep, started=recorded.started)
        tags["mlflow.parentRunId"] = parents[recorded.sweep]
    if recorded.error is not None:
        tags["error"] = recorded.error
    return tags


def _last_tags(recorded: RecordedRun, digest: str) -> dict[str, str]:
    """The tags that record that a run has been logged, and in which state."""
    # The state of other runs may depend on the directory's lock, not on the journal alone.
    ended = {"edkd.journal": digest} if recorded.status in ("FINISHED", "FAILED") else {}
    return {**ended, "edkd.state": recorded.state}


@contextlib.contextmanager
def _files(run_dir: Path, recorded: RecordedRun) -> Iterator[Path]:
    """Yield a temporary folder with the files to log for a run that has ended."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = RunDir(run_dir).config
        if config.exists():
            shutil.copyfile(config, folder / config.name)
        if recorded.summary is not None:
            (folder / "summary.json").write_text(json.dumps(recorded.summary, indent=2))
        yield folder


def _path(store: Store, run_dir: Path) -> str:
    """The run's path below `runs/`: it distinguishes runs of one configuration, also after that folder was moved.

    On a server it begins with the user's name, because two people may have the same path.
    """
    parts = run_dir.absolute().parts
    below = "/".join(parts[len(parts) - parts[::-1].index("runs") :] if "runs" in parts else parts[-1:])
    return f"{user()}:{below}" if is_server(store.uri) else below


def _find(store: Store, path: str, recorded: RecordedRun) -> "Run | None":
    """The MLflow run of a run directory that has the path `path` below `runs/`, None where there is none."""
    runs = search(store.client, store.experiment_id, f"tags.`edkd.run` = '{recorded.run}'")
    return only(store, [run for run in runs if run.data.tags.get("edkd.path") == path])


def _log_values(store: Store, run: "Run", recorded: RecordedRun, tags: dict[str, str], *, changed: bool) -> int:
    """Log the epochs that are missing, in few calls, and return their number.

    If the run's state has `changed`, its other values are logged too.
    """
    from mlflow.entities import Metric, Param, RunTag

    synced = int(run.data.tags.get("edkd.synced", "0").partition(":")[0])
    missing = [epoch for epoch in recorded.epochs if epoch.number > synced]
    metrics = [
        Metric(key, value, time, step)
        for step, time, values in recorded.steps(after=synced)
        if step or changed
        for key, value in values.items()
        if step or run.data.metrics.get(key) != value
    ]
    params: list[Param] = []
    if changed:
        # MLflow lets no parameter change: what differs in a resumed run (a path, the device) keeps its first value.
        params = [Param(key, value) for key, value in recorded.params.items() if key not in run.data.params]
    # The last tag is stored after all metrics. After a crash in between they are resent; equal ones are stored once.
    marks = [RunTag(key, value) for key, value in tags.items()]
    marks += [RunTag("edkd.synced", missing[-1].mark)] if missing else []
    while metrics or params or marks:
        last = len(metrics) <= _METRICS and len(params) <= _OTHERS
        some = marks[:_OTHERS] if last else []
        store.client.log_batch(run.info.run_id, metrics=metrics[:_METRICS], params=params[:_OTHERS], tags=some)
        metrics, params, marks = metrics[_METRICS:], params[_OTHERS:], marks[len(some) :]
    return len(missing)


def _log_status(store: Store, run: "Run", recorded: RecordedRun, run_dir: Path) -> None:
    """Log the status of a run, with the files of one that has ended."""
    client, run_id = store.client, run.info.run_id
    if recorded.status != "RUNNING":
        with _files(run_dir, recorded) as folder:
            client.log_artifacts(run_id, str(folder))
        client.set_terminated(run_id, status=recorded.status, end_time=recorded.since)
    elif run.info.status != "RUNNING":
        client.update_run(run_id, status="RUNNING")

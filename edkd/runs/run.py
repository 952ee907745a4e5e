"""The composition root: from a configuration to a finished run. `launch.py` starts here."""

import contextlib
import logging
import os
import platform
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edkd import __version__, console
from edkd.config.job import Job, digest, freeze, planned_code
from edkd.errors import EdkdError
from edkd.rundir import checkpoint, journal, lock, provenance
from edkd.rundir.paths import checkpoints
from edkd.runs.preemption import Asked, SafePoints, Stopped
from edkd.runs.publish import is_lost, is_to_teach, publish, warn_of_teacher
from edkd.runs.setup import Inputs, device_data, gather, new_state
from edkd.runs.teacher_source import teacher_source
from edkd.teachers.source import Precision
from edkd.tracking import LiveTracker
from edkd.training import allocation, hardware
from edkd.training.device import cores, set_up
from edkd.training.state import TrainState
from edkd.training.trainer import fit

LOG = logging.getLogger("edkd")


def execute(job: Job, *, sweep: str | None, show: bool, stop_asked: Asked | None = None) -> journal.RunState:
    """Run a job to its end, from its last checkpoint where there is one; a finished run is left as it is.

    `stop_asked` is asked at safe points, and ends the run there with `Stopped`; the same call continues it. A finished
    run is trained again where it is to teach and its network is gone, here and from the store: its journal may come
    from elsewhere, without weights.

    Data and teacher of a run that was not planned by a sweep are found and verified before anything is written. Raises
    EdkdError for what the user can mend; the journal and the log have every error, once the run's directory exists.
    """
    directory, cfg = job.directory, job.settings
    before = journal.state(directory)
    if before.status == "finished" and not is_lost(job):
        publish(job, before.end)
        _remove_checkpoints(directory)  # a kill after the journal's end may have left them
        return before
    # Sums over another number of threads differ in their last bits: a resumed run keeps the number it began with.
    threads = before.first_start["threads"] if before.first_start is not None else cfg.engine.threads or cores()
    set_up(cfg.engine, threads)
    planned = (directory / "config.yaml").exists()
    inputs = None if planned else gather(cfg, job.teacher_id)
    with lock.hold(directory):
        now = journal.state(directory)
        if now.status == "finished" and not is_lost(job):  # by another process, since the look above
            return now
        if not planned:
            freeze(job, sweep=sweep, threads=None)
        with console.logging_to(directory / "run.log", show=show):
            return _journalled(job, inputs, sweep=sweep, threads=threads, show=show, stop_asked=stop_asked)


def _journalled(
    job: Job, inputs: Inputs | None, *, sweep: str | None, threads: int, show: bool, stop_asked: Asked | None
) -> journal.RunState:
    """Run, and leave word of whatever ends the run."""
    book = journal.Journal(job.directory / journal.FILE)
    tracker = None
    where = job.settings.tracking
    if where.uri is not None:
        tracker = LiveTracker(job.directory, uri=where.uri, experiment=where.experiment, artifacts=where.artifacts)
    try:
        _run(job, inputs or gather(job.settings, job.teacher_id), book, tracker, sweep, threads, show, stop_asked)
    except (KeyboardInterrupt, Stopped):
        book.append({"event": "interrupted"})
        raise
    except Exception as error:
        foreign = not isinstance(error, EdkdError)
        line = f"{type(error).__name__}: {error}" if foreign else str(error)
        LOG.error("%s failed: %s", job.name, line, exc_info=foreign)
        with contextlib.suppress(EdkdError):  # a full disk takes no record either: the error that matters is the first
            book.append({"event": "failure", "error": line})
        raise
    finally:
        if tracker is not None:
            tracker.notify()
            tracker.close()
    return journal.state(job.directory)


def _run(
    job: Job,
    inputs: Inputs,
    book: journal.Journal,
    tracker: LiveTracker | None,
    sweep: str | None,
    threads: int,
    show: bool,
    stop_asked: Asked | None,
) -> None:
    directory, cfg = job.directory, job.settings
    first = journal.state(directory).first_start
    if first is not None:
        _check_unchanged(first, inputs, directory)
    state = new_state(cfg, inputs)
    precision = Precision(cfg.engine.precision, inputs.device)
    saved = checkpoint.load(directory / "checkpoint.pt")
    if saved is not None:
        state.restore(saved[0])
    resumed = state.epoch
    if resumed:
        before = journal.state(directory)
        if resumed not in before.epochs:
            raise EdkdError(
                f"{directory} has a checkpoint of epoch {resumed}, and no record of that epoch in {journal.FILE}: "
                "restore that file, or move the directory away to start anew"
            )
        _check_code(job, before)
    book.append(_start_record(job, inputs, sweep=sweep, threads=threads, resumed_from=resumed))
    LOG.info("%s%s", job.name, f", resumed after epoch {resumed}" if resumed else "")
    if threads > cores():
        LOG.warning("%d threads share %d CPU cores, which may be very slow: see engine.threads", threads, cores())
    hardware.forget_peak(inputs.device)
    splits = device_data(inputs.arrays, cfg, inputs.device)
    teacher = None
    if inputs.teacher is not None:
        teacher = teacher_source(cfg, inputs, splits.train, precision, state.distiller.needs_feats)
    safe = SafePoints(stop_asked) if stop_asked is not None else None
    with console.step_bar(show, cfg.schedule.epochs) as bar:

        def on_epoch(record: dict[str, Any], improved: bool) -> None:
            if improved:
                _save_student(state.student, directory / "best.pt", job, record)
            book.append(record)
            checkpoint.save(state.state(), directory / "checkpoint.pt")
            if tracker is not None:
                tracker.notify()
            LOG.info("%s", describe(record, cfg.schedule.epochs))
            if safe is not None and record["epoch"] < cfg.schedule.epochs:
                safe.after_epoch(record)

        def on_step(done: int, steps: int) -> None:
            if bar is not None:
                bar(state.epoch + 1, done, steps)
            if safe is not None:
                safe.after_step(done, steps)

        fit(
            state,
            teacher,
            splits,
            cfg.schedule,
            seed=cfg.seed,
            capture=cfg.engine.capture,
            on_epoch=on_epoch,
            on_step=on_step if bar is not None or safe is not None else None,
        )
    _finish(job, state, book, inputs)


def _check_unchanged(first: Mapping[str, Any], inputs: Inputs, directory: Path) -> None:
    """A run continues only with the data and the teacher's weights that its first start names."""
    if first["data_sha256"] != inputs.data_sha256:
        raise EdkdError(f"the data changed since {directory} began: restore it, or move that directory away")
    if inputs.taught_by is not None and first["teacher"]["sha256"] != inputs.taught_by["sha256"]:
        raise EdkdError(
            f"the weights of teacher {inputs.taught_by['id']} changed since {directory} began: "
            "restore them, or move that directory away"
        )


def _check_code(job: Job, before: journal.RunState) -> None:
    """A run continues only with the code of the user's own classes that it has used so far."""
    known = (before.start or {}).get("sources") or {}
    changed = [
        target for target, digest in provenance.foreign(_used(job)).items() if known.get(target, digest) != digest
    ]
    if changed:
        raise EdkdError(
            f"the code of {', '.join(changed)} changed since {job.directory} reached epoch {max(before.epochs)}: "
            "restore it, or move that directory away to train anew"
        )


def _used(job: Job) -> dict[str, Any]:
    """The configuration without the teacher of a run that has none."""
    return {key: value for key, value in job.config.items() if key != "teacher" or job.settings.needs_teacher}


def _start_record(job: Job, inputs: Inputs, *, sweep: str | None, threads: int, resumed_from: int) -> dict[str, Any]:
    device, running = inputs.device, provenance.read()
    provenance.keep_changes(running, job.directory)
    sources = provenance.foreign(_used(job))
    # Seeds that two versions of a method have trained are no sample of one thing.
    cell = {"cell": digest([job.tags["cell"], sources])} if sources else {}
    planned_with = planned_code(job.directory)
    return {
        "event": "start",
        "run": job.run,
        "name": job.name,
        "sweep": sweep,
        "resumed_from": resumed_from,
        "config": _used(job),
        "tags": {**job.tags, **cell, **running.version},
        "sources": sources,
        "planned_with": planned_with if planned_with != running.version else None,  # a job may wait for days
        "versions": {
            "edkd": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        },
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "device": hardware.device_name(device),
        "threads": threads,
        "slurm": allocation.here(),
        "data_sha256": inputs.data_sha256,
        "teacher": inputs.taught_by,
    }


def _finish(job: Job, state: TrainState, book: journal.Journal, inputs: Inputs) -> None:
    """Save the last weights, hand a network trained alone to the teacher store, and close the journal."""
    done = journal.state(job.directory)
    last = done.epochs[state.epoch]
    assert state.best is not None
    _save_student(state.student, job.directory / "last.pt", job, last)
    metrics = last["metrics"]
    best = {name: value for name, value in state.best.items() if name != "chosen_at"}
    seconds = sum(sum(record["seconds"].values()) for record in done.epochs.values())
    end: dict[str, Any] = {
        "event": "end",
        "last": {"epoch": state.epoch, **{name: metrics[f"test/{name}"] for name in ("top1", "top5", "loss")}},
        "best": best,
        "seconds": seconds,
        "peak_memory_mb": hardware.peak_mb(inputs.device),
        "num_classes": inputs.arrays.num_classes,
    }
    if is_to_teach(job):
        warn_of_teacher(job, metrics["test/top1"])
    # Before the journal's end, so that a finished network is never missing from the store.
    publish(job, end)
    book.append(end)
    _remove_checkpoints(job.directory)
    LOG.info(
        "%s: top-1 last %.2f %%, best %.2f %% (epoch %d, chosen on the %s set), in %.0f s; %s",
        job.name, metrics["test/top1"], best["top1"], best["epoch"], best["by"], seconds, job.directory,
    )  # fmt: skip


def _remove_checkpoints(directory: Path) -> None:
    """Remove what a finished run continued from; what cannot be removed does not make it fail."""
    with contextlib.suppress(OSError):
        for path in checkpoints(directory):
            path.unlink(missing_ok=True)


def _save_student(student: nn.Module, path: Path, job: Job, record: Mapping[str, Any]) -> None:
    checkpoint.save_weights(
        student.state_dict(), path, student=job.settings.student.name, run=job.run, epoch=record["epoch"]
    )


def describe(record: Mapping[str, Any], epochs: int) -> str:
    """One line about an epoch."""
    metrics = record["metrics"]
    return (
        f"epoch {record['epoch']}/{epochs}: "
        f"train loss {metrics['train/loss']:.3f}, top-1 {metrics['train/top1']:.2f} %; "
        f"test top-1 {metrics['test/top1']:.2f} %; {record['images_per_second']:.0f} images/s"
    )

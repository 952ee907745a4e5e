"""The composition root: from a configuration to a finished run. `launch.py` starts here."""

import contextlib
import functools
import json
import logging
import os
import platform
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edkd import checkpoint, config, console, journal, plan, teachers
from edkd.config import Settings
from edkd.data.arrays import Arrays, prepare
from edkd.data.batches import DeviceData
from edkd.data.views import n_views
from edkd.errors import EdkdError
from edkd.plan import Job
from edkd.teacher_cache import CachedTeacher, Table
from edkd.tracking import LiveTracker
from edkd.trainer import (
    OnlineTeacher,
    Precision,
    Progress,
    Splits,
    TeacherSource,
    evaluate,
    fit,
    make_optimizer,
    seeded,
)

LOG = logging.getLogger("edkd")


@dataclass(frozen=True)
class Inputs:
    """What a run needs before its first step, found and verified."""

    arrays: Arrays
    data_sha256: str
    device: torch.device
    teacher: nn.Module | None
    taught_by: dict[str, Any] | None  # the journal's note on the teacher


def execute(job: Job, *, sweep: str | None, show: bool) -> journal.RunState:
    """Run a job to its end, from its last checkpoint where there is one; a finished run is left as it is.

    Data and teacher are found and verified before anything is written. Raises EdkdError for what the user can mend;
    the journal has the error too, once the run's directory exists.
    """
    directory = job.directory
    if journal.tail_state(directory).status == "finished":
        done = journal.state(directory)
        _publish(job, done.end)
        return done
    planned = directory.exists()
    try:
        inputs = gather(job.settings, job.teacher_id)
    except EdkdError as error:
        if planned and journal.is_held(directory) is None:
            journal.Journal(directory / journal.FILE).append({"event": "failure", "error": str(error), "epoch": None})
        raise
    with journal.hold(directory):
        if not planned:
            plan.freeze(job, sweep=sweep, threads=None)
        with console.logging_to(directory / "run.log", show=show):
            return _run(job, inputs, sweep=sweep, show=show)


def gather(given: Settings, teacher_id: str | None) -> Inputs:
    """Read and verify all that a run needs: data, device, teacher."""
    arrays, sha256 = load_arrays(given)
    device = pick_device(given.engine.device)
    if not given.needs_teacher:
        return Inputs(arrays, sha256, device, None, None)
    entry = teachers.find(store(given), given.dataset.key, given.teacher.name)
    if entry is None:
        raise teachers.missing(given.dataset.key, given.teacher.name, store(given))
    if teacher_id is not None and entry.id != teacher_id:
        raise EdkdError(
            f"teacher {entry.name} in {entry.path.parent} is {entry.id}, but the run was planned with {teacher_id}: "
            "start the same command again to plan anew"
        )
    network = config.build(given.teacher.model, "teacher.model", num_classes=arrays.num_classes)
    teachers.load(entry, network)
    network = to_device(network, given, device)
    measured = teachers.accuracy_for(entry, sha256)
    if measured is None:
        measured = {**evaluate(network, device_data(arrays, given, device).test, Precision("fp32", device))}
        teachers.record_accuracy(entry, measured, sha256)
    note = {"id": entry.id, "sha256": entry.sha256, "top1": measured["top1"]}
    return Inputs(arrays, sha256, device, network, note)


def _run(job: Job, inputs: Inputs, *, sweep: str | None, show: bool) -> journal.RunState:
    directory, given = job.directory, job.settings
    before = journal.state(directory)
    book = journal.Journal(directory / journal.FILE)
    first = before.first_start
    # Sums over another number of threads differ in their last bits: a resumed run keeps the number it began with.
    threads = first["threads"] if first is not None else given.engine.threads
    threads = threads or cores()
    tracker = None
    if given.tracking.uri is not None:
        tracker = LiveTracker(
            directory,
            uri=given.tracking.uri,
            experiment=given.tracking.experiment,
            artifacts=given.tracking.artifacts,
        )
    epoch = 0
    try:
        if first is not None:
            _check_unchanged(first, inputs, directory)
        progress, precision = _prepare(given, inputs, threads)
        saved = checkpoint.load(directory / "checkpoint.pt")
        if saved is not None:
            progress.restore(saved[0])
        epoch = progress.epoch
        book.append(_start_record(job, inputs, sweep=sweep, threads=threads, resumed_from=epoch))
        LOG.info("%s%s", job.name, f", resumed after epoch {epoch}" if epoch else "")
        splits = device_data(inputs.arrays, given, inputs.device)
        teacher = None
        if inputs.teacher is not None:
            teacher = teacher_source(given, inputs, splits.train, precision, progress.distiller.needs_feats)
        with console.step_bar(show, given.schedule.epochs) as bar:

            def on_epoch(record: dict[str, Any], improved: bool) -> None:
                nonlocal epoch
                if improved:
                    _save_student(progress.student, directory / "best.pt", job, record)
                book.append(record)
                checkpoint.save(progress.state(), directory / "checkpoint.pt")
                epoch = progress.epoch
                if tracker is not None:
                    tracker.notify()
                LOG.info("%s", describe(record, given.schedule.epochs))

            def on_step(done: int, steps: int) -> None:
                if bar is not None:
                    bar(progress.epoch + 1, done, steps)

            fit(
                progress,
                teacher,
                splits,
                given.schedule,
                seed=given.seed,
                precision=precision,
                on_epoch=on_epoch,
                on_step=on_step if bar is not None else None,
            )
        _finish(job, progress, book, inputs.arrays.num_classes)
    except KeyboardInterrupt:
        book.append({"event": "interrupted", "epoch": epoch})
        raise
    except Exception as error:
        LOG.error("%s failed after epoch %d", job.name, epoch, exc_info=not isinstance(error, EdkdError))
        with contextlib.suppress(EdkdError):  # a full disk takes no record either: the error that matters is the first
            book.append({"event": "failure", "error": f"{type(error).__name__}: {error}", "epoch": epoch})
        raise
    finally:
        if tracker is not None:
            tracker.notify()
            tracker.close()
    return journal.state(directory)


def _check_unchanged(first: Mapping[str, Any], inputs: Inputs, directory: Path) -> None:
    """A run continues only with the data and the teacher's weights that its first start names."""
    if first["data_sha256"] != inputs.data_sha256:
        raise EdkdError(f"the data changed since {directory} began: restore it, or move that directory away")
    if inputs.taught_by is not None and first["teacher"]["sha256"] != inputs.taught_by["sha256"]:
        raise EdkdError(
            f"the weights of teacher {inputs.taught_by['id']} changed since {directory} began: "
            "restore them, or move that directory away"
        )


def teacher_source(
    given: Settings, inputs: Inputs, data: DeviceData, precision: Precision, needs_feats: bool
) -> TeacherSource:
    """The teacher of a run: its cache where logits suffice and the table fits, else the network itself."""
    assert inputs.teacher is not None
    online = OnlineTeacher(inputs.teacher, want_feats=needs_feats, precision=precision)
    if needs_feats or not given.engine.teacher_cache:
        return online
    views = n_views(data.padding, data.flip)
    try:
        table = open_table(given, inputs, rows=len(data) * views)
    except OSError as error:
        LOG.warning("no teacher cache: %s; the teacher runs in every step", error)
        return online
    if table is None:
        return online

    def compute(index: Tensor, view: Tensor) -> Tensor:
        return online.raw(data.augmented(index, view)).logits

    return CachedTeacher(table, compute, views=views, device=inputs.device)


def open_table(given: Settings, inputs: Inputs, *, rows: int) -> Table | None:
    """The cache file for a teacher on these data, in this precision; None where it would be too large."""
    assert inputs.taught_by is not None
    dtype = torch.bfloat16 if given.engine.precision == "bf16" else torch.float32
    size = rows * (inputs.arrays.num_classes * dtype.itemsize + 8) / 1e9
    if size > given.engine.teacher_cache_gb:
        LOG.info("no teacher cache: %.1f GB, above engine.teacher_cache_gb=%g", size, given.engine.teacher_cache_gb)
        return None
    key = {
        "teacher": inputs.taught_by["sha256"],
        "data": inputs.data_sha256,
        "normalisation": [given.dataset.mean, given.dataset.std],
        "views": [given.dataset.padding, given.dataset.flip],
        "computed": [inputs.device.type, given.engine.precision, given.engine.channels_last],
    }
    folder = store(given) / given.dataset.key
    path = folder / f"{given.teacher.name}.{config.digest(key)}.logits"
    return Table(path, key=key, rows=rows, classes=inputs.arrays.num_classes, dtype=dtype)


def _prepare(given: Settings, inputs: Inputs, threads: int) -> tuple[Progress, Precision]:
    torch.set_num_threads(threads)
    if given.engine.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
    # The methods of one seed share initial weights; a method's own parameters come from another stream.
    with seeded(given.seed, 0):
        student = config.build(given.student.model, "student.model", num_classes=inputs.arrays.num_classes)
    with seeded(given.seed, -1):
        distiller = config.build(given.distiller, "distiller")
    student, distiller = to_device(student, given, inputs.device), distiller.to(inputs.device)
    optimizer = make_optimizer(student, distiller, given.schedule, inputs.device)
    return Progress(student, distiller, optimizer), Precision(given.engine.precision, inputs.device)


def _start_record(job: Job, inputs: Inputs, *, sweep: str | None, threads: int, resumed_from: int) -> dict[str, Any]:
    device = inputs.device
    return {
        "event": "start",
        "run": job.run,
        "name": job.name,
        "sweep": sweep,
        "resumed_from": resumed_from,
        "config": job.config,
        "tags": {**job.tags, **plan.code_version()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})",
        "threads": threads,
        "data_sha256": inputs.data_sha256,
        "teacher": inputs.taught_by,
    }


def _finish(job: Job, progress: Progress, book: journal.Journal, classes: int) -> None:
    """Save the last weights, hand a network trained alone to the teacher store, and close the journal."""
    done = journal.state(job.directory)
    last = done.epochs[progress.epoch]
    assert progress.best is not None
    _save_student(progress.student, job.directory / "last.pt", job, last)
    metrics = last["metrics"]
    best = {name: value for name, value in progress.best.items() if name != "chosen_at"}
    seconds = sum(sum(record["seconds"].values()) for record in done.epochs.values())
    end: dict[str, Any] = {
        "event": "end",
        "last": {"epoch": progress.epoch, **{name: metrics[f"test/{name}"] for name in ("top1", "top5", "loss")}},
        "best": best,
        "seconds": seconds,
        "num_classes": classes,
    }
    # Before the journal's end, so that a finished network is never missing from the store.
    _publish(job, end)
    book.append(end)
    LOG.info(
        "%s: top-1 last %.2f %%, best %.2f %% (epoch %d, chosen on the %s set), in %.0f s; %s",
        job.name, metrics["test/top1"], best["top1"], best["epoch"], best["by"], seconds, job.directory,
    )  # fmt: skip


def _publish(job: Job, end: Mapping[str, Any] | None) -> None:
    """Make a network that trained alone a teacher, unless the store has one of that name already."""
    given = job.settings
    if given.needs_teacher or end is None:
        return
    entry, published = teachers.publish(
        store(given),
        given.dataset.key,
        given.student.name,
        job.directory / "last.pt",
        id=f"run:{job.run}",
        source=str(job.directory),
        epochs=given.schedule.epochs,
        recipe=job.tags["recipe"],
        test={name: end["last"][name] for name in ("top1", "top5", "loss")},
        num_classes=end["num_classes"],
        replace=False,
    )
    if not published and entry.id != f"run:{job.run}":
        LOG.info("%s stays %s; `edkd teachers import --replace` changes that", entry.path, entry.id)


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


def store(given: Settings) -> Path:
    """The teacher store of a configuration."""
    return Path(given.output) / "teachers"


def cores() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pick_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N`. Raises EdkdError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise EdkdError(f"engine.device={name}: {reason}; allowed: auto, cpu, cuda, cuda:N") from error
    return device


def to_device(network: nn.Module, given: Settings, device: torch.device) -> nn.Module:
    """Move a network, in the memory layout that the engine asks for."""
    layout = torch.channels_last if given.engine.channels_last else torch.contiguous_format
    return network.to(device=device, memory_format=layout)  # type: ignore[call-overload]


def load_arrays(given: Settings) -> tuple[Arrays, str]:
    """The data set of a configuration and its fingerprint; the last one stays in memory for the next run."""
    arguments = {name: getattr(given.dataset, name) for name in _PREPARED}
    return _load_arrays(json.dumps(given.dataset.source, sort_keys=True), json.dumps(arguments))


_PREPARED = ("train_per_class", "test_per_class", "validation", "validation_seed")


@functools.lru_cache(maxsize=1)
def _load_arrays(source: str, arguments: str) -> tuple[Arrays, str]:
    arrays = prepare(config.build(json.loads(source), "dataset.source"), **json.loads(arguments))
    return arrays, arrays.fingerprint()


def device_data(arrays: Arrays, given: Settings, device: torch.device) -> Splits:
    """The splits resident on the device; only training images are padded and augmented."""

    def make(split: Any, padding: int, flip: bool) -> DeviceData:
        return DeviceData(
            split,
            mean=given.dataset.mean,
            std=given.dataset.std,
            padding=padding,
            flip=flip,
            device=device,
            channels_last=given.engine.channels_last,
        )

    return Splits(
        train=make(arrays.train, given.dataset.padding, given.dataset.flip),
        validation=make(arrays.validation, 0, False) if arrays.validation is not None else None,
        test=make(arrays.test, 0, False),
    )

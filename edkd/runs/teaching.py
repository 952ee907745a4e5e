"""How networks become teachers: trained here without a teacher, or imported from a file and measured."""

import contextlib
import csv
import hashlib
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edkd.config.job import Job
from edkd.config.schema import Settings
from edkd.errors import EdkdError
from edkd.rundir import checkpoint
from edkd.rundir.paths import RunDir
from edkd.runs.evaluate import evaluate_network
from edkd.runs.inputs import load_arrays, teacher_folder
from edkd.teachers import store

LOG = logging.getLogger("edkd")
TABLE = Path(__file__).parents[2] / "analysis" / "published" / "networks.csv"
TOLERANCE = 1.0  # points of top-1
CHANCE = 1.5  # times the accuracy of guessing: a network that has no more has learnt nothing of these classes


def warn_of_teacher(job: Job, top1: float) -> None:
    """Log one warning if a teacher of the full CIFAR-100 recipe is more than a point off the published accuracy."""
    cfg = job.settings
    if cfg.dataset.key != "cifar100" or cfg.schedule.epochs < 240:
        return
    known = published(cfg.student.name)
    if known is not None and abs(top1 - known) > TOLERANCE:
        LOG.warning(
            "teacher %s has %.2f %% after its last epoch, published are %.2f %%: more than %g point off means a fault "
            "to find before its students are trained",
            cfg.student.name, top1, known, TOLERANCE,
        )  # fmt: skip


def published(network: str) -> float | None:
    """The published accuracy of a teacher of the full CIFAR-100 recipe, top-1 in percent; None where it is unknown."""
    with TABLE.open(newline="") as file:
        found = [
            float(row["top1"]) for row in csv.DictReader(file) if (row["role"], row["network"]) == ("teacher", network)
        ]
    return found[0] if found else None


def is_to_teach(job: Job) -> bool:
    """Whether a run trains a network that students of the same data set may learn from."""
    return not job.settings.needs_teacher and job.settings.seed == job.settings.teacher_seed


def is_lost(job: Job) -> bool:
    """Whether a finished run was to train a teacher, and neither its directory nor the store has such a network."""
    cfg = job.settings
    return (
        is_to_teach(job)
        and not RunDir(job.directory).last.exists()
        and store.find(teacher_folder(cfg), cfg.dataset.key, cfg.student.name) is None
    )


def publish(job: Job, end: Mapping[str, Any]) -> None:
    """Put a network that trained alone into the store, unless its teacher there was imported or trained as long.

    Of several seeds, only `teacher_seed` teaches; of several trainings of that seed, the first that ends.
    """
    cfg, last = job.settings, RunDir(job.directory).last
    if not is_to_teach(job) or not last.exists() or checkpoint.ends_in_method(last):
        return
    warn_of_teacher(job, end["last"]["top1"])
    outgrown = False
    with contextlib.suppress(EdkdError):  # what is there may be damaged; publishing mends that
        held = store.find(teacher_folder(cfg), cfg.dataset.key, cfg.student.name)
        outgrown = held is not None and held.epochs is not None and held.epochs < cfg.schedule.epochs
    entry, published = store.publish(
        teacher_folder(cfg),
        cfg.dataset.key,
        cfg.student.name,
        RunDir(job.directory).last,
        id=f"run:{job.run}",
        source=str(job.directory),
        epochs=cfg.schedule.epochs,
        recipe=job.tags["recipe"],
        test={name: end["last"][name] for name in ("top1", "top5", "loss")},
        num_classes=end["num_classes"],
        replace=outgrown,
    )
    if not published and entry.id != f"run:{job.run}":
        how = f"edkd teachers import {cfg.student.name} {RunDir(job.directory).last} --replace"
        LOG.info("%s stays %s; `%s`, with this run's dataset options, changes that", entry.path, entry.id, how)


def import_teacher(cfg: Settings, file: Path, *, replace: bool, force: bool, source: str | None = None) -> store.Entry:
    """Put a checkpoint file into the teacher store, after checking its shapes and measuring it on the test set.

    `source` is the file's origin, if that is not the file itself. Raises EdkdError as `evaluate_network` does; for a
    student that ends in its method; for another teacher of that name in the store, unless `replace`; and for a network
    that is hardly better than chance, or whose loss is not finite, unless `force`.
    """
    if checkpoint.ends_in_method(file):
        raise EdkdError(f"{file}: the student of this method ends in modules of the method, and can be no teacher")
    measured = evaluate_network(cfg, file).overall
    arrays, _ = load_arrays(cfg)
    chance = 100 / arrays.num_classes
    if not force and not (math.isfinite(measured["loss"]) and measured["top1"] > CHANCE * chance):
        raise EdkdError(
            f"{file} has top-1 {measured['top1']:.2f} % and loss {measured['loss']:.4f} on {cfg.dataset.key}, "
            f"chance is {chance:g} %: other classes, another normalisation or a fault; --force makes it a teacher "
            "all the same"
        )
    identity = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    entry, _ = store.publish(
        teacher_folder(cfg),
        cfg.dataset.key,
        cfg.student.name,
        file,
        id=f"file:{identity}",
        source=source or str(file.resolve()),
        epochs=None,
        recipe=None,
        test={name: measured[name] for name in ("top1", "top5", "loss")},
        num_classes=arrays.num_classes,
        replace=replace,
    )
    if entry.id != f"file:{identity}":
        raise EdkdError(f"{entry.dataset} has a teacher {entry.name} already ({entry.id}); --replace replaces it")
    return entry

"""How a network that was trained alone becomes a teacher, and how it compares with the published one."""

import contextlib
import csv
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edkd.config.job import Job
from edkd.errors import EdkdError
from edkd.rundir.paths import RunDir
from edkd.runs.setup import teacher_folder
from edkd.teachers import store

LOG = logging.getLogger("edkd")
TABLE = Path(__file__).parents[2] / "analysis" / "published" / "networks.csv"
TOLERANCE = 1.0  # points of top-1


def warn_of_teacher(job: Job, top1: float) -> None:
    """Log one warning if a teacher of the full CIFAR-100 recipe is more than a point off the published accuracy."""
    cfg = job.settings
    if cfg.dataset.key != "cifar100" or cfg.schedule.epochs < 240:
        return
    known = _published(cfg.student.name)
    if known is not None and abs(top1 - known) > TOLERANCE:
        LOG.warning(
            "teacher %s has %.2f %% after its last epoch, published are %.2f %%: more than %g point off means a fault "
            "to find before its students are trained",
            cfg.student.name, top1, known, TOLERANCE,
        )  # fmt: skip


def _published(network: str) -> float | None:
    """The published top-1 of a teacher on CIFAR-100, in percent; None if there is none."""
    with TABLE.open(newline="") as file:
        rows = (row for row in csv.DictReader(file) if (row["role"], row["network"]) == ("teacher", network))
        return next((float(row["top1"]) for row in rows), None)


def is_to_teach(job: Job) -> bool:
    """Whether a run trains a network that students of the same data set may learn from."""
    return not job.settings.needs_teacher and job.settings.seed == job.settings.teacher_seed


def is_lost(job: Job) -> bool:
    """Whether the network of a finished run is to teach, and is neither in its directory nor any in the store."""
    cfg = job.settings
    return (
        is_to_teach(job)
        and not RunDir(job.directory).last.exists()
        and store.find(teacher_folder(cfg), cfg.dataset.key, cfg.student.name) is None
    )


def publish(job: Job, end: Mapping[str, Any] | None) -> None:
    """Make a network that trained alone a teacher, unless the store has one already that trained as long.

    Of several seeds only `teacher_seed` teaches, so that it does not depend on which of them is done first.
    """
    cfg = job.settings
    if not is_to_teach(job) or end is None or not RunDir(job.directory).last.exists():
        return
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

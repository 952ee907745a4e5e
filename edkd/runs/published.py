"""How a teacher that was trained here compares with the published one, so that a fault is found before its students."""

import csv
import logging
from pathlib import Path

from edkd.config.job import Job

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

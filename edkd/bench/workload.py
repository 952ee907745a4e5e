"""What every way to train is given: data, configuration, networks. The same for all of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import nn

from edkd.bench import plain
from edkd.config import schema
from edkd.config.compose import compose_settings
from edkd.config.instantiate import build
from edkd.config.schema import Settings
from edkd.data.arrays import Arrays, Split
from edkd.errors import EdkdError
from edkd.runs.setup import Inputs, load_arrays
from edkd.training.device import cores
from edkd.training.trainer import seeded

METHODS = ("kd", "dkd", "edkd")
LEARNING_RATE = 1e-4  # a step takes as long with any
LIKE_CIFAR100 = {"train": 50_000, "test": 10_000, "classes": 100, "size": 32}


@dataclass(frozen=True)
class Cell:
    """One pair with one method."""

    teacher: str
    student: str
    method: str

    @property
    def pair(self) -> str:
        """`teacher-student`."""
        return f"{self.teacher}-{self.student}"


@dataclass(frozen=True)
class Workload:
    """The data, the device, and a folder for files that last as long as the benchmark."""

    arrays: Arrays  # all images: what the plain loop draws from
    cut: Arrays  # the images of one repetition: an epoch of ours
    device: torch.device
    threads: int
    steps: int
    folder: Path
    feed: plain.Feed | None  # of the plain loop


def table_pairs() -> list[str]:
    """The seven pairs of the published table."""
    text = (schema.folder() / "pair" / "all.yaml").read_text(encoding="utf-8")
    return list(yaml.safe_load(text)["pairs"])


def cells(pairs: Sequence[str], methods: Sequence[str]) -> list[Cell]:
    """The cells of a table. Raises EdkdError for a name that is neither a pair nor a method of the benchmark."""
    for method in methods:
        if method not in METHODS:
            raise EdkdError(f"--methods={method}: no such method; allowed: {', '.join(METHODS)}")
    made = []
    for pair in pairs:
        teacher, hyphen, student = pair.partition("-")
        if not (teacher and hyphen and student):
            raise EdkdError(f"--pairs={pair}: a pair is TEACHER-STUDENT, such as {table_pairs()[0]} (see conf/pair)")
        made += [Cell(teacher, student, method) for method in methods]
    return made


def settings(cell: Cell, dataset: str, overrides: Sequence[str]) -> Settings:
    """The configuration of a run of this cell, from the real conf/. Raises EdkdError for what does not fit.

    Only the learning rate is another, for what an untrained teacher teaches must not make a student diverge.
    """
    cfg = compose_settings(
        [
            f"dataset={dataset}",
            f"teacher={cell.teacher}",
            f"student={cell.student}",
            f"distiller={cell.method}",
            *overrides,
        ]
    )
    return replace(cfg, schedule=replace(cfg.schedule, lr=LEARNING_RATE))


def read_data(cfg: Settings, *, asked: bool) -> tuple[Arrays, str]:
    """The data set of a configuration and words for it; random images of its shape where CIFAR-100 is not here.

    `asked`: the user said where the data are, so they must be there. Nothing is downloaded.
    """
    source = dict(cfg.dataset.source)
    if "download" in source:
        source["download"] = False
    try:
        arrays, _ = load_arrays(replace(cfg, dataset=replace(cfg.dataset, source=source)))
    except EdkdError:
        if asked or cfg.dataset.name != "cifar100":
            raise
        return random_arrays(**LIKE_CIFAR100), "random images of CIFAR-100's shape (the data set is not here)"
    if not isinstance(arrays, Arrays):
        raise EdkdError(f"{cfg.dataset.key} is streamed: the benchmark needs data in memory")
    return arrays, f"{cfg.dataset.key}, {len(arrays.train)} training images"


def random_arrays(*, train: int, test: int, classes: int, size: int) -> Arrays:
    """Random images and labels: a step takes as long on these as on any."""
    stream = np.random.default_rng(0)

    def split(count: int) -> Split:
        images = stream.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
        return Split(images, stream.integers(0, classes, count, dtype=np.int64))

    return Arrays(split(train), None, split(test), tuple(map(str, range(classes))))


def cut(arrays: Arrays, *, batch: int, steps: int) -> Arrays:
    """The first images of a data set: an epoch of `steps` whole batches. Raises EdkdError if there are not as many."""
    most = len(arrays.train) // batch
    if not 1 <= steps <= most:
        raise EdkdError(f"--steps={steps}: allowed: 1 to {most}, for {len(arrays.train)} images in batches of {batch}")
    return replace(arrays, train=arrays.train.take(np.arange(steps * batch)), validation=None)


def feed(cfg: Settings, arrays: Arrays, device: torch.device) -> plain.Feed:
    """The plain loop's batches of all training images, from a worker for each core, up to eight."""
    return plain.Feed(
        arrays.train,
        mean=cfg.dataset.mean,
        std=cfg.dataset.std,
        padding=cfg.dataset.padding,
        flip=cfg.dataset.flip,
        batch_size=cfg.schedule.batch_size,
        workers=min(cores(), plain.MOST_WORKERS),
        device=device,
    )


def inputs(cfg: Settings, work: Workload, teacher: nn.Module) -> Inputs:
    """What a run would have gathered, of a teacher that nobody trained: its answers take as long."""
    name = f"untrained {cfg.teacher.name}"
    return Inputs(work.cut, "cut for the benchmark", work.device, teacher, {"id": name, "sha256": name, "top1": 0.0})


def networks(cfg: Settings, work: Workload) -> tuple[nn.Module, nn.Module]:
    """(teacher, student) on the CPU, the same weights whenever they are made."""
    made = []
    for role, network in (("teacher", cfg.teacher), ("student", cfg.student)):
        with seeded(cfg.seed, 0, work.device):
            made.append(build(network.model, f"{role}.model", num_classes=work.arrays.num_classes))
    return made[0], made[1]

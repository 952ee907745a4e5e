"""The inputs that all modes share: data, configuration, networks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import nn

from edkd import CONF
from edkd.bench.plain import LOSSES
from edkd.config.compose import compose_settings
from edkd.config.instantiate import build
from edkd.config.schema import Settings
from edkd.data.arrays import Arrays, Split
from edkd.data.files import Streamed
from edkd.errors import EdkdError
from edkd.runs.inputs import load_arrays
from edkd.training.trainer import seeded

METHODS = tuple(LOSSES)
LEARNING_RATE = 1e-4  # the time of a step does not depend on it
EVALUATED = 1000  # images at most; the time is scaled to the whole test set
LIKE_CIFAR100 = (50_000, 10_000)  # training and test images


@dataclass(frozen=True)
class Workload:
    """Data, device and effort of all modes."""

    arrays: Arrays | Streamed  # all images: what the plain loop draws from
    cut: Arrays | Streamed  # the images of one repetition: an epoch of ours
    device: torch.device
    threads: int
    workers: int  # processes that load the plain loop's images
    steps: int  # of one repetition
    folder: Path  # for files that last as long as the benchmark


def table_pairs() -> list[str]:
    """The seven pairs of the published table."""
    text = (CONF / "pair" / "all.yaml").read_text(encoding="utf-8")
    return list(yaml.safe_load(text)["pairs"])


def settings(pair: str, method: str, dataset: str, overrides: Sequence[str]) -> Settings:
    """The configuration of a run of this pair and method, from the real conf/. Raises EdkdError for what does not fit.

    Only the learning rate differs, so that an untrained teacher does not make its student diverge.
    """
    teacher, _, student = pair.partition("-")
    if not (teacher and student):
        raise EdkdError(f"--pairs={pair}: a pair is TEACHER-STUDENT, such as {table_pairs()[0]} (see conf/pair)")
    groups = [f"dataset={dataset}", f"teacher={teacher}", f"student={student}", f"distiller={method}"]
    cfg = compose_settings([*groups, *overrides])
    return replace(cfg, method=method, schedule=replace(cfg.schedule, lr=LEARNING_RATE))


def read_data(cfg: Settings, *, required: bool) -> tuple[Arrays, str]:
    """The data set of a configuration, and its description.

    Random images replace CIFAR-100 if it cannot be loaded and is not `required`. Nothing is downloaded.
    """
    source = {key: False if key == "download" else value for key, value in cfg.dataset.source.items()}
    try:
        arrays, _ = load_arrays(replace(cfg, dataset=replace(cfg.dataset, source=source)))
    except EdkdError:
        if required or cfg.dataset.name != "cifar100":
            raise
        stream = np.random.default_rng(0)
        train, test = (
            Split(stream.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), stream.integers(0, 100, count))
            for count in LIKE_CIFAR100
        )
        described = "random images of CIFAR-100's shape (the data set is not here)"
        return Arrays(train, None, test, tuple(map(str, range(100)))), described
    if not isinstance(arrays, Arrays):
        raise EdkdError(f"{cfg.dataset.key} is streamed: --streaming measures that")
    return arrays, f"{cfg.dataset.key}, {len(arrays.train)} training images"


def cut(arrays: Arrays, *, batch: int, steps: int) -> Arrays:
    """The first images: an epoch of `steps` whole batches, and some to test. Raises EdkdError if there are fewer."""
    most = len(arrays.train) // batch
    if not 1 <= steps <= most:
        raise EdkdError(f"--steps={steps}: allowed: 1 to {most}, for {len(arrays.train)} images in batches of {batch}")
    train, test = arrays.train.take(np.arange(steps * batch)), arrays.test.take(np.arange(len(arrays.test))[:EVALUATED])
    return replace(arrays, train=train, validation=None, test=test)


def networks(cfg: Settings, work: Workload) -> tuple[nn.Module, nn.Module]:
    """(teacher, student) on the CPU, the same weights whenever they are made."""
    with seeded(cfg.seed, 0, work.device):
        teacher = build(cfg.teacher.model, "teacher.model", num_classes=work.arrays.num_classes)
    with seeded(cfg.seed, 0, work.device):
        student = build(cfg.student.model, "student.model", num_classes=work.arrays.num_classes)
    return teacher, student

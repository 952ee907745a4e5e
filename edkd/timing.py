"""A few training steps, teacher passes and evaluations timed on the device at hand, on random images.

The images have the shape of the data set, the networks random weights: neither changes what a step costs.
"""

import contextlib
import dataclasses
import itertools
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edkd import engine
from edkd.building import build
from edkd.config import Settings
from edkd.data.arrays import Arrays, Split, prepare
from edkd.data.views import n_views
from edkd.engine import cores, pick_device, to_device
from edkd.errors import EdkdError
from edkd.estimate import Kind
from edkd.inputs import device_data, load_arrays, new_progress
from edkd.models.base import Prediction
from edkd.plan import Job
from edkd.teaching import TEACHER_BATCH, OnlineTeacher, Precision, TeacherSource
from edkd.trainer import EVALUATION_BATCH, Splits, evaluate, make_step, train_epoch

WARM_UP = 5  # steps that do not count if there are more: buffers are made, on a GPU the step is recorded
MOST_STEPS = 50
MOST_BYTES = 2**28  # of images


@dataclass(frozen=True)
class Shape:
    """As much of a data set as a step's cost depends on."""

    train: int  # images
    tests: int  # images on which each epoch is evaluated
    size: int  # pixels
    classes: int


@dataclass
class Times:
    """Seconds that are left of each job, by its run, and the fewest and the most steps that were timed."""

    seconds: dict[str, float]
    steps: tuple[int, int]


class _Clock:
    """Shares the time that is left among the parts that are."""

    def __init__(self, budget: float, parts: int) -> None:
        self.until, self.parts = time.monotonic() + budget, parts

    def share(self) -> float:
        """Seconds for the next part; below zero where others took too long."""
        self.parts -= 1
        return (self.until - time.monotonic()) / (self.parts + 1)


class _EnoughError(Exception):
    """Ends an epoch of which only the first steps were wanted."""


def time_jobs(
    jobs: Sequence[Job], kinds: Mapping[str, Kind], left: Mapping[str, int], *, threads: int | None, budget: float
) -> Times:
    """Time a few steps of each network of these jobs, in `budget` seconds or little more.

    A remembered teacher runs once for each image and view, which is told from the seeds and the epochs that are left:
    views depend on both alone, so the jobs of one teacher share them. Raises EdkdError if a device is not there or the
    shape of the data cannot be known.
    """
    data = {job.run: job.settings.dataset.key for job in jobs}
    shapes = {data[job.run]: shape_of(job.settings) for job in _first_of(data, jobs)}
    students = {job.run: _student_key(kinds[job.run]) for job in jobs}
    teachers = {job.run: _teacher_key(kinds[job.run]) for job in jobs if kinds[job.run].mode == "remembered"}
    alone = {_as_teacher(key) for key in students.values() if key.mode == "alone"}
    clock = _Clock(budget, parts=len({*students.values()}) + len({*teachers.values()} - alone))
    epochs: dict[Kind, float] = {}
    forward: dict[Kind, float] = {}  # seconds for an image, in eval mode
    steps = []
    for job in _first_of(students, jobs):
        given, shape = job.settings, shapes[data[job.run]]
        engine.set_up(given.engine, given.engine.threads or threads or cores())
        step, image, count = time_student(given, shape, clock.share())
        epochs[students[job.run]] = step * shape.train / given.schedule.batch_size + image * shape.tests
        steps.append(count)
        if students[job.run].mode == "alone":
            forward[_as_teacher(students[job.run])] = image
    seconds = {job.run: left[job.run] * epochs[students[job.run]] for job in jobs}
    for job in _first_of(teachers, jobs):
        given, shape = job.settings, shapes[data[job.run]]
        engine.set_up(given.engine, given.engine.threads or threads or cores())
        if teachers[job.run] not in forward:
            forward[teachers[job.run]] = time_teacher(given, shape, clock.share())
        image = forward[teachers[job.run]]
        taught = [other for other in jobs if teachers.get(other.run) == teachers[job.run]]
        passes = passes_of(taught, left, n_views(given.dataset.padding, given.dataset.flip)) * shape.train
        for other in taught:  # whoever comes first pays; in the sum it does not matter who
            seconds[other.run] += image * passes * left[other.run] / sum(left[each.run] for each in taught)
    return Times(seconds, (min(steps), max(steps)))


def passes_of(jobs: Sequence[Job], left: Mapping[str, int], views: int) -> float:
    """How many of an image's views a remembered teacher will have seen when these jobs are done."""
    by_seed: dict[int, int] = {}
    for job in jobs:
        by_seed[job.settings.seed] = max(by_seed.get(job.settings.seed, 0), left[job.run])
    return views * (1 - (1 - 1 / views) ** sum(by_seed.values()))


def time_student(given: Settings, shape: Shape, seconds: float) -> tuple[float, float, int]:
    """Seconds of a training step, and of an image's evaluation; how many steps were timed, in so many seconds."""
    device = pick_device(given.engine.device)
    precision = Precision(given.engine.precision, device)
    batch = given.schedule.batch_size
    steps = max(2, min(MOST_STEPS, MOST_BYTES // (3 * shape.size**2 * batch)))
    data = _data(given, shape, steps * batch, device)
    progress = new_progress(given, shape.classes, device)
    distiller = progress.distiller
    teacher: TeacherSource | None = None
    if distiller.needs_teacher and (distiller.needs_feats or not given.engine.teacher_cache):
        teacher = _teacher(given, shape, precision, distiller.needs_feats)
    elif distiller.needs_teacher:
        teacher = _Remembered(torch.randn(len(data.train), shape.classes, device=device))
    step = make_step(progress, teacher, data.train, given.schedule, precision=precision, capture=given.engine.capture)
    marks = [time.monotonic()]

    def on_step(done: int, steps: int) -> None:
        _wait(device)
        marks.append(time.monotonic())
        if marks[-1] - marks[0] > 0.8 * seconds:
            raise _EnoughError

    with contextlib.suppress(_EnoughError):
        train_epoch(progress, step, given.schedule, seed=given.seed, on_step=on_step)
    taken = [after - before for before, after in itertools.pairwise(marks)]
    counted = taken[min(WARM_UP, len(taken) // 2) :]
    evaluations = []
    for _ in range(2 if time.monotonic() - marks[0] < seconds else 1):
        began = time.monotonic()
        evaluate(progress.student, data.test, precision)
        _wait(device)
        evaluations.append(time.monotonic() - began)
    return statistics.median(counted), evaluations[-1] / len(data.test), len(counted)


def time_teacher(given: Settings, shape: Shape, seconds: float) -> float:
    """Seconds that a teacher takes for an image when its logits are not remembered yet."""
    device = pick_device(given.engine.device)
    data = _data(given, shape, TEACHER_BATCH, device).train
    teacher = _teacher(given, shape, Precision(given.engine.precision, device), want_feats=False)
    index = torch.arange(TEACHER_BATCH, device=device)
    began = time.monotonic()
    taken: list[float] = []
    while len(taken) < WARM_UP + 2 and (not taken or time.monotonic() - began + taken[-1] < seconds):
        before = time.monotonic()
        teacher.raw(data.augmented(index, torch.zeros_like(index)))
        _wait(device)
        taken.append(time.monotonic() - before)
    return statistics.median(taken[len(taken) // 2 :]) / TEACHER_BATCH


def shape_of(given: Settings) -> Shape:
    """The shape of a data set, which is not downloaded for it: CIFAR-100's is known. Raises EdkdError if it is not."""
    source = dict(given.dataset.source)
    if "download" in source:
        source["download"] = False
    try:
        arrays, _ = load_arrays(dataclasses.replace(given, dataset=dataclasses.replace(given.dataset, source=source)))
    except EdkdError as error:
        if source["_target_"] != "edkd.data.sources.cifar100":
            raise EdkdError(f"+dry_run=measure needs the shape of the images: {error}") from error
        only = given.dataset
        arrays = prepare(
            _blank(50_000, 10_000, 32, 100),
            train_per_class=only.train_per_class,
            test_per_class=only.test_per_class,
            validation=only.validation,
            validation_seed=only.validation_seed,
        )
    held = len(arrays.validation) if arrays.validation is not None else 0
    return Shape(len(arrays.train), len(arrays.test) + held, arrays.image_size, arrays.num_classes)


def _blank(train: int, test: int, size: int, classes: int) -> Arrays:
    """Black images, for whose pages no memory is taken."""

    def split(count: int) -> Split:
        return Split(np.zeros((count, size, size, 3), np.uint8), np.arange(count, dtype=np.int64) % classes)

    return Arrays(train=split(train), validation=None, test=split(test), classes=tuple(map(str, range(classes))))


def _data(given: Settings, shape: Shape, images: int, device: torch.device) -> Splits:
    random = np.random.default_rng(0)

    def split(count: int) -> Split:
        pixels = random.integers(0, 256, (count, shape.size, shape.size, 3), np.uint8)
        return Split(pixels, random.integers(0, shape.classes, count))

    tests = EVALUATION_BATCH["cuda"] if device.type == "cuda" else TEACHER_BATCH
    arrays = Arrays(split(images), None, split(tests), classes=tuple(map(str, range(shape.classes))))
    return device_data(arrays, given, device)


def _teacher(given: Settings, shape: Shape, precision: Precision, want_feats: bool) -> OnlineTeacher:
    network = build(given.teacher.model, "teacher.model", num_classes=shape.classes)
    network = to_device(network, given.engine, precision.device)
    return OnlineTeacher(network, want_feats=want_feats, precision=precision)


class _Remembered:
    """A teacher source whose logits [N, K] are all there."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits

    def begin_epoch(self, views: Tensor) -> None:
        """Nothing to prepare."""

    def __call__(self, images: Tensor, index: Tensor, view: Tensor) -> Prediction:
        """The logits of training images `index` [B]."""
        return Prediction(self.logits.index_select(0, index))


def _student_key(kind: Kind) -> Kind:
    """What the cost of a student's own steps depends on: not which teacher it remembers."""
    return kind if kind.mode == "online" else kind._replace(teacher=None)


def _teacher_key(kind: Kind) -> Kind:
    """What the cost of a remembered teacher's forward pass depends on."""
    return kind._replace(student="", mode="remembered")


def _as_teacher(alone: Kind) -> Kind:
    """The key of a network's forward pass when what it costs alone is known."""
    return _teacher_key(alone._replace(teacher=alone.student))


def _first_of(keys: Mapping[str, object], jobs: Sequence[Job]) -> list[Job]:
    """One job of each key."""
    return list({keys[job.run]: job for job in reversed(jobs) if job.run in keys}.values())


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

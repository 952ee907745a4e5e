"""Training from image files: our loader, our step and both together, beside a plain loader: `edkd bench --streaming`.

The images are JPEG files like photographs, which the benchmark makes. The step alone gets one batch in memory again and
again. On a CPU loader and step share the cores, so both together can hardly be faster than one after the other.
"""

import itertools
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from PIL import Image
from torch.utils.data import DataLoader, RandomSampler

from edkd.bench import measure
from edkd.bench.modes import Ours, Way
from edkd.bench.table import Timing
from edkd.bench.turns import in_turns
from edkd.bench.workload import Workload
from edkd.config.schema import Settings
from edkd.console import console
from edkd.data import _torchvision
from edkd.data.base import Epoch, ImageBatch
from edkd.data.files import Streamed
from edkd.data.streaming import ROTATION
from edkd.errors import EdkdError
from edkd.runs.inputs import load_arrays

PAIR = "imagenet_resnet34-imagenet_resnet18"
STEPS = {"cpu": 4, "cuda": 50}  # of one repetition
IMAGES = 256  # files; a longer epoch reads them again
CLASSES = 4
LABELS = {"loader": "(a) our loader", "step": "(b) our step", "both": "(c) both together", "plain": "(d) plain loader"}


def made_data(workers: int) -> list[str]:
    """Overrides for images that the benchmark makes later, with a placeholder for their folder."""
    return ["dataset.name=jpeg", "dataset.root=?", "dataset.image_size=224", f"dataset.workers={workers}"]


def with_images(cells: Sequence[Settings], folder: Path) -> list[Settings]:
    """Make images in this folder and return the cells that read them."""
    make_images(folder)
    sources = [{**cfg.dataset.source, "root": str(folder)} for cfg in cells]
    return [replace(cfg, dataset=replace(cfg.dataset, source=source)) for cfg, source in zip(cells, sources)]


def read(cfg: Settings) -> tuple[Streamed, str]:
    """The images of a configuration, and their description. Raises EdkdError if they are in memory or missing."""
    arrays, _ = load_arrays(cfg)
    if not isinstance(arrays, Streamed):
        raise EdkdError(f"--streaming reads images from files, and {cfg.dataset.key} is in memory")
    kb = sum(Path(path).stat().st_size for path in map(os.fsdecode, arrays.train.paths)) / len(arrays.train) / 1000
    side = arrays.image_size
    return arrays, f"{len(arrays.train)} files of {kb:.0f} kB, cropped to {side}x{side}"


def cut(arrays: Streamed, *, batch: int, steps: int) -> Streamed:
    """An epoch of `steps` whole batches; files are read more than once where there are fewer."""
    return replace(arrays, train=arrays.train.take(np.arange(batch * steps) % len(arrays.train)))


def make_images(root: Path) -> None:
    """Write the images as ROOT/train/<class>/*.jpg, and one for each class into ROOT/test."""
    stream = np.random.default_rng(0)
    for label in range(CLASSES):
        for split, count in (("train", IMAGES // CLASSES), ("test", 1)):
            folder = root / split / str(label)
            folder.mkdir(parents=True)
            for number in range(count):
                photograph(stream).save(folder / f"{number:04}.jpg", quality=90)


def photograph(stream: Generator) -> Image.Image:
    """A random image of about 400x300 pixels, smooth and detailed at once: some 40 kB as JPEG, as a photograph has."""
    width, height = (int(side) for side in stream.integers((360, 270), (440, 330)))
    pixels = stream.normal(128, 8, (height, width, 3))
    for cells, contrast in ((3, 0.5), (12, 0.3), (60, 0.2)):  # patches across the image, from coarse to fine
        patches = Image.fromarray(stream.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        pixels += contrast * (np.asarray(patches.resize((width, height), Image.Resampling.BICUBIC), np.float32) - 128)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


class Modes:
    """The four modes, made once for a pair and a method; each call is an epoch of `work.steps` batches."""

    def __init__(self, cfg: Settings, work: Workload) -> None:
        self.cfg, self.device, self.batch = cfg, work.device, cfg.schedule.batch_size
        self.ours = Ours(Way("streamed", precision=cfg.engine.precision), cfg, work)
        self.files = self.ours.data
        self.files.begin(cfg.seed, 1, self.batch)
        self.held = Held(self.files.next(self.batch), work.steps)
        assert isinstance(work.cut, Streamed)
        self.theirs = plain_loader(work.cut, cfg, self.batch, self.device)

    def loader(self) -> None:
        """Read the images, and put them on the device."""
        for count in self.files.begin(self.cfg.seed, 1, self.batch).counts:
            self.files.next(count)

    def step(self) -> None:
        """Train on the batch in memory."""
        self.ours.step.data = self.held
        self.ours.run()

    def both(self) -> None:
        """Train on images from files."""
        self.ours.step.data = self.files
        self.ours.run()

    def plain(self) -> None:
        """Read as many images by the plain loader, and put them on the device."""
        for images, target in self.theirs:
            images.to(self.device, non_blocking=True), target.to(self.device, non_blocking=True)

    def seconds(self, name: str) -> float:
        """How long a step of the mode of this name takes."""
        self.ours.ready()
        return measure.seconds(getattr(self, name), self.device) / self.held.steps


def plain_loader(files: Streamed, cfg: Settings, batch: int, device: torch.device) -> DataLoader[Any]:
    """The same files, transforms and workers as torchvision's documentation puts them together."""
    v2, datasets = _torchvision.transforms_v2(), _torchvision.load().datasets
    size, rotated = files.image_size, files.augmentation == "rotation"
    crop = [v2.Resize((size, size), antialias=True), v2.RandomRotation(ROTATION)] if rotated else []
    steps = [v2.PILToTensor(), *(crop or [v2.RandomResizedCrop(size, antialias=True)]), v2.RandomHorizontalFlip()]
    steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(cfg.dataset.mean, cfg.dataset.std)]
    images = datasets.ImageFolder(files.train.root, v2.Compose(steps))
    return DataLoader(
        images,
        batch_size=batch,
        sampler=RandomSampler(images, num_samples=len(files.train)),
        num_workers=files.workers,
        pin_memory=device.type == "cuda",
    )


class Held:
    """`TrainData` that takes no time: every batch of an epoch is the same one in memory."""

    on_device = False
    skipped = 0

    def __init__(self, batch: ImageBatch, steps: int) -> None:
        self.batch, self.steps = batch, steps

    def __len__(self) -> int:
        return self.steps * len(self.batch.target)

    def begin(self, seed: int, epoch: int, batch_size: int, rank: int = 0, size: int = 1, done: int = 0) -> Epoch:
        """Begin an epoch."""
        counts = [len(self.batch.target)] * self.steps
        return Epoch(counts, None, counts)

    def next(self, count: int) -> ImageBatch:
        """The batch."""
        return self.batch


def timings(cells: Sequence[Settings], work: Workload, most: int, seconds: float) -> list[Timing]:
    """The timings of each cell's four modes: up to `most` repetitions, in about `seconds` for all cells."""
    timed: list[Timing] = []
    for cfg in cells:
        until = time.monotonic() + seconds / len(cells)
        with console.status(f"{cfg.pair} {cfg.method}, from files"):
            modes = Modes(cfg, work)
            of_cell = [Timing(cfg.pair, cfg.method, name, cfg.schedule.batch_size) for name in LABELS]
            in_turns(of_cell, lambda timing: modes.seconds(timing.mode), most, until)  # noqa: B023
        timed += of_cell
    return timed


def summary(timed: Sequence[Timing]) -> tuple[list[str], list[list[str]]]:
    """Images per second and medians of their ratios within each repetition, as (header, rows); fills in `ratio`."""
    rows = []
    for (pair, method), each in itertools.groupby(timed, lambda timing: (timing.pair, timing.method)):
        loader, step, both, plain = each
        seconds = list(zip(loader.seconds, step.seconds, both.seconds, plain.seconds))
        loader.ratio = statistics.median(d / a for a, _, _, d in seconds)
        both.ratio = statistics.median(max(a, b) / c for a, b, c, _ in seconds)
        in_a_row = statistics.median((a + b) / c for a, b, c, _ in seconds)
        numbers = [f"{timing.images_per_second:.4g}" for timing in (loader, step, both, plain)]
        rows.append([pair, method, *numbers, *(f"{ratio:.2f}" for ratio in (both.ratio, in_a_row, loader.ratio))])
    return ["pair", "method", *LABELS.values(), "(c) / min(a, b)", "(c) / (a) then (b)", "(a) / (d)"], rows

"""A data set as arrays in memory, and how to take parts of it that keep the balance of its classes."""

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from edkd.data import views
from edkd.errors import EdkdError


class UnfitError(ValueError):
    """Arrays that are no data set; its message says what is wrong and what is expected."""


@dataclass(frozen=True, eq=False)
class Split:
    """Images, uint8 [N, H, W, 3] (RGB, 0 to 255), and their labels, int64 [N]. Raises UnfitError for other arrays."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4 or self.images.shape[3] != 3:
            raise UnfitError(f"images are {self.images.dtype} {self.images.shape}, expected uint8 [N, H, W, 3]")
        if self.labels.dtype != np.int64 or self.labels.shape != self.images.shape[:1]:
            raise UnfitError(f"labels are {self.labels.dtype} {self.labels.shape}, expected int64 [{len(self.images)}]")

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: npt.NDArray[np.int64]) -> "Split":
        """The images at `index` (int64 [M]), in that order, as a copy."""
        return Split(self.images[index], self.labels[index])


@dataclass(frozen=True, eq=False)
class Arrays:
    """A whole data set: its splits (square images of one size), and the name of each class.

    Raises UnfitError for splits of different sizes, images that are not square, and labels without a class.
    """

    train: Split
    validation: Split | None
    test: Split
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        size = self.image_size
        for name, split in self._splits():
            if split.images.shape[1:3] != (size, size):
                raise UnfitError(f"{name} images are {split.images.shape[1:3]}, expected {(size, size)}")
            if len(split) and not 0 <= split.labels.min() <= split.labels.max() < self.num_classes:
                raise UnfitError(f"{name} labels leave the range of the {self.num_classes} classes")

    def _splits(self) -> list[tuple[str, Split]]:
        named = [("train", self.train), ("validation", self.validation), ("test", self.test)]
        return [(name, split) for name, split in named if split is not None]

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    @property
    def image_size(self) -> int:
        """The side of an image, in pixels."""
        return self.train.images.shape[1]

    def fingerprint(self) -> str:
        """SHA-256, in hex, over the name, shape and bytes of every split: equal only for the same pixels and labels."""
        digest = hashlib.sha256()
        for name, split in self._splits():
            digest.update(f"{name} {split.images.shape}\n".encode())
            digest.update(np.ascontiguousarray(split.images).data)
            digest.update(np.ascontiguousarray(split.labels, dtype="<i8").data)
        return digest.hexdigest()


def _ranks(labels: npt.NDArray[np.int64], keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """The place of each image among those of its class when sorted by `keys`: int64 [N], from 0."""
    by_class = np.lexsort((keys, labels))
    first = np.concatenate(([0], np.cumsum(np.bincount(labels))[:-1]))
    ranks = np.empty(len(labels), dtype=np.int64)
    ranks[by_class] = np.arange(len(labels)) - first[labels[by_class]]
    return ranks


def subset(split: Split, per_class: int) -> Split:
    """`per_class` images of each class, always the same ones, interleaved by class.

    They are the first of a fixed shuffle, because the first in file order would be a biased choice.
    A smaller subset is the beginning of a larger one. Raises EdkdError if a class has fewer images.
    """
    counts = np.bincount(split.labels)
    if not 1 <= per_class <= counts.min():
        raise EdkdError(
            f"{per_class} images per class asked for; allowed: 1 to {counts.min()}, "
            f"the size of the smallest class ({counts.argmin()})"
        )
    ranks = _ranks(split.labels, views.draw(len(split), seed=0, stream=views.SUBSET, counter=0))
    return split.take(np.lexsort((split.labels, ranks))[: per_class * len(counts)])


def hold_out(split: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """Divide `split` into (rest, held), with `fraction` of each class held, rounded half up; both keep its order.

    Raises EdkdError unless both parts get at least one image of every class.
    """
    if not 0 < fraction < 1:
        raise EdkdError(f"the fraction to hold out is {fraction}; allowed: more than 0 and less than 1")
    counts = np.bincount(split.labels)
    held_counts = np.floor(counts * fraction + 0.5).astype(np.int64)
    poor = np.flatnonzero((held_counts < 1) | (held_counts >= counts))
    if poor.size:
        raise EdkdError(
            f"holding out {fraction} of the {counts[poor[0]]} images of class {poor[0]} leaves one part without any; "
            "choose another fraction, or keep more images per class"
        )
    ranks = _ranks(split.labels, views.draw(len(split), seed=seed, stream=views.HOLD_OUT, counter=0))
    held = ranks < held_counts[split.labels]
    return split.take(np.flatnonzero(~held)), split.take(np.flatnonzero(held))


def prepare(
    arrays: Arrays,
    *,
    train_per_class: int | None,
    test_per_class: int | None,
    validation: float,
    validation_seed: int,
) -> Arrays:
    """The part of a data set that a run uses: first the subsets (None: all images), then the held-out part of train.

    `validation` is the fraction of the training images to hold out, 0.0 for none. Raises EdkdError as `subset` and
    `hold_out` do, naming the option.
    """
    train, test, held = arrays.train, arrays.test, arrays.validation
    try:
        option = "dataset.train_per_class"
        if train_per_class is not None:
            train = subset(train, train_per_class)
        option = "dataset.test_per_class"
        if test_per_class is not None:
            test = subset(test, test_per_class)
        option = "dataset.validation"
        if validation != 0:
            train, held = hold_out(train, validation, validation_seed)
    except EdkdError as error:
        raise EdkdError(f"{option}: {error}") from None
    return replace(arrays, train=train, validation=held, test=test)

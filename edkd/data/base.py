"""Where batches come from: what training and evaluation ask of a data set, resident on the device or streamed."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from edkd.errors import EdkdError


@dataclass(frozen=True, slots=True)
class ImageBatch:
    """Images of one step, on the device."""

    images: Tensor
    """float32 [B, 3, H, W], normalised."""
    target: Tensor
    """int64 [B], the class labels."""
    index: Tensor
    """int64 [B], each image's position in the training set."""
    view: Tensor | None
    """int64 [B], what was done to each image, where that is an integer (`edkd.data.views`)."""
    strong: Tensor | None = None
    """float32 [B, 3, H, W], the strong view of the same images (`edkd.data.strong`), where one was asked for."""


class Epoch(NamedTuple):
    """What an epoch will bring."""

    counts: list[int]
    """The number of images of each batch, in this process."""
    views: Tensor | None
    """int64 [N], the view in which each image of the training set will be seen, where views are integers."""
    whole: list[int]
    """The number of images of each batch, in all processes together."""


def share(images: int, batch_size: int, rank: int, size: int) -> tuple[list[range], list[int]]:
    """The places in an epoch's order that are process `rank`'s part of each batch, and each batch's whole size.

    A batch is parted into `size` pieces that follow each other and differ by one image at most. Raises EdkdError for a
    batch that leaves a process without an image.
    """
    firsts = range(0, images, batch_size)
    whole = [min(batch_size, images - first) for first in firsts]
    if whole[-1] < size:
        raise EdkdError(
            f"the last batch of {images} images has {whole[-1]}, fewer than engine.devices={size}: change "
            f"schedule.batch_size (now {batch_size})"
        )
    places = [
        range(first + count * rank // size, first + count * (rank + 1) // size) for first, count in zip(firsts, whole)
    ]
    return places, whole


class TrainData(Protocol):
    """Training images, batch by batch.

    `begin` and `next` rather than one generator: on a GPU `next` of resident data is part of the captured step, which
    is replayed without a word from Python. What an epoch draws is a pure function of (seed, epoch); of `size` processes
    the one of `rank` gets its part of each batch (`share`).
    """

    on_device: bool
    """Whether `next` neither reads from the host nor makes tensors of host data: a CUDA graph can then capture it."""
    skipped: int
    """How many images of this epoch were left out so far, for they could not be read; their batches are smaller."""

    def __len__(self) -> int:
        """The number of images."""

    def begin(self, seed: int, epoch: int, batch_size: int, rank: int = 0, size: int = 1, done: int = 0) -> Epoch:
        """Begin an epoch, of which `done` batches were trained on before: `next` gives the one after them."""

    def next(self, count: int) -> ImageBatch:
        """The next batch of the epoch, of so many images."""


class EvaluationData(Protocol):
    """Images as they are, for measuring accuracy."""

    def __len__(self) -> int:
        """The number of images."""

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All images in their order with their labels: float32 [B, 3, H, W] and int64 [B], at most `size` at a time."""

"""The interface from which training and evaluation get batches, resident on the device or streamed."""

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
    strong: Tensor | None = None
    """float32 [B, 3, H, W], the strong view of the same images (`edkd.data.strong`), if requested."""


class Epoch(NamedTuple):
    """The plan of an epoch."""

    counts: list[int]
    """The number of images of each batch, in this process."""
    views: Tensor | None
    """int64 [N], the view of each image of the training set; None where views are not integers."""
    whole: list[int]
    """The number of images of each batch, in all processes together."""


def share(images: int, batch_size: int, rank: int, size: int) -> tuple[list[range], list[int]]:
    """Process `rank`'s part of each batch, as places in the epoch's order, and each batch's whole size.

    A batch is divided into `size` contiguous parts that differ by one image at most. Raises EdkdError for a batch that
    leaves a process without an image.
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

    There are `begin` and `next` instead of one generator, because on a GPU `next` of resident data is part of the
    captured step, which is replayed without Python. What an epoch draws is a pure function of (seed, epoch). With
    `size` processes, process `rank` gets its part of each batch (`share`).
    """

    on_device: bool
    """Whether `next` neither reads from the host nor makes tensors of host data: a CUDA graph can then capture it."""
    skipped: int
    """The number of images that this epoch has left out because they could not be read; their batches are smaller."""

    def __len__(self) -> int:
        """The number of images."""

    def begin(self, seed: int, epoch: int, batch_size: int, rank: int = 0, size: int = 1, done: int = 0) -> Epoch:
        """Begin an epoch after `done` batches that are trained already: `next` returns the batch after them."""

    def next(self, count: int) -> ImageBatch:
        """The next batch of the epoch: `count` images, or fewer if some could not be read."""


class EvaluationData(Protocol):
    """Images as they are, for measuring accuracy."""

    @property
    def skipped(self) -> int:
        """The number of images that the last `batches` left out because they could not be read."""

    def __len__(self) -> int:
        """The number of images."""

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All images in their order with their labels: float32 [B, 3, H, W] and int64 [B], at most `size` at a time."""

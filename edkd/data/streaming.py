"""Images that stay in files: read, cropped and flipped by worker processes, normalised on the device.

What happens to an image is a pure function of (seed, epoch, image): the transforms' random numbers begin anew for each
image from a number that these three determine, in whichever worker it is read. The number of workers changes nothing.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from edkd.data import _torchvision, views
from edkd.data.base import Epoch, ImageBatch
from edkd.data.files import Files, read_image
from edkd.data.views import epoch_order
from edkd.errors import EdkdError

RESIZE = 256 / 224  # evaluation: the shorter side is this much longer than the central square that is cropped


class _Images(Dataset[tuple[Tensor, int, int]]):
    """(image uint8 [3, H, W], label, index) by (index, seed of its transform)."""

    def __init__(self, files: Files, transform: Any) -> None:
        self.files, self.transform = files, transform

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int, int]:
        index, seed = key
        path, label = self.files.samples[index]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.transform(read_image(path)), label, index


class StreamedData:
    """One split of streamed images, as `TrainData` and `EvaluationData`.

    mean, std: per channel, for pixels scaled to [0, 1]. Training images are cropped at random to between 8 and 100 % of
    their area, resized to `size` and flipped with probability one half; others are resized and cropped at the centre.
    """

    on_device = False

    def __init__(
        self,
        files: Files,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        size: int,
        workers: int,
        device: torch.device,
        channels_last: bool,
    ) -> None:
        self.files, self.size, self.workers, self.device = files, size, workers, device
        self._mean, self._std = (torch.tensor(each, device=device)[:, None, None] for each in (mean, std))
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self._epoch: Iterator[Any] = iter(())

    def __len__(self) -> int:
        return len(self.files)

    def begin(self, seed: int, epoch: int, batch_size: int) -> Epoch:
        """Begin an epoch, from its first batch: order and crops depend on (seed, epoch) only."""
        v2 = _torchvision.transforms_v2()
        transform = [v2.PILToTensor(), v2.RandomResizedCrop(self.size, antialias=True), v2.RandomHorizontalFlip()]
        draws = views.draw(len(self), seed=seed, stream=views.TRANSFORMS, counter=epoch)
        order = epoch_order(seed, epoch, len(self)).tolist()
        keys = [(index, int(draws[index])) for index in order]
        batches = [keys[first : first + batch_size] for first in range(0, len(keys), batch_size)]
        self._epoch = self._load(v2.Compose(transform), batches)
        return Epoch([len(batch) for batch in batches], None)

    def next(self, count: int) -> ImageBatch:
        """The next batch of the epoch."""
        images, target, index = next(self._epoch)
        return ImageBatch(images, target, index, None)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All images in their order, resized and cropped at the centre, with their labels; at most `size` at a time."""
        v2 = _torchvision.transforms_v2()
        shorter = round(self.size * RESIZE)
        transform = [v2.PILToTensor(), v2.Resize(shorter, antialias=True), v2.CenterCrop(self.size)]
        keys = [[(index, 0) for index in range(i, min(i + size, len(self)))] for i in range(0, len(self), size)]
        for images, target, _ in self._load(v2.Compose(transform), keys):
            yield images, target

    def _load(self, transform: Any, batches: list[list[tuple[int, int]]]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Batches on the device, read by workers, in the order given."""
        loader = DataLoader(
            _Images(self.files, transform),
            batch_sampler=batches,
            num_workers=self.workers,
            generator=torch.Generator(),  # else the loader draws from the generator that networks draw from
            pin_memory=self.device.type == "cuda",
        )
        try:
            for images, target, index in loader:
                pixels = images.to(self.device, non_blocking=True).to(memory_format=self._layout)
                normalised = (pixels.float() / 255 - self._mean) / self._std
                yield normalised, target.to(self.device), index.to(self.device)
        except EdkdError as error:  # a worker's error comes with its traceback as text
            raise EdkdError(str(error).rpartition("EdkdError: ")[2].strip()) from None

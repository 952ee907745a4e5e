"""Images that stay in files: read, cropped and flipped by worker processes, normalised on the device.

What happens to an image is a pure function of (seed, epoch, image): every worker seeds the transforms' random numbers
anew for each image, with a number that these three determine. The number of workers changes nothing.
"""

import contextlib
import logging
import multiprocessing
import signal
import sys
from collections.abc import Iterator, Sequence
from multiprocessing.util import Finalize
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from edkd.data import _torchvision, views
from edkd.data.base import Epoch, ImageBatch, share
from edkd.data.files import Augmentation, Broken, Files, read_image
from edkd.errors import EdkdError

LOG = logging.getLogger("edkd")
RESIZE = 256 / 224  # evaluation: the shorter side is this much longer than the central square that is cropped
ROTATION = 20  # degrees
_Item = tuple[Tensor, int, int]


class _Images(Dataset[_Item | str]):
    """(image uint8 [3, H, W], label, index) by (index, seed of its transform).

    With `skip`, an image that cannot be read gives its error message instead.
    """

    def __init__(self, files: Files, transform: Any, skip: bool) -> None:
        self.files, self.transform, self.skip = files, transform, skip

    def __getitem__(self, key: tuple[int, int]) -> _Item | str:
        index, seed = key
        path, label = self.files[index]
        try:
            image = read_image(path)
        except EdkdError as error:
            if not self.skip:
                raise
            return str(error)
        # By hand: torch.manual_seed and fork_rng also handle every GPU, which is slow beside reading an image.
        state = torch.default_generator.get_state()
        torch.default_generator.manual_seed(seed)
        transformed = self.transform(image)
        torch.default_generator.set_state(state)
        return transformed, label, index


def _collate(items: list[_Item | str]) -> tuple[Any, list[str]]:
    """A batch of the images that were read, and the error messages of the others."""
    read, broken = (
        [each for each in items if not isinstance(each, str)],
        [each for each in items if isinstance(each, str)],
    )
    if not read:
        raise EdkdError(f"none of the {len(items)} images of a batch can be read; the first: {broken[0]}")
    return default_collate(read), broken


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Keep SIGTERM and Ctrl-C from the workers that the block starts, and from this process until the block's end.

    SLURM and shells send them to all processes. The main process would fail if its workers ended before it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _kill_workers() -> None:
    for each in multiprocessing.active_children():
        if each.daemon:
            each.kill()


# As a process ends, multiprocessing sends SIGTERM to its workers and waits for them; these heed SIGKILL alone.
Finalize(None, _kill_workers, exitpriority=0)


@contextlib.contextmanager
def naming_lost_workers() -> Iterator[None]:
    """Turn PyTorch's error for a worker that was killed, which it may raise at any point, into EdkdError."""
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise EdkdError(
            f"{str(error).strip(' .')}; is memory or /dev/shm full? Fewer dataset.workers need less of both; "
            "the same command continues a run"
        ) from error


class StreamedData:
    """One split of streamed images, as `TrainData` and `EvaluationData`.

    mean, std: per channel, for pixels scaled to [0, 1]. `flip`: training images are flipped with probability one half,
    after their `augmentation`. `resized_crop` crops them at random to between 8 and 100 % of their area and resizes
    them to `size`; in evaluation they are resized and cropped at the centre. `rotation` resizes them, if their size
    differs, and rotates them by up to 20 degrees, black outside; in evaluation they are not rotated.
    """

    on_device = False
    skipped = 0

    def __init__(
        self,
        files: Files,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        size: int,
        workers: int,
        augmentation: Augmentation,
        flip: bool,
        broken: Broken,
        device: torch.device,
        channels_last: bool,
    ) -> None:
        self.augmentation, self.flip, self.skip = augmentation, flip, broken == "skip"
        self._named: set[str] = set()  # error messages of broken images, already logged
        self.files, self.size, self.workers, self.device = files, size, workers, device
        self._mean, self._std = (torch.tensor(each, device=device)[:, None, None] for each in (mean, std))
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self._epoch: Iterator[Any] = iter(())

    def __len__(self) -> int:
        return len(self.files)

    def begin(self, seed: int, epoch: int, batch_size: int, rank: int = 0, size: int = 1, done: int = 0) -> Epoch:
        """Begin an epoch after `done` batches, which are not read: order and crops depend on (seed, epoch) only."""
        self.skipped = 0
        draws = views.draw(len(self), seed=seed, stream=views.TRANSFORMS, counter=epoch)
        order = views.epoch_order(seed, epoch, len(self)).tolist()
        places, whole = share(len(self), batch_size, rank, size)
        batches = [[(order[place], int(draws[order[place]])) for place in each] for each in places]
        self._epoch = self._load(self._transform(training=True), batches[done:])
        return Epoch([len(batch) for batch in batches], None, whole)

    def next(self, count: int) -> ImageBatch:
        """The next batch of the epoch."""
        images, target, index = next(self._epoch)
        return ImageBatch(images, target, index)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All images in their order, as they are evaluated, with their labels; at most `size` at a time."""
        self.skipped = 0
        keys = [[(index, 0) for index in range(i, min(i + size, len(self)))] for i in range(0, len(self), size)]
        for images, target, _ in self._load(self._transform(training=False), keys):
            yield images, target

    def _transform(self, *, training: bool) -> Any:
        """From Pillow's image to uint8 [3, size, size]."""
        v2 = _torchvision.transforms_v2()
        shorter = round(self.size * RESIZE)
        steps = [v2.PILToTensor()]
        if self.augmentation == "rotation":
            steps.append(v2.Resize((self.size, self.size), antialias=True))
            steps += [v2.RandomRotation(ROTATION)] if training else []
        elif training:
            steps.append(v2.RandomResizedCrop(self.size, antialias=True))
        else:
            steps += [v2.Resize(shorter, antialias=True), v2.CenterCrop(self.size)]
        return v2.Compose([*steps, v2.RandomHorizontalFlip()] if training and self.flip else steps)

    def _load(self, transform: Any, batches: list[list[tuple[int, int]]]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Batches on the device, read by workers, in the order given."""
        loader = DataLoader(
            _Images(self.files, transform, self.skip),
            collate_fn=_collate,
            batch_sampler=batches,
            num_workers=self.workers,
            generator=torch.Generator(),  # else the loader draws from the generator that networks draw from
            # By default, workers of a process that was itself spawned, or started by loky, would be started likewise.
            multiprocessing_context="fork" if self.workers and sys.platform == "linux" else None,
            pin_memory=self.device.type == "cuda",
        )
        try:
            with naming_lost_workers():
                with _signals_held():
                    read = iter(loader)
                for number in range(len(batches)):
                    (images, target, index), broken = next(read)
                    if number == len(batches) - 1:
                        next(read, None)  # ends the workers here: Python ignores a Ctrl-C where it deletes `read`
                    self._note(broken)
                    pixels = images.to(self.device, non_blocking=True).float()
                    # In place, and channels last only afterwards: faster on a CPU.
                    normalised = pixels.div_(255).sub_(self._mean).div_(self._std).to(memory_format=self._layout)
                    yield normalised, target.to(self.device), index.to(self.device)
        except EdkdError as error:  # a worker's error comes with its traceback as text
            raise EdkdError(str(error).rpartition("EdkdError: ")[2].strip()) from None

    def _note(self, broken: list[str]) -> None:
        """Count images that were left out, and log each of them once."""
        self.skipped += len(broken)
        for line in broken:
            if line not in self._named:
                self._named.add(line)
                LOG.warning("skipped: %s", line)

"""Batches by indexing: a split lives on the device as padded uint8 images; a batch is a gather and three operations.

Every result is bit-identical to torchvision's pad → crop → horizontal flip → ToTensor → Normalize.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from edkd.data import strong, views
from edkd.data.arrays import Split
from edkd.data.base import Epoch, ImageBatch, share


class ResidentData:
    """One split, resident on `device`, from which (indices, views) become normalised images.

    mean, std: per channel (RGB), for pixels scaled to [0, 1]. padding: pixels on each side, black before normalising.
    flip: whether views include horizontal flips. channels_last: memory format of the images it returns.
    strong_view: whether a batch also holds a strong view of its images.

    Only `begin` waits for the device or makes a tensor from host data, so a CUDA graph can capture every other
    method; index tensors must lie on `device`.
    """

    # A crop is gathered as whole rows of pixels, by one index_select over overlapping windows of the padded images:
    # 16 µs for 64 CIFAR images on one core, where indexing each pixel takes 190 (index_select) or 600 (advanced).
    # The images are stored in the memory format of the output, so nothing is transposed.

    on_device = True
    skipped = 0

    def __init__(
        self,
        split: Split,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        padding: int,
        flip: bool,
        device: torch.device,
        channels_last: bool,
        strong_view: bool = False,
    ) -> None:
        self.padding = padding
        self.flip = flip
        self._channels_last = channels_last
        count, height, width, channels = split.images.shape
        self._shape = (height, width, channels) if channels_last else (channels, height, width)

        # A "pixel" is what moves with one step to the right: three values in channels_last, one otherwise.
        planes, depth = (1, channels) if channels_last else (channels, 1)
        rows, self._row = height + 2 * padding, width + 2 * padding
        padded = torch.zeros(count, planes, rows, self._row, depth, dtype=torch.uint8)
        images = torch.from_numpy(split.images)
        padded[:, :, padding : padding + height, padding : padding + width] = (
            images.unsqueeze(1) if channels_last else images.permute(0, 3, 1, 2).unsqueeze(-1)
        )
        pixels = padded.to(device).view(-1, depth)
        self._windows = pixels.as_strided((max(len(pixels) - width + 1, 0), width * depth), (depth, 1))
        self._image = planes * rows * self._row
        plane_start = torch.arange(planes, device=device)[:, None] * (rows * self._row)
        self._row_starts = (plane_start + torch.arange(height, device=device) * self._row).flatten()

        # torchvision divides by 255, subtracts and divides in fp32. A divisor held as a tensor on the device keeps CUDA
        # from multiplying with its reciprocal, which differs in the last bit; one value for each value of an image
        # keeps the CPU's inner loop long.
        self._scale = torch.tensor(255.0, device=device)
        self._mean = self._spread(mean, device)
        self._std = self._spread(std, device)
        self._labels = torch.from_numpy(split.labels).to(device)

        # These keep their memory, because a captured step reads it.
        self.order = torch.zeros(len(split.labels), dtype=torch.int64, device=device)
        self.views = torch.zeros_like(self.order)  # by place in the order
        self.strong_draws = torch.zeros(len(split.labels) if strong_view else 0, strong.DRAWS, device=device)
        self.position = torch.zeros((), dtype=torch.int64, device=device)
        self._offsets = torch.zeros(0, dtype=torch.int64, device=device)

    def _spread(self, values: Sequence[float], device: torch.device) -> Tensor:
        per_channel = torch.tensor(values, dtype=torch.float32)
        if not self._channels_last:
            per_channel = per_channel[:, None, None]
        return per_channel.expand(self._shape).flatten().to(device)

    def __len__(self) -> int:
        return len(self._labels)

    def begin(self, seed: int, epoch: int, batch_size: int, rank: int = 0, size: int = 1, done: int = 0) -> Epoch:
        """Begin an epoch after `done` batches: its permutation and images' views depend on (seed, epoch) only."""
        count, device = len(self), self.order.device
        by_image = views.epoch_views(seed, epoch, count, views.n_views(self.padding, self.flip))
        order = torch.from_numpy(views.epoch_order(seed, epoch, count)).to(device)
        places, whole = share(count, batch_size, rank, size)
        if size > 1:
            order = order[torch.tensor([place for each in places for place in each], device=device)]
        seen = torch.from_numpy(by_image).to(device)
        self.order[: len(order)].copy_(order)
        self.views[: len(order)].copy_(seen[order])
        if len(self.strong_draws):
            draws = torch.from_numpy(strong.epoch_draws(seed, epoch, count))
            self.strong_draws[: len(order)].copy_(draws.to(device)[order])
        self.position.fill_(sum(map(len, places[:done])))
        if len(self._offsets) != batch_size:
            self._offsets = torch.arange(batch_size, device=device)
        return Epoch([len(each) for each in places], seen, whole)

    def next(self, count: int) -> ImageBatch:
        """The next batch of the epoch; a smaller last batch is not dropped."""
        where = self.position + self._offsets[:count]
        index, view = self.order.index_select(0, where), self.views.index_select(0, where)
        self.position.add_(count)
        distorted = self._strong(index, self.strong_draws.index_select(0, where)) if len(self.strong_draws) else None
        return ImageBatch(self.augmented(index, view), self.targets(index), index, distorted)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All images in their order, as they are, with their labels; at most `size` at a time."""
        for first in range(0, len(self), size):
            index = torch.arange(first, min(first + size, len(self)), device=self.order.device)
            yield self.plain(index), self.targets(index)

    def targets(self, index: Tensor) -> Tensor:
        """The labels of the images `index` (int64 [B]): int64 [B]."""
        return self._labels.index_select(0, index)

    def plain(self, index: Tensor) -> Tensor:
        """The images `index` (int64 [B]) as they are, normalised: float32 [B, 3, H, W]."""
        return self._normalise(self._crop(index * self._image + self.padding * (self._row + 1)))

    def augmented(self, index: Tensor, view: Tensor) -> Tensor:
        """The images `index`, each in its `view` (both int64 [B]), normalised: float32 [B, 3, H, W]."""
        return self._normalise(self._view(index, view))

    def _strong(self, index: Tensor, draws: Tensor) -> Tensor:
        """The images `index` (int64 [B]) in the strong views of their `draws`, normalised: float32 [B, 3, H, W]."""
        view = (draws[:, 0] * views.n_views(self.padding, self.flip)).long()
        crops = self._view(index, view)
        if not self._channels_last:
            return self._normalise(strong.distort(crops, draws))
        return self._normalise(strong.distort(crops.permute(0, 3, 1, 2), draws).permute(0, 2, 3, 1).contiguous())

    def _view(self, index: Tensor, view: Tensor) -> Tensor:
        """The images `index`, each in its `view` (both int64 [B]), as they are stored: uint8 [B, *shape]."""
        dy, dx, flipped = views.decode(view, self.padding, self.flip)
        crops = self._crop(index * self._image + dy * self._row + dx)
        if self.flip:
            # Both orientations, then a choice of whole images: less than half the cost of torch.where on the CPU.
            both = torch.cat([crops, crops.flip(2 if self._channels_last else 3)])
            crops = both.index_select(0, flipped * len(index) + torch.arange(len(index), device=index.device))
        return crops

    def _crop(self, corner: Tensor) -> Tensor:
        """The crops whose top left pixels are `corner` (int64 [B], positions in `_windows`): uint8 [B, *shape]."""
        starts = corner[:, None] + self._row_starts
        return self._windows.index_select(0, starts.flatten()).view(-1, *self._shape)

    def _normalise(self, crops: Tensor) -> Tensor:
        values = crops.flatten(1).to(torch.float32).div_(self._scale).sub_(self._mean).div_(self._std)
        images = values.view(-1, *self._shape)
        return images.permute(0, 3, 1, 2) if self._channels_last else images

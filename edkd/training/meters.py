"""Sums over the images of an epoch, on the device until they are read."""

import torch
from torch import Tensor

from edkd.training import distributed


class Meter:
    """Sums over images, kept on the device in float64 until `read`."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.sums: dict[str, Tensor] = {}

    def add(self, count: int, means: dict[str, Tensor], hits: dict[str, Tensor]) -> None:
        """Add a batch of `count` images with these means (0-dim) and these hits (bool [count]).

        Hits are counted, so that epochs with equally many of them have equal percentages to the last digit.
        """
        for name, mean in means.items():
            self._sum(name).add_(mean.detach(), alpha=count)
        for name, hit in hits.items():
            self._sum(name).add_(hit.sum(), alpha=100)

    def _sum(self, name: str) -> Tensor:
        if name not in self.sums:
            self.sums[name] = torch.zeros((), dtype=torch.float64, device=self.device)
        return self.sums[name]

    def read(self, images: int) -> dict[str, float]:
        """The means and percentages over `images` images; the only synchronisation with the device."""
        stacked = distributed.add(torch.stack(list(self.sums.values()))) / images
        return dict(zip(self.sums, stacked.tolist(), strict=True))

    def reset(self) -> None:
        """Set the sums to zero, in the same tensors."""
        for total in self.sums.values():
            total.zero_()


class ClassMeter:
    """Sums over the images of each class, kept on the device in float64 until `read`."""

    DECIMALS = 3  # in the journal, which has a number for each class in every epoch

    def __init__(self) -> None:
        self.names: list[str] = []
        self.sums: Tensor | None = None  # [K, names + 1]; the last column counts the images

    def add(self, target: Tensor, classes: int, values: dict[str, Tensor]) -> None:
        """Add a batch with these targets (int64 [B], below `classes`) and these values (each [B])."""
        if self.sums is None:
            self.names = list(values)
            self.sums = torch.zeros(classes, len(values) + 1, dtype=torch.float64, device=target.device)
        columns = torch.stack([*(each.double() for each in values.values()), torch.ones_like(target).double()], 1)
        of_class = torch.arange(classes, device=target.device)[:, None] == target  # one_hot reads them on a CPU
        self.sums += of_class.double() @ columns  # in a fixed order

    def read(self) -> dict[str, list[float]]:
        """The mean of each class; NaN for a class without images."""
        if self.sums is None:
            return {}
        sums = distributed.add(self.sums.clone())
        means = (sums[:, :-1] / sums[:, -1:]).T.tolist()
        return {name: [round(each, self.DECIMALS) for each in row] for name, row in zip(self.names, means, strict=True)}

    def reset(self) -> None:
        """Set the sums to zero, in the same tensor."""
        if self.sums is not None:
            self.sums.zero_()

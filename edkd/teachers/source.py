"""How networks are run: their precision, and the frozen teacher as the source of a student's targets."""

import contextlib
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from edkd.models.base import Prediction

TEACHER_BATCH = 64  # images


class TeacherSource(Protocol):
    """Gives the frozen teacher's prediction for a batch, either computed or read from a cache."""

    def begin_epoch(self, views: Tensor | None) -> None:
        """Prepare for an epoch in which training image i is seen as `views[i]`, int64 [N]."""

    def __call__(self, images: Tensor, index: Tensor) -> Prediction:
        """Predict for `images` [B, 3, H, W], the views of this epoch of training images `index` [B]."""

    def uncached(self, images: Tensor) -> Prediction:
        """Predict for images [B, 3, H, W] that are no view of a training image, by the network itself."""


@dataclass(frozen=True)
class Precision:
    """Compute precision of networks; losses, weights and optimiser state are always fp32."""

    name: str
    device: torch.device

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The context that forward passes run in."""
        if self.name == "bf16":
            # Each weight is used once in a forward pass, and a CUDA graph must not read casts made outside of it.
            return torch.autocast(self.device.type, dtype=torch.bfloat16, cache_enabled=False)
        return contextlib.nullcontext()


class OnlineTeacher:
    """The teacher network, run on every batch: eval mode, no gradient."""

    def __init__(self, network: nn.Module, *, want_feats: bool, precision: Precision) -> None:
        self.network = network.eval().requires_grad_(False)
        self.want_feats = want_feats
        self.precision = precision

    def begin_epoch(self, views: Tensor | None) -> None:
        """Nothing to prepare."""

    def __call__(self, images: Tensor, index: Tensor) -> Prediction:
        """Predict for a batch of images [B, 3, H, W]."""
        return self.uncached(images)

    def uncached(self, images: Tensor) -> Prediction:
        """Predict for a batch of images [B, 3, H, W]."""
        return in_fp32(self.raw(images))

    def raw(self, images: Tensor) -> Prediction:
        """Predict in the precision in which the network computes.

        The network gets batches of one size, the last one filled up. Kernels are chosen by batch size, so one size
        keeps an image's logits bit-identical whatever the other images are.
        """
        parts = [self._fixed(images[start : start + TEACHER_BATCH]) for start in range(0, len(images), TEACHER_BATCH)]
        return parts[0] if len(parts) == 1 else Prediction.join(parts)

    def _fixed(self, images: Tensor) -> Prediction:
        count = len(images)
        if count < TEACHER_BATCH:
            images = images[torch.arange(TEACHER_BATCH, device=images.device) % count]
        with torch.no_grad(), self.precision.autocast():
            made: Prediction = self.network(images, want_feats=self.want_feats)
        return made if count == TEACHER_BATCH else made.map(lambda tensor: tensor[:count])


def in_fp32(prediction: Prediction) -> Prediction:
    """A prediction made under autocast, cast to fp32 for the losses and modules of methods."""
    return prediction.map(Tensor.float)

"""How networks are run: their precision, and the frozen teacher as the source of what a student is taught."""

import contextlib
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from edkd.models.base import Prediction

TEACHER_BATCH = 64  # images


class TeacherSource(Protocol):
    """Gives the frozen teacher's prediction for a batch; whether it computes or remembers is its own affair."""

    def begin_epoch(self, views: Tensor | None) -> None:
        """Prepare for an epoch in which training image i is seen as `views[i]`, int64 [N]."""

    def __call__(self, images: Tensor, index: Tensor, view: Tensor | None) -> Prediction:
        """Predict for `images` [B, 3, H, W], which are `view` [B] of training images `index` [B]."""


@dataclass(frozen=True)
class Precision:
    """Compute precision of networks; losses, weights and optimiser state are fp32 whatever it is."""

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

    def __call__(self, images: Tensor, index: Tensor, view: Tensor | None) -> Prediction:
        """Predict for a batch of images [B, 3, H, W]."""
        return in_fp32(self.raw(images))

    def raw(self, images: Tensor) -> Prediction:
        """The same in the precision in which the network computes.

        The network sees batches of one size, the last one filled up: kernels are chosen by the size of a batch, and
        an image's logits are the same bits whatever is around it only among batches of one size.
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
    """A prediction made under autocast as the methods get it: losses and their own modules are fp32."""
    return prediction.map(Tensor.float)

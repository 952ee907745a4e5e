"""The floor of a step: the student's own convolutions and matrix products, at the best rate this device shows."""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from edkd.bench.measure import seconds
from edkd.config.instantiate import build
from edkd.config.schema import Settings

TRIES = 5
SIZES = {
    "cpu": (2048, 64, 128),
    "cuda": (8192, 256, 256),
}  # side of the product; images and channels of the convolution


def operations(cfg: Settings, *, batch: int, classes: int, size: int) -> dict[str, float]:
    """Floating-point operations of the student's forward and backward pass: {"convolution", "product"}.

    Counted on the meta device, so nothing is computed. Batch norms, activations, losses and the optimiser are left out:
    they are what a perfect implementation could hide.
    """
    with torch.device("meta"):
        network = build(cfg.student.model, "student.model", num_classes=classes).train()
        images = torch.empty(batch, 3, size, size)
    with FlopCounterMode(display=False) as counter:
        network(images, want_feats=False).logits.sum().backward()
    counts: dict[Any, int] = counter.get_flop_counts()["Global"]
    convolution = sum(count for operator, count in counts.items() if "convolution" in str(operator))
    return {"convolution": float(convolution), "product": float(sum(counts.values()) - convolution)}


@functools.cache
def rates(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Floating-point operations a second of a large 3x3 convolution and a large matrix product, the best of a few."""
    side, images, channels = SIZES[device.type]
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    x = torch.randn(images, channels, 32, 32, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    weight = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    actions = {
        "convolution": (2.0 * images * 32 * 32 * channels * channels * 9, lambda: F.conv2d(x, weight, padding=1)),
        "product": (2.0 * side**3, lambda: a @ b),
    }
    with torch.no_grad():
        return {
            name: count / min(seconds(action, device) for _ in range(TRIES))
            for name, (count, action) in actions.items()
        }


def milliseconds(counts: dict[str, float], rate: dict[str, float]) -> float:
    """The least time for some operations at these rates."""
    return 1000 * sum(count / rate[name] for name, count in counts.items())

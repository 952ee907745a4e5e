"""The floor of a step: the student's own convolutions and matrix products, at the best rate this device shows."""

import functools

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from edkd.bench.measure import seconds
from edkd.config.schema import Settings, build

TRIES = 5
SIZES = {"cpu": (2048, 64, 128), "cuda": (8192, 256, 256)}  # side of the product; images, channels of the convolution


def milliseconds(counts: dict[str, float], device: torch.device, dtype: torch.dtype) -> float:
    """The least time for these operations on a device in this precision."""
    best = rates(device, dtype)
    return 1000 * sum(count / best[name] for name, count in counts.items())


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
    counts = counter.get_flop_counts()["Global"]
    convolution = float(sum(count for operator, count in counts.items() if "convolution" in str(operator)))
    return {"convolution": convolution, "product": sum(counts.values()) - convolution}


@functools.cache
def rates(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Floating-point operations a second of a large 3x3 convolution and a large matrix product, the best of a few."""
    side, images, channels = SIZES[device.type]
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    x = torch.randn(images, channels, 32, 32, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    weight = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    convolution = 2.0 * images * 32 * 32 * channels * channels * 9
    with torch.no_grad():
        return {
            "convolution": convolution
            / min(seconds(lambda: F.conv2d(x, weight, padding=1), device) for _ in range(TRIES)),
            "product": 2.0 * side**3 / min(seconds(lambda: a @ b, device) for _ in range(TRIES)),
        }

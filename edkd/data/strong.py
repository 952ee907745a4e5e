"""Strong views: a crop and flip of their own, two random distortions and a cutout, as MLKD and CRLD train on them.

Jin, Wang and Lin, "Multi-Level Logit Distillation", CVPR 2023. Two of fourteen operations are drawn with replacement,
each with a uniform magnitude; then a square of up to half the side is painted over. Every operation gives the pixels
that Pillow gives. A strong view is a function of (image, draws), and the draws are a function of (seed, epoch).

All images of a batch are distorted at once, whatever was drawn for each, and nothing is read back from the device. An
operation moves pixels (an affine map), or maps values (a table of 256 for each channel), or blends with another image.
Each of these three runs for the whole batch, as the identity on images for which another kind was drawn.
"""

import math

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from edkd.data import views

OPERATIONS = (
    "autocontrast", "brightness", "colour", "contrast", "equalise", "identity", "posterise",
    "rotate", "sharpness", "shear_x", "shear_y", "solarise", "translate_x", "translate_y",
)  # fmt: skip
DRAWS = 8  # numbers for each image: view, operation and magnitude twice, size and centre (x, y) of the cutout
ROUNDS = ((1, 2), (3, 4))  # columns of (operation, magnitude)

_ENHANCE = (0.05, 0.95)  # factor of brightness, colour, contrast, sharpness
_POSTERISE = (4, 8)  # bits
_ROTATE = 30.0  # degrees
_SHEAR = 0.3
_TRANSLATE = 0.3  # of the side
_CUTOUT = 0.5  # of the side
_CUTOUT_COLOUR = (125, 123, 114)


def epoch_draws(seed: int, epoch: int, n: int) -> npt.NDArray[np.float32]:
    """What epoch `epoch` draws for each of `n` images: float32 [n, DRAWS], uniform in [0, 1); row i is image i's."""
    raw = views.draw(n * DRAWS, seed=seed, stream=views.STRONG, counter=epoch) >> np.uint64(40)
    return (raw.astype(np.float32) / np.float32(1 << 24)).reshape(n, DRAWS)


def distort(images: Tensor, draws: Tensor) -> Tensor:
    """Distort images, uint8 [B, 3, H, H], by their `draws` [B, DRAWS]: two operations, then the cutout."""
    for operation, magnitude in ROUNDS:
        chosen = (draws[:, operation] * len(OPERATIONS)).long()
        images = apply(images, chosen, draws[:, magnitude])
    return _cut_out(images, draws[:, 5], draws[:, 6], draws[:, 7])


def apply(images: Tensor, operation: Tensor, magnitude: Tensor) -> Tensor:
    """Apply to each image, uint8 [B, 3, H, H], one of OPERATIONS (int64 [B]) at a magnitude in [0, 1) (float32 [B])."""
    is_operation = {name: operation == number for number, name in enumerate(OPERATIONS)}
    images = _move(images, is_operation, magnitude)
    factor = (_ENHANCE[0] + magnitude.double() * (_ENHANCE[1] - _ENHANCE[0])).float()
    images = _map_values(images, is_operation, magnitude, factor)
    other = torch.where(is_operation["colour"][:, None, None, None], _grey(images), _smooth(images))
    blended = is_operation["colour"] | is_operation["sharpness"]
    return _blend(other, images, torch.where(blended, factor, 1.0)[:, None, None, None])


def _blend(first: Tensor, second: Tensor, factor: Tensor) -> Tensor:
    """first + factor·(second − first), cut to whole numbers as Pillow does; factor 1 is `second` itself."""
    return (first + factor * (second.float() - first.float())).to(torch.uint8)


def _grey(images: Tensor) -> Tensor:
    """The luminance, uint8 [B, 1, H, H], in Pillow's integer arithmetic."""
    red, green, blue = images.int().split(1, dim=1)
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).to(torch.uint8)


def _smooth(images: Tensor) -> Tensor:
    """Each pixel averaged with its eight neighbours, itself five times; the border stays as it is."""
    ones = torch.ones(3, 1, 3, 3, device=images.device)
    values = images.float()
    inner = (F.conv2d(values, ones, groups=3) + 4 * values[:, :, 1:-1, 1:-1]) / 13 + 0.5
    smooth = images.clone()
    smooth[:, :, 1:-1, 1:-1] = inner.to(torch.uint8)
    return smooth


def _move(images: Tensor, is_operation: dict[str, Tensor], magnitude: Tensor) -> Tensor:
    """Rotate, shear or translate: the nearest pixel of an affine map, black outside, in Pillow's 16-bit fixed point."""
    side = images.shape[-1]
    centred = 2 * magnitude.double() - 1  # [-1, 1)
    zero = torch.zeros_like(centred)
    angle = torch.where(is_operation["rotate"], -math.radians(_ROTATE) * centred, zero)
    cos, sin = angle.cos(), angle.sin()
    x_by_y = torch.where(is_operation["shear_x"], _SHEAR * centred, sin)
    y_by_x = torch.where(is_operation["shear_y"], _SHEAR * centred, -sin)
    centre = side / 2  # of a rotation; the others are about the corner
    about = torch.where(is_operation["rotate"], centre, 0.0)
    x_by_0 = torch.where(is_operation["translate_x"], _TRANSLATE * side * centred, about - cos * about - sin * about)
    y_by_0 = torch.where(is_operation["translate_y"], _TRANSLATE * side * centred, about + sin * about - cos * about)

    def fixed(value: Tensor) -> Tensor:
        return (value * 65536 + 0.5).floor().long()[:, None, None]

    steps = torch.arange(side, device=images.device)
    down, right = steps[:, None], steps[None, :]
    x = (fixed(x_by_0 + cos / 2 + x_by_y / 2) + fixed(cos) * right + fixed(x_by_y) * down) >> 16
    y = (fixed(y_by_0 + y_by_x / 2 + cos / 2) + fixed(y_by_x) * right + fixed(cos) * down) >> 16
    inside = (x >= 0) & (x < side) & (y >= 0) & (y < side)
    source = (y.clamp(0, side - 1) * side + x.clamp(0, side - 1)).flatten(1)[:, None].expand(-1, 3, -1)
    return images.flatten(2).gather(2, source).view_as(images) * inside[:, None]


def _map_values(images: Tensor, is_operation: dict[str, Tensor], magnitude: Tensor, factor: Tensor) -> Tensor:
    """The operations that are a table from value to value, one for each image and channel."""
    values = torch.arange(256, device=images.device).expand(len(images), 3, 256)
    flat = images.flatten(2).long()
    counts = torch.zeros(values.shape, dtype=torch.int64, device=images.device)
    counts.scatter_add_(2, flat, torch.ones_like(flat))
    mean_grey = (_grey(images).flatten(1).double().mean(1) + 0.5).floor().to(torch.uint8)[:, None, None]
    bits = (_POSTERISE[0] + magnitude * (_POSTERISE[1] - _POSTERISE[0])).long()
    threshold = (256 * magnitude)[:, None, None]
    by_factor = factor[:, None, None]
    tables = {
        "autocontrast": _autocontrast(counts),
        "brightness": _blend(torch.zeros_like(values, dtype=torch.uint8), values, by_factor),
        "contrast": _blend(mean_grey.expand_as(values), values, by_factor),
        "equalise": _equalise(counts),
        "posterise": values & (0xFF << (8 - bits) & 0xFF)[:, None, None],
        "solarise": torch.where(values < threshold, values, 255 - values),
    }
    table = values
    for name, mapped in tables.items():
        table = torch.where(is_operation[name][:, None, None], mapped.long(), table)
    return table.gather(2, flat).view_as(images).to(torch.uint8)


def _autocontrast(counts: Tensor) -> Tensor:
    """The table that stretches a channel's values to 0..255, from its histogram [B, 3, 256]."""
    values = torch.arange(256, device=counts.device, dtype=torch.float64)
    present = counts > 0
    low = torch.where(present, values, 256.0).amin(2, keepdim=True)
    high = torch.where(present, values, -1.0).amax(2, keepdim=True)
    scale = torch.full_like(low, 255.0) / (high - low).clamp(min=1)  # 255.0 / tensor would multiply by a reciprocal
    stretched = (values * scale - low * scale).trunc().clamp(0, 255)
    return torch.where(high > low, stretched, values).long()


def _equalise(counts: Tensor) -> Tensor:
    """The table that spreads a channel's values evenly, from its histogram [B, 3, 256]."""
    values = torch.arange(256, device=counts.device).expand_as(counts)
    last = torch.where(counts > 0, values, -1).amax(2, keepdim=True)
    step = (counts.sum(2, keepdim=True) - counts.gather(2, last)) // 255
    before = counts.cumsum(2) - counts
    spread = (step // 2 + before) // step.clamp(min=1)
    return torch.where(step > 0, spread, values).clamp(max=255)


def _cut_out(images: Tensor, size: Tensor, centre_x: Tensor, centre_y: Tensor) -> Tensor:
    """Paint a square of `size` (of half the side) around a centre over each image; all float32 [B] in [0, 1)."""
    side = images.shape[-1]
    width = size * _CUTOUT * side
    pixel = torch.arange(side, device=images.device)

    def covered(centre: Tensor) -> Tensor:
        first = (centre * side - width / 2).clamp(min=0).floor()
        last = (first + width).clamp(max=side).floor()
        return (pixel >= first[:, None]) & (pixel <= last[:, None])

    square = covered(centre_y)[:, None, :, None] & covered(centre_x)[:, None, None, :]
    red, green, blue = _CUTOUT_COLOUR
    colour = torch.cat([torch.full_like(images[:, :1], value) for value in (red, green, blue)], dim=1)
    return torch.where(square, colour, images)

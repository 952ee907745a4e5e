"""Strong views: every operation against Pillow's, and draws that belong to (seed, epoch, image)."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from edkd.data import strong

SIDE = 32


def pictures(count: int) -> torch.Tensor:
    """Smooth pictures with some noise, and one of a single colour."""
    x = np.linspace(0, 1, SIDE)
    random = np.random.RandomState(0)
    made = np.full((count, 3, SIDE, SIDE), 77, dtype=np.uint8)
    for picture in made[1:]:
        for channel in picture:
            a, b, c, d = random.uniform(-3, 3, 4)
            wave = 128 + 90 * np.sin(a * x[:, None] * 6 + b) * np.cos(c * x[None, :] * 6 + d)
            channel[:] = np.clip(wave + random.normal(0, 12, wave.shape), 0, 255)
    return torch.from_numpy(made)


def by_pillow(image: Image.Image, name: str, u: float) -> Image.Image:
    factor, angle, shift = 0.05 + u * (0.95 - 0.05), 30 * (2 * u - 1), 0.3 * (2 * u - 1)
    enhancers = {
        "brightness": ImageEnhance.Brightness,
        "colour": ImageEnhance.Color,
        "contrast": ImageEnhance.Contrast,
        "sharpness": ImageEnhance.Sharpness,
    }
    matrices = {
        "shear_x": (1, shift, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, shift, 1, 0),
        "translate_x": (1, 0, shift * SIDE, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, shift * SIDE),
    }
    if name in enhancers:
        return enhancers[name](image).enhance(factor)
    if name in matrices:
        return image.transform(image.size, Image.Transform.AFFINE, matrices[name])
    return {
        "autocontrast": lambda: ImageOps.autocontrast(image),
        "equalise": lambda: ImageOps.equalize(image),
        "identity": lambda: image,
        "posterise": lambda: ImageOps.posterize(image, int(4 + 4 * u)),
        "rotate": lambda: image.rotate(angle),
        "solarise": lambda: ImageOps.solarize(image, 256 * u),
    }[name]()


@pytest.mark.parametrize("name", strong.OPERATIONS)
def test_an_operation_gives_the_pixels_of_pillow(name: str) -> None:
    images = pictures(40)
    magnitudes = torch.linspace(0, 1, 41)[:40]
    operation = torch.full((40,), strong.OPERATIONS.index(name))
    found = strong.apply(images, operation, magnitudes)
    for image, made, u in zip(images, found, magnitudes.tolist(), strict=True):
        expected = by_pillow(Image.fromarray(image.permute(1, 2, 0).numpy()), name, u)
        difference = np.abs(np.asarray(expected).astype(int) - made.permute(1, 2, 0).numpy())
        if name in ("rotate", "shear_x", "shear_y", "translate_x", "translate_y"):
            assert (difference > 0).mean() <= 0.003, f"magnitude {u}"  # a centre on the border of two pixels
        elif name in ("brightness", "colour", "contrast", "sharpness"):  # ours in fp32, so some are cut differently
            assert difference.max() <= 1 and (difference > 0).mean() <= 0.02, f"magnitude {u}"
        else:
            assert not difference.any(), f"magnitude {u}"


def test_each_image_gets_its_own_operation() -> None:
    images, magnitude = pictures(14), torch.full((14,), 0.8)
    together = strong.apply(images, torch.arange(14), magnitude)
    for i in range(14):
        alone = strong.apply(images[i : i + 1], torch.tensor([i]), magnitude[:1])
        assert torch.equal(together[i : i + 1], alone)


def test_the_cutout_is_the_rectangle_of_pillow() -> None:
    images = pictures(50)
    draws = torch.from_numpy(strong.epoch_draws(0, 1, 50))
    draws[:, 1] = draws[:, 3] = (strong.OPERATIONS.index("identity") + 0.5) / len(strong.OPERATIONS)
    for image, made, row in zip(images, strong.distort(images, draws), draws.tolist(), strict=True):
        expected = Image.fromarray(image.permute(1, 2, 0).numpy())
        width, centre_x, centre_y = row[5] * 0.5 * SIDE, row[6] * SIDE, row[7] * SIDE
        left, top = (int(max(0, centre - width / 2)) for centre in (centre_x, centre_y))
        corner = min(SIDE, left + width), min(SIDE, top + width)
        ImageDraw.Draw(expected).rectangle((left, top, *map(math.floor, corner)), fill=(125, 123, 114))
        assert np.array_equal(np.asarray(expected), made.permute(1, 2, 0).numpy())


def test_draws_are_uniform_and_belong_to_seed_epoch_and_image() -> None:
    draws = strong.epoch_draws(3, 7, 2000)
    assert draws.dtype == np.float32
    assert (draws.min(), draws.max()) == (pytest.approx(0, abs=1e-3), pytest.approx(1, abs=1e-3))
    assert np.abs(draws.mean(axis=0) - 0.5).max() < 0.03
    assert np.abs(np.corrcoef(draws.T) - np.eye(strong.DRAWS)).max() < 0.1
    assert np.array_equal(strong.epoch_draws(3, 7, 10), draws[:10])
    for other in (strong.epoch_draws(3, 8, 2000), strong.epoch_draws(4, 7, 2000)):
        assert (draws == other).mean() < 0.001

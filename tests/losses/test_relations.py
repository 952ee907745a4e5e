"""Losses on relations and stages of features: recorded values, what changes nothing, and the limits of a batch."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from edkd import losses
from tests.golden.methods import normal

(GOLDEN,) = json.loads((Path(__file__).parents[1] / "golden" / "losses.json").read_text())["features"]
STUDENT_SHAPES = [(8, 16, 16), (12, 8, 8), (16, 4, 4)]
TEACHER_SHAPES = [(16, 16, 16), (12, 8, 8), (32, 8, 8)]
Loss = Callable[[Tensor, Tensor], Tensor]
OF_MAPS: dict[str, Loss] = {
    "at": lambda s, t: losses.at(s, t, 2.0),
    "nst": losses.nst,
    "sp": losses.sp,
}
OF_VECTORS: dict[str, Loss] = {
    "pkt": losses.pkt,
    "rkd": lambda s, t: losses.rkd(s, t, 25.0, 50.0),
}
ALL = {**OF_MAPS, **OF_VECTORS}
each_loss = pytest.mark.parametrize("name", ALL)


def drawn(offset: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    stream = np.random.RandomState(GOLDEN["seed"] + offset)
    return [normal(stream, 6, *shape) for shape in shapes]


def inputs(name: str, batch: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features of the right kind; student and teacher of one shape, so that they may be equal."""
    shape = (batch, 7) if name in OF_VECTORS else (batch, 8, 4, 4)
    student, teacher = (normal(np.random.RandomState(seed + i), *shape) for i in range(2))
    return student.requires_grad_(), teacher


def gradient(loss: Tensor, student: Tensor) -> Tensor:
    (result,) = torch.autograd.grad(loss, student)
    return result


def test_recorded_values() -> None:
    maps = drawn(0, *STUDENT_SHAPES, *TEACHER_SHAPES)
    stages = list(zip(maps[:3], maps[3:]))
    pooled = drawn(1000, (20,), (30,))
    of_hcl = [(*drawn(2000, shape), goal) for shape, goal in zip(TEACHER_SHAPES, maps[3:])]
    found = {
        "at_p2": sum(losses.at(*each, 2.0) for each in stages),
        "nst": sum(losses.nst(*each) for each in stages),
        "sp_last": losses.sp(*stages[-1]),
        "pkt": losses.pkt(*pooled),
        "rkd_25_50": losses.rkd(*pooled, 25.0, 50.0),  # type: ignore[call-arg]
        "hcl": sum(losses.hcl(*each) for each in of_hcl),
    }
    assert {name: float(value) for name, value in found.items()} == pytest.approx(
        {name: GOLDEN[name] for name in found}, rel=1e-9
    )


@each_loss
def test_gradients_agree_with_finite_differences(name: str) -> None:
    student, teacher = inputs(name, batch=4)
    assert torch.autograd.gradcheck(lambda s: ALL[name](s, teacher), student)


@each_loss
def test_equal_features_give_no_loss_and_no_gradient(name: str) -> None:
    student, _ = inputs(name)
    value = ALL[name](student, student.detach())
    assert abs(value.item()) <= 1e-12
    assert gradient(value, student).abs().max() <= 1e-8  # PKT adds 1e-7 to its probabilities


@each_loss
def test_the_teacher_receives_no_gradient(name: str) -> None:
    student, teacher = inputs(name)
    ALL[name](student, teacher.requires_grad_()).backward()
    assert teacher.grad is None
    assert student.grad is not None and student.grad.abs().max() > 0


@pytest.mark.parametrize("name", ["at", "nst", "sp", "pkt", "rkd"])
def test_the_scale_of_a_network_changes_nothing(name: str) -> None:
    student, teacher = inputs(name)
    assert ALL[name](3 * student, teacher / 2).item() == pytest.approx(ALL[name](student, teacher).item(), rel=1e-5)


@pytest.mark.parametrize("name", ["sp", "pkt", "rkd"])
def test_a_rotation_of_the_channels_changes_nothing(name: str) -> None:
    student, teacher = (each.detach().flatten(1) for each in inputs(name))
    rotation, _ = torch.linalg.qr(normal(np.random.RandomState(3), student.shape[1], student.shape[1]))
    assert ALL[name](student @ rotation, teacher).item() == pytest.approx(ALL[name](student, teacher).item(), rel=1e-9)


@each_loss
@pytest.mark.parametrize("batch", [1, 2])
def test_a_small_last_batch_and_dead_or_equal_features_stay_finite(name: str, batch: int) -> None:
    student, teacher = inputs(name, batch)
    equal = student.detach()[:1].expand_as(student).clone().requires_grad_()
    dead = (0 * student).detach().requires_grad_()
    for features in (student, equal, dead):
        value = ALL[name](features, teacher.abs())
        assert value.isfinite()
        assert gradient(value, features).isfinite().all()


def test_rkd_compares_distances_and_angles() -> None:
    right = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)  # a right angle
    line = torch.tensor([[0.0], [1.0], [2.0]], dtype=torch.float64)
    mean_right, mean_line = (2 + 2**0.5) / 3, 4 / 3
    gaps = [1 / mean_right - 1 / mean_line, 1 / mean_right - 2 / mean_line, 2**0.5 / mean_right - 1 / mean_line]
    distances = sum(2 * gap**2 / 2 for gap in gaps) / 9
    assert losses.rkd(right, line, 1.0, 0.0).item() == pytest.approx(distances, rel=1e-12)
    cosines = [(0, 1), (0.5**0.5, -1), (0.5**0.5, 1)]  # at each corner, of the triangle and of the line
    angles = sum(2 * (min(abs(a - b), 1) * abs(a - b) - min(abs(a - b), 1) ** 2 / 2) for a, b in cosines) / 27
    assert losses.rkd(right, line, 0.0, 1.0).item() == pytest.approx(angles, rel=1e-12)


def test_cc_is_the_product_of_neighbours() -> None:
    student = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    teacher = torch.tensor([[2.0, 2.0], [1.0, 5.0], [5.0, 5.0]])
    assert losses.cc(student, teacher).item() == (1 * 2 + 0 * 1 + 2 * 0 + 1 * 1) / 2
    assert losses.cc(student[:1], teacher[:1]).item() == 0


def test_nst_is_the_same_by_channels_and_by_places() -> None:
    """The two ways of its kernel, which shapes choose between, against the definition."""
    for student_shape, teacher_shape in (((3, 4, 4, 4), (3, 5, 4, 4)), ((3, 9, 2, 2), (3, 7, 2, 2))):
        student, teacher = (normal(np.random.RandomState(i), *s) for i, s in enumerate((student_shape, teacher_shape)))
        rows = [torch.nn.functional.normalize(each.flatten(2), dim=2) for each in (student, teacher)]

        def kernel(i: int, j: int, rows: list[Tensor] = rows) -> Tensor:
            return torch.einsum("bcn,bdn->bcd", rows[i], rows[j]).square().mean()

        expected = kernel(0, 0) + kernel(1, 1) - 2 * kernel(0, 1)
        assert losses.nst(student, teacher).item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize(("height", "size"), [(8, 8), (8, 2), (2, 4), (6, 4)])
def test_pooling_is_adaptive_average_pooling(height: int, size: int) -> None:
    feat = normal(np.random.RandomState(0), 2, 3, height, height)
    assert torch.allclose(losses.pool(feat, size), torch.nn.functional.adaptive_avg_pool2d(feat, size))

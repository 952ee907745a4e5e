"""Losses of further methods on logits: recorded values and gradients, what they do not depend on, and their limits."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from edkd import losses
from tests.golden.methods import CASES, assert_recorded, draw_logits

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
Z = losses.standardise


def ls(p: dict) -> Loss:
    """The loss of a case of logit standardisation."""
    if p["on"] == "dkd":
        return lambda s, t, y: losses.dkd(Z(s), Z(t), y, p["alpha"], p["beta"], p["temperature"])
    if p["on"] == "edkd":
        return lambda s, t, y: losses.edkd(Z(s), Z(t), y, 1.0, 8.0, p["temperature"], "batch")[0]
    return lambda s, t, y: losses.kd(Z(s), Z(t), p["temperature"])


def rld(p: dict) -> Loss:
    given = [p[name] for name in ("alpha", "beta", "temperature", "alpha_temperature")]
    if p["logit_standardization"]:
        return lambda s, t, y: losses.rld(Z(s), Z(t), y, *given)
    return lambda s, t, y: losses.rld(s, t, y, *given)


def normkd(p: dict) -> Loss:
    if p["on"] == "dkd":
        return lambda s, t, y: losses.normkd_dkd(s, t, y, p["alpha"], p["beta"], p["temperature_norm"])
    return lambda s, t, y: losses.normkd(s, t, p["temperature_norm"])


MAKERS: dict[str, Callable[[dict], Loss]] = {
    "ls": ls,
    "dist": lambda p: lambda s, t, y: losses.dist(s, t, p["beta"], p["gamma"], p["temperature"]),
    "nkd": lambda p: lambda s, t, y: losses.nkd(s, t, y, p["gamma"], p["temperature"]),
    "ttm": lambda p: lambda s, t, y: losses.ttm(s, t, p["exponent"]),
    "wttm": lambda p: lambda s, t, y: losses.wttm(s, t, p["exponent"]),
    "rld": rld,
    "normkd": normkd,
}
RECORDED = [(name, case) for name in MAKERS for case in CASES["logits"][name]]

# Every loss as a function of (student, teacher, target).
LOSSES: dict[str, Loss] = {
    "ls on kd": ls({"on": "kd", "temperature": 2.0}),
    "ls on dkd": ls({"on": "dkd", "alpha": 9.0, "beta": 72.0, "temperature": 2.0}),
    "ls on edkd": ls({"on": "edkd", "temperature": 2.0}),
    "dist": lambda s, t, y: losses.dist(s, t, 1.0, 1.0, 1.0),
    "nkd": lambda s, t, y: losses.nkd(s, t, y, 1.5, 1.0),
    "ttm": lambda s, t, y: losses.ttm(s, t, 0.1),
    "wttm": lambda s, t, y: losses.wttm(s, t, 0.2),
    "rld": lambda s, t, y: losses.rld(s, t, y, 1.0, 8.0, 4.0, 4.0),
    "normkd": normkd({"on": "kd", "temperature_norm": 2.0}),
    "normkd on dkd": normkd({"on": "dkd", "alpha": 4.0, "beta": 5.0, "temperature_norm": 2.0}),
    "nckd among the top": lambda s, t, y: losses.nckd_among_top(s, t, y, 4.0, 2).mean(),
}
each_loss = pytest.mark.parametrize("name", LOSSES)
# A cross-entropy, and a temperature on one side alone, leave something where both networks agree; RLD compares the
# student's target with the teacher's top class, so it vanishes where these are the same.
VANISHING = [name for name in LOSSES if name not in ("nkd", "ttm", "wttm")]


def drawn(seed: int, batch: int = 6, classes: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    inputs = {"batch": batch, "classes": classes, "student_scale": 2, "teacher_scale": 3, "teacher_boost": 0}
    return draw_logits({"seed": seed, **inputs})


def gradient(loss: Tensor, student: Tensor) -> Tensor:
    (result,) = torch.autograd.grad(loss, student)
    return result


@pytest.mark.parametrize(("name", "case"), RECORDED, ids=[f"{n}-seed{c['inputs']['seed']}" for n, c in RECORDED])
def test_recorded_values_and_gradients(name: str, case: dict) -> None:
    student, teacher, target = draw_logits(case["inputs"])
    loss = MAKERS[name](case["parameters"])(student, teacher, target)
    assert loss.item() == pytest.approx(case["loss"], rel=1e-9)
    assert_recorded(gradient(loss, student), case["grad"]["student"])


@pytest.mark.parametrize("name", VANISHING)
def test_equal_logits_give_no_loss_and_no_gradient(name: str) -> None:
    student, _, target = drawn(1)
    target = student.argmax(dim=1) if name == "rld" else target
    value = LOSSES[name](student, student.detach(), target)
    assert value.item() == pytest.approx(0, abs=1e-5)  # DIST enlarges its denominators by 1e-8
    assert gradient(value, student).abs().max() < 1e-5


@each_loss
def test_a_shift_of_a_samples_logits_changes_nothing(name: str) -> None:
    student, teacher, target = drawn(2)
    steps = 10 * torch.arange(6, dtype=torch.float64).unsqueeze(1)
    value = LOSSES[name](student, teacher, target)
    shifted = LOSSES[name](student + steps, teacher - 2 * steps, target)
    torch.testing.assert_close(shifted, value)
    torch.testing.assert_close(gradient(shifted, student), gradient(value, student))


@pytest.mark.parametrize("name", ["ls on kd", "ls on dkd", "ls on edkd", "normkd", "normkd on dkd"])
def test_the_students_scale_is_taken_out(name: str) -> None:
    student, teacher, target = drawn(3)
    values = [LOSSES[name](scale * student, teacher, target).item() for scale in (1, 5)]
    assert values[0] == pytest.approx(values[1], rel=1e-5)


@each_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("classes", [2, 5])
def test_extreme_logits_stay_finite(name: str, dtype: torch.dtype, classes: int) -> None:
    stream = np.random.RandomState(4)
    for _ in range(50):
        values = stream.choice([-1e4, -1.0, 0.0, 1.0, 1e4], size=(2, 3, classes))
        student, teacher = torch.as_tensor(values, dtype=dtype)
        student = student.clone().requires_grad_()
        target = torch.as_tensor(stream.randint(0, classes, size=3), dtype=torch.int64)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            value = LOSSES[name](student, teacher, target)
        assert value.dtype == torch.float32
        assert value.isfinite()
        assert gradient(value, student).isfinite().all()


@each_loss
def test_logits_without_a_preference_stay_finite(name: str) -> None:
    student = torch.full((3, 5), 0.3, requires_grad=True)
    target = torch.tensor([0, 2, 4])
    for teacher in (torch.zeros(3, 5), torch.arange(15.0).view(3, 5)):
        value = LOSSES[name](student, teacher, target)
        assert value.isfinite() and gradient(value, student).isfinite().all()


@each_loss
def test_the_teacher_receives_no_gradient(name: str) -> None:
    student, teacher, target = drawn(5)
    teacher.requires_grad_()
    LOSSES[name](student, teacher, target).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


def test_dist_of_one_sample_knows_its_classes_alone() -> None:
    student, teacher, _ = drawn(6, batch=1)
    both, inter = (losses.dist(student, teacher, 1.0, gamma, 4.0) for gamma in (1.0, 0.0))
    assert (both - inter).item() == pytest.approx(16)  # intra is 1 there
    assert torch.equal(gradient(both, student), gradient(inter, student))


def test_rld_leaves_out_what_the_teacher_ranks_with_or_above_the_target() -> None:
    teacher = torch.tensor([[3.0, 1.0, 0.0, 2.0, 2.0], [0.0, 1.0, 2.0, 3.0, 4.0]], dtype=torch.float64)
    student = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    value = losses.rld(student, teacher, torch.tensor([3, 0]), 0.0, 1.0, 2.0, 2.0)
    kept = losses.kd(student[:1, 1:3], teacher[:1, 1:3], 2.0)  # the second target is the teacher's last choice
    assert value.item() == pytest.approx(kept.item() / 2)
    assert (gradient(value, student)[1] == 0).all()


def test_nckd_among_all_classes_is_nckd() -> None:
    student, teacher, target = drawn(7)
    expected = losses.decouple(student, teacher, target, 4.0).nckd
    torch.testing.assert_close(losses.nckd_among_top(student, teacher, target, 4.0, 7), expected)


def test_nckd_among_the_targets_class_alone_is_nothing() -> None:
    student, teacher, _ = drawn(8)
    assert (losses.nckd_among_top(student, teacher, teacher.argmax(dim=1), 4.0, 1) == 0).all()

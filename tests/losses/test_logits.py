"""Losses: recorded values and gradients, the identities between them, and numbers at their limits."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edkd import losses

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "losses.json").read_text())["logits"]

# Every loss as a function of (student, teacher, target, temperature).
LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor, float], Tensor]] = {
    "kd": lambda s, t, y, temperature: losses.kd(s, t, temperature),
    "dkd": lambda s, t, y, temperature: losses.dkd(s, t, y, 1.0, 8.0, temperature),
    "edkd_batch": lambda s, t, y, temperature: losses.edkd(s, t, y, 1.0, 8.0, temperature, "batch")[0],
    "edkd_sample": lambda s, t, y, temperature: losses.edkd(s, t, y, 1.0, 8.0, temperature, "sample")[0],
}
RECORDED = {
    "kd_T4": lambda s, t, y: losses.kd(s, t, 4.0),
    "dkd_a1_b8_T4": lambda s, t, y: losses.dkd(s, t, y, 1.0, 8.0, 4.0),
    "dkd_a1_b2_T1": lambda s, t, y: losses.dkd(s, t, y, 1.0, 2.0, 1.0),
    "edkd_T4": lambda s, t, y: losses.edkd(s, t, y, 1.0, 8.0, 4.0, "batch")[0],
    "edkd_T1": lambda s, t, y: losses.edkd(s, t, y, 1.0, 8.0, 1.0, "batch")[0],
}
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
each_case = pytest.mark.parametrize("case", GOLDEN, ids=[f"seed{case['seed']}" for case in GOLDEN])
many = settings(max_examples=40, deadline=None)


def draw(
    seed: int, batch: int, classes: int, student_scale: float, teacher_scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    stream = np.random.RandomState(seed)
    student = torch.as_tensor(stream.standard_normal((batch, classes)) * student_scale)
    teacher = torch.as_tensor(stream.standard_normal((batch, classes)) * teacher_scale)
    target = torch.as_tensor(stream.randint(0, classes, size=batch), dtype=torch.int64)
    return student.requires_grad_(), teacher, target


scales = st.floats(0.0, 20.0)
problems = st.builds(draw, st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(2, 12), scales, scales)
temperatures = st.sampled_from([1.0, 2.0, 4.0])


def gradient(loss: Tensor, student: Tensor) -> Tensor:
    (result,) = torch.autograd.grad(loss, student)
    return result


def assert_close(actual: Tensor, expected: Tensor, rtol: float = 1e-9, atol: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


@each_case
@pytest.mark.parametrize("name", RECORDED)
def test_recorded_values_and_gradients(case: dict, name: str) -> None:
    student, teacher, target = draw(*(case[k] for k in ("seed", "batch", "classes", "student_scale", "teacher_scale")))
    loss = RECORDED[name](student, teacher, target)
    expected = torch.tensor(case[name]["grad"], dtype=torch.float64)
    assert loss.item() == pytest.approx(case[name]["loss"], rel=1e-9)
    # An entry of the gradient is a difference of probabilities: an error counts against the largest of its sample.
    error = (gradient(loss, student) - expected).abs().amax(dim=1)
    assert (error <= 1e-9 * expected.abs().amax(dim=1)).all()


@each_case
def test_recorded_confidence_and_beta_of_each_sample(case: dict) -> None:
    student, teacher, target = draw(*(case[k] for k in ("seed", "batch", "classes", "student_scale", "teacher_scale")))
    _, beta, confidence = losses.edkd(student, teacher, target, 1.0, 8.0, 4.0, "batch")
    assert confidence.tolist() == pytest.approx(case["edkd_pt_T4"], rel=1e-9)
    assert beta.tolist() == pytest.approx(case["edkd_beta_T4"], rel=1e-9)


@many
@given(problem=problems, temperature=temperatures)
def test_kd_is_tckd_plus_the_rest_times_nckd(problem: tuple[Tensor, Tensor, Tensor], temperature: float) -> None:
    student, teacher, target = problem
    parts = losses.decouple(student, teacher, target, temperature)
    p_target = (teacher / temperature).softmax(dim=1).gather(1, target.unsqueeze(1)).squeeze(1)
    assert_close(parts.tckd + (1 - p_target) * parts.nckd, losses.kd_per_sample(student, teacher, temperature))


@many
@given(problem=problems, temperature=temperatures)
def test_nckd_is_kl_over_the_classes_without_the_target(
    problem: tuple[Tensor, Tensor, Tensor], temperature: float
) -> None:
    student, teacher, target = problem
    nckd = losses.decouple(student, teacher, target, temperature).nckd
    for i, y in enumerate(target.tolist()):
        rest = [j for j in range(student.shape[1]) if j != y]
        q_student = (student[i, rest] / temperature).softmax(dim=0)
        q_teacher = (teacher[i, rest] / temperature).softmax(dim=0)
        terms = torch.where(q_teacher > 0, q_teacher * (q_teacher / q_student).log(), 0)
        assert_close(nckd[i], temperature**2 * terms.sum())


@many
@given(problem=problems, temperature=temperatures, beta=st.floats(0.1, 100))
def test_beta_stays_within_its_bounds(problem: tuple[Tensor, Tensor, Tensor], temperature: float, beta: float) -> None:
    _, beta_i, confidence = losses.edkd(*problem, 1.0, beta, temperature, "batch")
    assert ((confidence >= 0.5) & (confidence <= 1)).all()
    assert (beta_i >= beta * math.exp(-0.5) * (1 - 1e-12)).all()
    assert (beta_i <= beta * (1 + 1e-12)).all()


def test_confidence_is_the_larger_side() -> None:
    log_odds = torch.tensor([0.0, 50.0, -50.0, math.log(3), -math.log(3)], dtype=torch.float64)
    teacher = torch.stack([log_odds, torch.zeros(5)], dim=1)  # of two classes, of which the first is the target
    confidence = losses.edkd(teacher, teacher, torch.zeros(5, dtype=torch.int64), 1.0, 8.0, 1.0, "batch")[2]
    assert confidence.tolist() == pytest.approx([0.5, 1.0, 1.0, 0.75, 0.75])


@each_loss
@many
@given(problem=problems, temperature=temperatures)
def test_equal_logits_give_no_loss_and_no_gradient(
    loss: Callable[..., Tensor], problem: tuple[Tensor, Tensor, Tensor], temperature: float
) -> None:
    student, _, target = problem
    value = loss(student, student.detach(), target, temperature)
    assert value.item() == 0
    assert_close(gradient(value, student), torch.zeros_like(student), atol=1e-12)


@each_loss
@many
@given(problem=problems, temperature=temperatures, shift=st.floats(-100, 100))
def test_a_shift_of_a_samples_logits_changes_nothing(
    loss: Callable[..., Tensor], problem: tuple[Tensor, Tensor, Tensor], temperature: float, shift: float
) -> None:
    student, teacher, target = problem
    steps = torch.arange(len(target), dtype=torch.float64).unsqueeze(1)
    value = loss(student, teacher, target, temperature)
    shifted = loss(student + shift * steps, teacher - 2 * shift * steps, target, temperature)
    assert_close(shifted, value)
    assert_close(gradient(shifted, student), gradient(value, student))


@each_loss
@many
@given(
    seed=st.integers(0, 2**32 - 1),
    batch=st.integers(1, 4),
    classes=st.integers(2, 6),
    temperature=temperatures,
    autocast=st.booleans(),
)
def test_extreme_logits_stay_finite(
    loss: Callable[..., Tensor], seed: int, batch: int, classes: int, temperature: float, autocast: bool
) -> None:
    stream = np.random.RandomState(seed)
    values = stream.choice([-1e4, -1.0, 0.0, 1.0, 1e4], size=(2, batch, classes))
    student, teacher = torch.as_tensor(values, dtype=torch.bfloat16 if autocast else torch.float32)
    target = torch.as_tensor(stream.randint(0, classes, size=batch), dtype=torch.int64)
    student = student.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        value = loss(student, teacher, target, temperature) + losses.cross_entropy(student, target)
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert gradient(value, student).isfinite().all()


@each_loss
def test_certain_and_wrong_is_pulled_back(loss: Callable[..., Tensor]) -> None:
    """At the limits the gradient must be not only finite, but the right one: T·(p_student − p_teacher) per class."""
    student = torch.tensor([[1e4, -1e4, -1e4]], requires_grad=True)
    teacher = torch.tensor([[-1e4, 1e4, -1e4]])
    value = loss(student, teacher, torch.tensor([0]), 4.0)
    assert gradient(value, student)[0, 0].item() == pytest.approx(4.0)


@pytest.mark.parametrize("offset", [-1e4, 0.0, 1e4])
@pytest.mark.parametrize("target_logit", [-1e4, 0.0, 1e4])
def test_nckd_depends_on_the_non_target_logits_alone(offset: float, target_logit: float) -> None:
    teacher = torch.tensor([[target_logit, offset + 4 * math.log(3), offset]], dtype=torch.float64)
    student = torch.tensor([[-target_logit, offset, offset]], dtype=torch.float64, requires_grad=True)
    nckd = losses.decouple(student, teacher, torch.tensor([0]), 4.0).nckd
    assert nckd.item() == pytest.approx(16 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5)))
    assert gradient(nckd, student).tolist()[0] == pytest.approx([0, -1, 1])


@each_loss
def test_gradients_agree_with_finite_differences(loss: Callable[..., Tensor]) -> None:
    student, teacher, target = draw(3, 3, 5, 2.0, 3.0)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher, target, 2.0), student)


@each_loss
def test_the_teacher_receives_no_gradient(loss: Callable[..., Tensor]) -> None:
    student, teacher, target = draw(4, 3, 5, 1.0, 1.0)
    teacher.requires_grad_()
    loss(student, teacher, target, 4.0).backward()
    assert teacher.grad is None
    assert student.grad is not None


def test_beta_and_confidence_carry_no_gradient() -> None:
    student, teacher, target = draw(4, 3, 5, 1.0, 1.0)
    _, beta, confidence = losses.edkd(student, teacher.requires_grad_(), target, 1.0, 8.0, 4.0, "batch")
    assert not beta.requires_grad
    assert not confidence.requires_grad


@given(seed=st.integers(0, 2**32 - 1), batch=st.integers(1, 5), scale=scales)
@many
def test_two_classes_leave_nothing_to_nckd(seed: int, batch: int, scale: float) -> None:
    student, teacher, target = draw(seed, batch, 2, scale, scale)
    nckd = losses.decouple(student, teacher, target, 4.0).nckd
    assert (nckd == 0).all()
    assert (gradient(nckd.sum(), student) == 0).all()


@each_loss
@pytest.mark.parametrize(
    ("given_dtype", "computed"),
    [(torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float64, torch.float64)],
)
def test_half_precision_is_computed_in_single_and_double_stays(
    loss: Callable[..., Tensor], given_dtype: torch.dtype, computed: torch.dtype
) -> None:
    student, teacher, target = draw(5, 4, 7, 3.0, 3.0)
    student, teacher = student.detach().to(given_dtype), teacher.to(given_dtype)
    value = loss(student, teacher, target, 4.0)
    assert value.dtype == computed
    assert torch.equal(value, loss(student.to(computed), teacher.to(computed), target, 4.0))
    assert losses.cross_entropy(student, target).dtype == computed


@many
@given(problem=problems, log_odds=st.floats(-5, 5))
def test_weightings_agree_where_beta_is_constant(problem: tuple[Tensor, Tensor, Tensor], log_odds: float) -> None:
    student, teacher, target = problem
    column = target.unsqueeze(1)
    rest = teacher.scatter(1, column, -torch.inf).logsumexp(dim=1, keepdim=True)
    teacher = teacher.scatter(1, column, rest + log_odds)
    batch, sample = (
        losses.edkd(student, teacher, target, 1.0, 8.0, 1.0, weighting)[0] for weighting in ("batch", "sample")
    )
    assert_close(batch, sample)
    assert_close(gradient(batch, student), gradient(sample, student))


def test_weightings_are_the_two_formulas() -> None:
    student, teacher, target = draw(6, 8, 10, 2.0, 6.0)
    tckd, nckd, log_odds = losses.decouple(student, teacher, target, 4.0)
    beta = 8 * torch.exp(torch.maximum(log_odds.sigmoid(), (-log_odds).sigmoid()) - 1)
    batch = losses.edkd(student, teacher, target, 0.5, 8.0, 4.0, "batch")[0]
    sample = losses.edkd(student, teacher, target, 0.5, 8.0, 4.0, "sample")[0]
    assert_close(batch, 0.5 * tckd.mean() + beta.mean() * nckd.mean())
    assert_close(sample, (0.5 * tckd + beta * nckd).mean())
    assert abs(batch.item() - sample.item()) > 1e-3

"""MLKD and CRLD: the recorded values, what their masks and options do, and the views that they ask for."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from edkd.distillers.base import Batch, Distiller, StrongView
from edkd.distillers.crld import CRLD
from edkd.distillers.mlkd import MLKD, MLKDOneView
from edkd.models.base import Prediction
from tests.golden.methods import CASES, assert_recorded, normal

MLKD_VALUES = {
    "ce_weight": 0.1, "kd_weight": 0.9, "temperature": 4.0,
    "masking": "published", "strong_temperatures": "published", "standardise": False,
}  # fmt: skip
CRLD_VALUES = {
    "ce_weight": 1.0, "within_weight": 2.0, "cross_weight": 0.5, "temperature": 4.0,
    "weak_threshold": 0.9, "strong_threshold": 0.2, "mask_by": "term",
}  # fmt: skip
RECORDED_NAMES = {
    "loss_ce": "ce", "loss_kd": "kd", "loss_cc": "class", "loss_bc": "batch",
    "loss_kd_wv": "within", "loss_kd_cv": "cross",
}  # fmt: skip


def recorded_logits(inputs: dict[str, Any], strong: bool) -> tuple[list[Tensor], Tensor]:
    """Student and teacher on the weak view, then on the strong one; and the targets."""
    stream = np.random.RandomState(inputs["seed"])
    shape = (inputs["batch"], inputs["classes"])
    scales = (inputs["student_scale"], inputs["teacher_scale"]) * (2 if strong else 1)
    made = [normal(stream, *shape) * scale for scale in scales]
    target = torch.as_tensor(stream.randint(0, shape[1], size=shape[0]))
    for teacher in made[1::2]:
        teacher[torch.arange(shape[0]), target] += inputs["teacher_boost"]
    return made, target


def batch_of(target: Tensor, strong: list[Tensor]) -> Batch:
    view = StrongView(*map(Prediction, strong)) if strong else None
    return Batch(torch.arange(len(target)), target, torch.tensor(1.0), view)


def method_of(name: str, parameters: dict[str, Any]) -> Distiller:
    if name == "crld":
        renamed = {"wv_weight": "within_weight", "cv_weight": "cross_weight"}
        renamed |= {"tau_w": "weak_threshold", "tau_s": "strong_threshold"}
        return CRLD(**{**CRLD_VALUES, **{renamed.get(key, key): value for key, value in parameters.items()}})
    values = {**MLKD_VALUES, **parameters}
    variant = values.pop("variant")
    values["standardise"] = variant == "ls"
    if variant == "one_view":
        del values["strong_temperatures"]
    return (MLKDOneView if variant == "one_view" else MLKD)(**values)


@pytest.mark.parametrize(
    ("name", "case"), [(name, case) for name in ("mlkd", "crld") for case in range(len(CASES["logits"][name]))]
)
def test_the_recorded_values_and_gradients(name: str, case: int) -> None:
    recorded = CASES["logits"][name][case]
    method = method_of(name, recorded["parameters"])
    (student, teacher, *strong), target = recorded_logits(recorded["inputs"], method.needs_strong_view)
    for each in (student, *strong[:1]):
        each.requires_grad_()
    outcome = method(Prediction(student), Prediction(teacher), batch_of(target, strong))
    assert {*outcome.losses} == {*method.loss_names}
    for key, value in recorded["losses"].items():
        assert outcome.losses[RECORDED_NAMES[key]].item() == pytest.approx(value, rel=1e-9)
    total = torch.stack(list(outcome.losses.values())).sum()
    assert total.item() == pytest.approx(recorded["loss"], rel=1e-9)
    total.backward()
    for key, expected in recorded["grad"].items():
        assert_recorded({"student_strong": strong[0] if strong else None}.get(key, student).grad, expected)
    if name == "crld":
        kept = [outcome.metrics[f"train/kept_{view}"].item() * len(target) for view in ("weak", "strong")]
        assert kept == pytest.approx(recorded["kept"])


def random_step(method: Distiller, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    torch.manual_seed(0)
    student, teacher, *strong = ((scale * torch.randn(6, 5)).to(dtype) for _ in range(4))
    return method(Prediction(student), Prediction(teacher), batch_of(torch.arange(6) % 5, strong)).losses


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", [MLKD(**MLKD_VALUES), CRLD(**CRLD_VALUES)])
def test_losses_are_finite_at_extreme_logits_and_zero_for_equal_predictions(
    method: Distiller, dtype: torch.dtype
) -> None:
    assert all(loss.isfinite() for loss in random_step(method, 1e4, dtype).values())
    same = Prediction(torch.randn(6, 5).to(dtype))
    batch = Batch(torch.arange(6), torch.arange(6) % 5, torch.tensor(1.0), StrongView(same, same))
    losses = method(same, same, batch).losses
    assert all(losses[name].abs() < 1e-5 for name in losses if name != "ce")


def test_masking_per_sample_keeps_the_losses_of_the_less_confident_half() -> None:
    teacher = torch.tensor([[9.0, 0.0], [1.0, 0.0]])
    student = Prediction(torch.tensor([[-5.0, 0.0], [1.0, 0.0]]))  # wrong where the teacher is confident
    batch = batch_of(torch.tensor([0, 0]), [])
    values = {name: value for name, value in MLKD_VALUES.items() if name != "strong_temperatures"}
    published, per_sample = (
        MLKDOneView(**{**values, "masking": masking})(student, Prediction(teacher), batch).losses["kd"]
        for masking in ("published", "per_sample")
    )
    assert published > 1
    assert per_sample.abs() < 1e-6


def test_the_options_change_what_they_say() -> None:
    assert (
        random_step(MLKD(**{**MLKD_VALUES, "strong_temperatures": "all"}))["kd"]
        != random_step(MLKD(**MLKD_VALUES))["kd"]
    )
    values = {**CRLD_VALUES, "weak_threshold": 1.0, "strong_threshold": 0.0}  # nothing weak is kept, all strong is
    by_term, by_view = random_step(CRLD(**values)), random_step(CRLD(**{**values, "mask_by": "teacher_view"}))
    assert (by_term["within"], by_term["cross"] > by_view["cross"] > 0) == (0, True)
    assert by_view["within"] > 0

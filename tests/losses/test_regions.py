"""Losses on the logits of regions: recorded values and gradients, the regions themselves, and their weights."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edkd import losses
from tests.golden.methods import CASES, assert_recorded, fill, normal

each_case = pytest.mark.parametrize(
    "case", CASES["logits"]["sdd"], ids=lambda case: f"{case['parameters']['on']}-{case['inputs']['seed']}"
)


def classifiers(classes: int, student: int, teacher: int) -> nn.ModuleDict:
    """The two classifiers of a case, under the names that the filling rule goes by."""
    made = {
        name: nn.ModuleDict({"classifier": nn.Linear(width, classes)})
        for name, width in (("student", student), ("teacher", teacher))
    }
    both = nn.ModuleDict(made).double()
    fill(both)
    return both


def each_of(parameters: dict) -> losses.RowLoss:
    temperature = parameters["temperature"]

    def each(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        if parameters["on"] == "kd":
            return losses.kd_per_sample(student, teacher, temperature)
        if parameters["on"] == "dkd":
            parts = losses.decouple(student, teacher, target, temperature)
            return parameters["alpha"] * parts.tckd + parameters["beta"] * parts.nckd
        return losses.nkd_per_sample(student, teacher, target, parameters["gamma"], temperature, mask_target=False)

    return each


@each_case
def test_recorded_values_and_gradients(case: dict) -> None:
    inputs, parameters = case["inputs"], case["parameters"]
    both = classifiers(inputs["classes"], parameters["student_map"][0], parameters["teacher_map"][0])
    stream = np.random.RandomState(inputs["seed"])
    student, teacher = (normal(stream, inputs["batch"], *parameters[f"{who}_map"]) for who in ("student", "teacher"))
    own, theirs = both["student"]["classifier"], both["teacher"]["classifier"]
    student.requires_grad_()
    of_student = losses.regional_logits(student, own.weight, own.bias, parameters["scales"])
    of_teacher = losses.regional_logits(teacher, theirs.weight, theirs.bias, parameters["scales"])
    target = torch.tensor(case["targets"])
    loss = losses.sdd(of_student, of_teacher, target, each_of(parameters))
    loss.backward()

    assert loss.item() == pytest.approx(case["loss"], rel=1e-9)
    assert_recorded(of_student.mT, case["student_logits"])
    assert (losses.regional_weights(of_teacher, target) == 2).sum() == case["disagreeing_regions"]
    gradients = {"student_map": student, "classifier_weight": own.weight, "classifier_bias": own.bias}
    assert case["grad"].keys() == gradients.keys()
    for name, recorded in case["grad"].items():
        assert_recorded(gradients[name].grad, recorded)
    assert theirs.weight.grad is None


def test_the_regions_are_the_cells_row_by_row_the_whole_image_first() -> None:
    last_map = torch.arange(16.0).reshape(1, 1, 4, 4)
    logits = losses.regional_logits(last_map, torch.tensor([[1.0], [2.0]]), torch.tensor([0.0, 1.0]), [1, 2])
    assert logits[0, :, 0].tolist() == [7.5, 2.5, 4.5, 10.5, 12.5]
    assert logits[0, :, 1].tolist() == [16.0, 6.0, 10.0, 22.0, 26.0]


def test_nkd_is_its_two_sums() -> None:
    stream = np.random.RandomState(0)
    student, teacher = normal(stream, 4, 5), normal(stream, 4, 5)
    target = torch.tensor([0, 2, 4, 1])
    for masked in (True, False):
        found = losses.nkd_per_sample(student, teacher, target, 1.5, 3.0, masked)
        for i, y in enumerate(target.tolist()):
            kept = [j for j in range(5) if j != y] if masked else list(range(5))
            first = teacher[i].softmax(0)[y] * student[i].log_softmax(0)[y]
            second = ((teacher[i, kept] / 3).softmax(0) * (student[i, kept] / 3).log_softmax(0)).sum()
            assert found[i].item() == pytest.approx((-first - 1.5 * 9 * second).item(), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [True, False])
def test_extreme_logits_stay_finite(dtype: torch.dtype, masked: bool) -> None:
    values = np.random.RandomState(0).choice([-1e4, 0.0, 1e4], size=(2, 16, 3))
    student, teacher = torch.as_tensor(values, dtype=dtype)
    student = student.clone().requires_grad_()
    value = losses.nkd_per_sample(student, teacher, torch.arange(16) % 3, 8.0, 4.0, masked).mean()
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite() and student.grad.isfinite().all()

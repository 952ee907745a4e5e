"""FitNet: recorded numbers, the three kinds of regressor, and pairs that cannot be matched."""

import numpy as np
import pytest
import torch
from torch import nn

from edkd import models
from edkd.distillers.base import Batch, Shapes, Spec
from edkd.distillers.fitnet import FitNet
from edkd.errors import EdkdError
from edkd.models.base import Prediction
from tests.distillers.pairs import FIELD
from tests.golden.methods import CASES, assert_recorded, fill, normal

Shape = tuple[int, int, int]
ENLARGED = {  # pairs of which the student's map at stage 2 is the smaller one
    *("resnet50-mobilenetv2", "resnet50-vgg8", "resnet32x4-shufflenetv1", "resnet32x4-shufflenetv2"),
    *("resnet32x4-mobilenetv2", "wrn_40_2-shufflenetv1"),
}


def made(student: Shape, teacher: Shape, *, stage: int = 0) -> FitNet:
    method = FitNet(ce_weight=1.0, feat_weight=100.0, hint_stage=stage)
    method.setup(Spec(Shapes((student,), (), 5, student), Shapes((teacher,), (), 5, teacher), 3, 10))
    return method


@pytest.mark.parametrize("case", CASES["features"]["fitnet"], ids=lambda case: f"seed{case['inputs']['seed']}")
def test_recorded_values_gradients_and_statistics(case: dict) -> None:
    inputs = case["inputs"]
    (student_shape,), (teacher_shape,) = inputs["student_maps"], inputs["teacher_maps"]
    method = made(tuple(student_shape), tuple(teacher_shape)).double()
    fill(method)
    stream = np.random.RandomState(inputs["seed"])
    student = normal(stream, inputs["batch"], *student_shape).requires_grad_()
    teacher = normal(stream, inputs["batch"], *teacher_shape)
    logits = torch.zeros(inputs["batch"], 3, dtype=torch.float64)
    batch = Batch(torch.arange(inputs["batch"]), torch.zeros(inputs["batch"], dtype=torch.int64), torch.tensor(1.0))
    loss = method(Prediction(logits, (student,)), Prediction(logits, (teacher,)), batch).losses["kd"]
    loss.backward()

    assert loss.item() == pytest.approx(case["loss"], rel=1e-9)
    gradients = {"student": student.grad, **{name: each.grad for name, each in method.named_parameters()}}
    for name, recorded in case["grad"].items():
        assert_recorded(gradients[name], recorded)
    for name, recorded in case["after"].items():
        assert_recorded(method.state_dict()[name], recorded)
    conv = method.conv_reg.conv
    assert list(conv.weight.shape) == case["kernel"]
    assert conv.stride == (case["stride"], case["stride"])
    assert isinstance(conv, nn.ConvTranspose2d) is case["transposed"]


@pytest.mark.parametrize("pair", FIELD)
def test_every_pair_of_the_field_can_be_matched(pair: str) -> None:
    def feats(name: str) -> tuple[torch.Tensor, ...]:
        return getattr(models, name)(num_classes=100).eval()(torch.zeros(2, 3, 32, 32), want_feats=True).feats

    with torch.device("meta"):
        teacher, student = (feats(name) for name in pair.split("-"))
        method = FitNet(ce_weight=1.0, feat_weight=100.0, hint_stage=2)
        own, taught = (
            Shapes(tuple(tuple(each.shape[1:]) for each in maps), (), 1, (1, 1, 1)) for maps in (student, teacher)
        )
        method.setup(Spec(own, taught, 100, 10))
        assert method.conv_reg(student[2]).shape == teacher[2].shape
    conv = method.conv_reg.conv
    assert isinstance(conv, nn.ConvTranspose2d) is (pair in ENLARGED)
    assert conv.kernel_size == ((4, 4) if pair in ENLARGED else (1, 1))


def test_the_constructor_allocates_nothing_and_setup_makes_the_regressor() -> None:
    assert not FitNet(ce_weight=1.0, feat_weight=100.0, hint_stage=2).state_dict()
    assert set(made((4, 8, 8), (6, 8, 8)).state_dict()) == {
        "conv_reg.conv.weight",
        "conv_reg.conv.bias",
        "conv_reg.bn.weight",
        "conv_reg.bn.bias",
        "conv_reg.bn.running_mean",
        "conv_reg.bn.running_var",
        "conv_reg.bn.num_batches_tracked",
    }


def test_both_losses_are_weighed_and_none_reaches_the_teacher() -> None:
    method = made((4, 8, 8), (6, 8, 8))
    method.ce_weight = 0.5
    logits, student = torch.randn(2, 3), torch.randn(2, 4, 8, 8)
    teacher = torch.randn(2, 6, 8, 8, requires_grad=True)
    batch = Batch(torch.arange(2), torch.tensor([0, 2]), torch.tensor(1.0))
    losses = method(Prediction(logits, (student,)), Prediction(logits, (teacher,)), batch).losses
    mse = (method.conv_reg(student) - teacher).square().mean()
    assert losses["ce"] == 0.5 * nn.functional.cross_entropy(logits, batch.target)
    assert losses["kd"].item() == pytest.approx(100 * mse.item(), rel=1e-5)
    losses["kd"].backward()
    assert teacher.grad is None
    assert all(parameter.grad is not None for parameter in method.parameters())


@pytest.mark.parametrize(
    ("student", "teacher", "stage", "message"),
    [
        ((4, 4, 4), (4, 16, 16), 0, "cannot match the student's 4x4 map with the teacher's 16x16"),
        ((4, 4, 4), (4, 4, 4), 1, "hint_stage is 1: student and teacher both have stages 0 to 0"),
        ((4, 4, 4), (4, 4, 4), -1, "hint_stage is -1"),
    ],
)
def test_what_cannot_be_matched_is_one_line(student: Shape, teacher: Shape, stage: int, message: str) -> None:
    with pytest.raises(EdkdError, match=message) as error:
        made(student, teacher, stage=stage)
    assert "\n" not in str(error.value)

"""Methods with modules of their own: recorded losses, gradients, weights' names, margins and evaluated logits."""

import copy
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edkd import losses
from edkd.distillers.base import Batch, Distiller, Outcome, Shapes, Spec
from edkd.distillers.catkd import CATKD
from edkd.distillers.cc import CC
from edkd.distillers.ofd import OFD
from edkd.distillers.reviewkd import ReviewKD
from edkd.distillers.simkd import SimKD
from edkd.distillers.vid import VID
from edkd.models.base import Classifier, Prediction
from tests.golden.methods import CASES, assert_recorded, fill, normal

STEM = (1, 1, 1)
Maps = list[Tensor]


def cases(method: str) -> pytest.MarkDecorator:
    recorded = CASES["features"][method]
    return pytest.mark.parametrize("case", recorded, ids=[f"seed{case['inputs']['seed']}" for case in recorded])


def shapes_of(maps: Sequence[Sequence[int]], pooled: int = 1) -> Shapes:
    as_tuples = tuple((c, h, w) for c, h, w in maps)
    return Shapes((STEM, *as_tuples), (STEM, *as_tuples), pooled, as_tuples[-1])


def spec(student: Shapes, teacher: Shapes, **more: Any) -> Spec:
    return Spec(student, teacher, 10, 100, **more)


def predicted(maps: Sequence[Tensor], pooled: Tensor | None = None, classifier: Classifier | None = None) -> Prediction:
    """A network's maps, in every place where a method may look for them, behind a stem."""
    stages = (torch.zeros(()), *maps)
    logits = torch.zeros(len(maps[0]), 10, dtype=torch.float64)
    return Prediction(logits, stages, stages, pooled, maps[-1], classifier)


def drawn(case: dict) -> tuple[Maps, Maps, np.random.RandomState]:
    """Student's and teacher's maps, and the stream behind them."""
    inputs = case["inputs"]
    stream = np.random.RandomState(inputs["seed"])
    student, teacher = (
        [normal(stream, inputs["batch"], *shape) for shape in inputs[f"{who}_maps"]] for who in ("student", "teacher")
    )
    return [each.requires_grad_() for each in student], teacher, stream


def outcome_of(method: Distiller, student: Prediction, teacher: Prediction, epoch: float = 1.0) -> Outcome:
    count = len(student.logits)
    target = torch.zeros(count, dtype=torch.int64)
    return method(student, teacher, Batch(torch.arange(count), target, torch.tensor(epoch, dtype=torch.float64)))


def kd(*arguments: Any) -> Tensor:
    return outcome_of(*arguments).losses["kd"]


def assert_gradients(case: dict, found: Mapping[str, Tensor]) -> None:
    for name, recorded in case["grad"].items():
        assert_recorded(found[name], recorded)


def gradients(method: nn.Module, **others: Tensor) -> dict[str, Tensor]:
    return {name: each.grad for name, each in (*method.named_parameters(), *others.items()) if each.grad is not None}


@cases("cc")
def test_cc(case: dict) -> None:
    inputs, parameters = case["inputs"], case["parameters"]
    widths = parameters["student_dim"], parameters["teacher_dim"]
    method = CC(ce_weight=1.0, feat_weight=parameters["weight"], feat_dim=parameters["dim"])
    method.setup(spec(*(Shapes((), (), width, STEM) for width in widths)))
    fill(method.double())
    stream = np.random.RandomState(inputs["seed"])
    student, teacher = (normal(stream, inputs["batch"], width) for width in widths)
    student.requires_grad_()
    logits = torch.zeros(inputs["batch"], 10, dtype=torch.float64)
    loss = kd(method, Prediction(logits, pooled_feat=student), Prediction(logits, pooled_feat=teacher))
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-9)
    assert_gradients(case, gradients(method, student=student))


@cases("vid")
def test_vid_with_trained_log_scales(case: dict) -> None:
    inputs, parameters = case["inputs"], case["parameters"]
    method = VID(
        ce_weight=1.0,
        feat_weight=parameters["weight"],
        init_pred_var=parameters["init_pred_var"],
        eps=parameters["eps"],
    )
    method.setup(spec(shapes_of(inputs["student_maps"]), shapes_of(inputs["teacher_maps"])))
    assert method.log_scales[0][0].item() == pytest.approx(case["initial_log_scale"], rel=1e-6)
    fill(method.double())
    for i, log_scale in enumerate(method.log_scales):
        noise = np.random.RandomState(zlib.crc32(f"log_scales.{i}".encode())).standard_normal(len(log_scale))
        start = case["initial_log_scale"] + parameters["log_scale_noise"] * noise
        log_scale.data = torch.as_tensor(start)
    student, teacher, _ = drawn(case)
    loss = kd(method, predicted(student), predicted(teacher))
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-9)
    assert_gradients(case, gradients(method, **{f"student.{i}": each for i, each in enumerate(student)}))


@cases("ofd")
def test_ofd_and_its_margins(case: dict) -> None:
    inputs, parameters = case["inputs"], case["parameters"]
    norms = []
    for i, (channels, _, _) in enumerate(inputs["teacher_maps"]):
        weight, bias = (
            np.random.RandomState(zlib.crc32(f"teacher.bn.{i}.{name}".encode())).standard_normal(channels)
            for name in ("weight", "bias")
        )
        norms.append((torch.as_tensor(1 + 0.5 * weight), torch.as_tensor(2 * bias)))
    method = OFD(ce_weight=1.0, feat_weight=parameters["weight"], kernel_size=parameters["kernel_size"])
    maps = shapes_of(inputs["student_maps"]), shapes_of(inputs["teacher_maps"])
    method.setup(spec(*maps, teacher_norms=tuple(norms)))
    for i, margins in enumerate(case["margins"]):
        assert method.get_buffer(f"margin{i}").tolist() == pytest.approx(margins, rel=1e-9)
    method.connectors.double()
    named = nn.ModuleDict({"connectors": nn.ModuleDict({"connectors": method.connectors})})
    fill(named)
    student, teacher, _ = drawn(case)
    loss = kd(method, predicted(student), predicted(teacher))
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-9)
    assert_gradients(case, gradients(named, **{f"student.{i}": each for i, each in enumerate(student)}))


def test_a_margin_is_the_mean_of_the_negative_part() -> None:
    """Against the samples themselves: a channel that is often negative, one that is rarely, and one switched off."""
    margins = losses.ofd_margin(torch.tensor([2.0, -1.0, 1.0, 0.0]), torch.tensor([0.5, -1.0, 5.0, -0.5]))
    samples = torch.randn(10**6, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([2.0, 1.0])
    samples += torch.tensor([0.5, -1.0])
    means = [column[column < 0].mean().item() for column in samples.T]
    assert margins.tolist() == pytest.approx([*means, -3.0, -0.5], rel=5e-3)


@cases("reviewkd")
def test_reviewkd_with_heights_from_the_maps(case: dict) -> None:
    inputs, parameters = case["inputs"], case["parameters"]
    shapes = [shapes_of(inputs[f"{who}_maps"], inputs[f"{who}_pooled"]) for who in ("student", "teacher")]
    method = ReviewKD(
        ce_weight=1.0,
        feat_weight=parameters["weight"],
        max_width=512,
        warmup_epochs=parameters["warmup_epochs"],
    )
    method.setup(spec(*shapes))
    trained = {name: list(each.shape) for name, each in method.named_parameters()}
    assert trained == case["parameters_of_abfs"]
    assert [fusion.size for fusion in method.abfs] == parameters["shapes"]
    assert [fusion.out_size for fusion in method.abfs] == parameters["out_shapes"]
    fill(method.double())
    stream = np.random.RandomState(inputs["seed"])
    batch = inputs["batch"]
    student = [normal(stream, batch, *shape).requires_grad_() for shape in inputs["student_maps"]]
    student_pooled = normal(stream, batch, inputs["student_pooled"]).requires_grad_()
    teacher = [normal(stream, batch, *shape) for shape in inputs["teacher_maps"]]
    teacher_pooled = normal(stream, batch, inputs["teacher_pooled"])
    loss = kd(method, predicted(student, student_pooled), predicted(teacher, teacher_pooled), parameters["epoch"])
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-9)
    of_student = {f"student.{i}": each for i, each in enumerate(student)}
    assert_gradients(case, gradients(method, student_pooled=student_pooled, **of_student))


@cases("simkd")
def test_simkd_and_the_logits_that_it_evaluates(case: dict) -> None:
    inputs, parameters = case["inputs"], case["parameters"]
    goal = inputs["teacher_maps"][-1][0]
    named = nn.ModuleDict({"classifier": nn.Linear(goal, parameters["classes"])}).double()
    fill(named)
    classifier = Classifier(named["classifier"].weight.detach(), named["classifier"].bias.detach())
    method = SimKD(feat_weight=parameters["weight"], factor=parameters["factor"])
    maps = shapes_of(inputs["student_maps"]), shapes_of(inputs["teacher_maps"])
    method.setup(spec(*maps, classifier=classifier))
    projector = {name: list(each.shape) for name, each in method.state_dict().items() if name.startswith("transfer")}
    assert projector == case["projector"]
    transfer = nn.ModuleDict({"transfer": method.transfer.double()})
    fill(transfer)
    student, teacher, _ = drawn(case)
    assert_recorded(copy.deepcopy(method).predict(predicted(student)).logits, case["student_logits"])
    outcome = outcome_of(method, predicted(student), predicted(teacher))
    assert outcome.logits is not None and not outcome.logits.requires_grad
    assert_recorded(outcome.logits, case["student_logits"])  # of the same pass
    loss = outcome.losses["kd"]
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-9)
    assert_gradients(case, gradients(transfer, student=student[0]))
    assert_recorded(method.eval().predict(predicted(student)).logits, case["student_logits_eval"])


@cases("catkd")
def test_catkd(case: dict) -> None:
    inputs, parameters = case["inputs"], case["parameters"]
    classes, heads = parameters["classes"], {}
    for who in ("student", "teacher"):
        head = nn.Linear(inputs[f"{who}_maps"][0][0], classes).double()
        fill(nn.ModuleDict({who: nn.ModuleDict({"classifier": head})}))
        heads[who] = Classifier(head.weight, head.bias)
    method = CATKD(
        ce_weight=1.0,
        feat_weight=parameters["weight"],
        resolution=parameters["resolution"],
        normalize=parameters["normalize"],
        binarize=parameters["binarize"],
    )
    student, teacher, stream = drawn(case)
    target = torch.as_tensor(stream.randint(0, classes, size=inputs["batch"]))
    logits = losses.class_maps(student[0], heads["student"].weight).mean(dim=(2, 3))  # without a bias, as recorded
    of_student = predicted(student, classifier=heads["student"])._replace(logits=logits)
    batch = Batch(torch.arange(len(target)), target, torch.tensor(1.0))
    found = method(of_student, predicted(teacher, classifier=heads["teacher"]), batch).losses
    found["kd"].backward()
    assert found["kd"].item() == pytest.approx(case["losses"]["loss_CAT"], rel=1e-9)
    if not parameters["only_cat"]:
        assert found["ce"].item() == pytest.approx(case["losses"]["loss_CE"], rel=1e-9)
    assert_gradients(case, {"student": student[0].grad, "classifier_weight": heads["student"].weight.grad})
    assert heads["teacher"].weight.grad is None

"""Distillers: named losses and metrics, warm-up, and what the trainer may rely on."""

import inspect
import math

import pytest
import torch

from edkd import losses
from edkd.distillers import Batch, Distiller, Outcome
from edkd.distillers.deepkd import DeepDKD, DeepKD
from edkd.distillers.dist import DIST
from edkd.distillers.dkd import DKD
from edkd.distillers.edkd import EDKD
from edkd.distillers.kd import KD
from edkd.distillers.nkd import NKD
from edkd.distillers.normkd import NormDKD, NormKD
from edkd.distillers.rld import RLD
from edkd.distillers.ttm import TTM
from edkd.distillers.vanilla import Vanilla
from edkd.distillers.wttm import WTTM
from edkd.models.base import Prediction

KD_ARGS = {"ce_weight": 0.1, "kd_weight": 0.9, "temperature": 4.0}
DKD_ARGS = {"ce_weight": 1.0, "alpha": 1.0, "beta": 8.0, "temperature": 4.0, "warmup_epochs": 20}
EDKD_ARGS = {**DKD_ARGS, "weighting": "batch"}
NORM_DKD_ARGS = {"ce_weight": 1.0, "alpha": 4.0, "beta": 5.0, "temperature_norm": 2.0, "warmup_epochs": 20}
ALL = {
    Vanilla: {},
    KD: KD_ARGS,
    DKD: DKD_ARGS,
    EDKD: EDKD_ARGS,
    DIST: {"ce_weight": 1.0, "kd_weight": 2.0, "beta": 1.0, "gamma": 1.0, "temperature": 4.0},
    NKD: {"ce_weight": 1.0, "kd_weight": 1.0, "gamma": 1.5, "temperature": 1.0},
    TTM: {"ce_weight": 1.0, "kd_weight": 45.0, "exponent": 0.1},
    WTTM: {"ce_weight": 1.0, "kd_weight": 4.0, "exponent": 0.2},
    RLD: {**DKD_ARGS, "alpha_temperature": 4.0, "standardise": True},
    NormKD: {"ce_weight": 0.1, "kd_weight": 0.9, "temperature_norm": 2.0},
    NormDKD: NORM_DKD_ARGS,
    DeepKD: {"ce_weight": 0.1, "temperature": 4.0, "top_k": 0, "weighting": "batch"},
    DeepDKD: {**DKD_ARGS, "top_k": 2},
}
YOUNGER = {kind: {"standardise"} for kind in (KD, DKD, EDKD)}  # than the first runs, whose hashes it must not enter
every_distiller = pytest.mark.parametrize(("kind", "arguments"), ALL.items(), ids=[kind.__name__ for kind in ALL])
DECOUPLED = {kind: ALL[kind] for kind in (DKD, EDKD, RLD, NormDKD)}
decoupled = pytest.mark.parametrize(("kind", "arguments"), DECOUPLED.items(), ids=[kind.__name__ for kind in DECOUPLED])


def step(
    seed: int = 0, batch: int = 6, classes: int = 10, epoch: float = 5, dtype: torch.dtype = torch.float32
) -> tuple[Prediction, Prediction, Batch]:
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(batch, classes, generator=generator).to(dtype).requires_grad_()
    teacher = 3 * torch.randn(batch, classes, generator=generator)
    target = torch.randint(0, classes, (batch,), generator=generator)
    return Prediction(student), Prediction(teacher), Batch(torch.arange(batch), target, torch.tensor(float(epoch)))


def kd_part(distiller: Distiller, epoch: float) -> float:
    return distiller(*step(epoch=epoch)).losses["kd"].item()


def test_vanilla_is_cross_entropy_without_a_teacher() -> None:
    student, _, batch = step()
    outcome = Vanilla()(student, None, batch)
    assert not Vanilla.needs_teacher
    assert outcome.metrics == {}
    assert outcome.losses.keys() == {"ce"}
    assert torch.equal(outcome.losses["ce"], torch.nn.functional.cross_entropy(student.logits, batch.target))


def test_kd_weighs_both_losses() -> None:
    student, teacher, batch = step()
    ce = losses.cross_entropy(student.logits, batch.target)
    kd = losses.kd(student.logits, teacher.logits, 4.0)
    outcome = KD(**KD_ARGS)(student, teacher, batch)
    assert outcome.metrics == {}
    assert {name: loss.item() for name, loss in outcome.losses.items()} == pytest.approx(
        {"ce": 0.1 * ce.item(), "kd": 0.9 * kd.item()}
    )


def test_kd_has_no_warmup() -> None:
    assert kd_part(KD(**KD_ARGS), epoch=1) == kd_part(KD(**KD_ARGS), epoch=100)


def test_dkd_is_its_loss_times_the_warmup() -> None:
    student, teacher, batch = step(epoch=5)
    outcome = DKD(**{**DKD_ARGS, "ce_weight": 0.5, "alpha": 2.0, "beta": 6.0})(student, teacher, batch)
    dkd = losses.dkd(student.logits, teacher.logits, batch.target, 2.0, 6.0, 4.0)
    ce = losses.cross_entropy(student.logits, batch.target)
    assert {name: loss.item() for name, loss in outcome.losses.items()} == pytest.approx(
        {"ce": 0.5 * ce.item(), "kd": 0.25 * dkd.item()}
    )


@pytest.mark.parametrize("weighting", ["batch", "sample"])
def test_edkd_is_its_loss_times_the_warmup(weighting: str) -> None:
    student, teacher, batch = step(epoch=5)
    outcome = EDKD(**{**EDKD_ARGS, "alpha": 2.0, "weighting": weighting})(student, teacher, batch)
    edkd = losses.edkd(student.logits, teacher.logits, batch.target, 2.0, 8.0, 4.0, weighting)[0]
    ce = losses.cross_entropy(student.logits, batch.target)
    assert {name: loss.item() for name, loss in outcome.losses.items()} == pytest.approx(
        {"ce": ce.item(), "kd": 0.25 * edkd.item()}
    )


def test_edkd_reports_beta_and_confidence() -> None:
    student, teacher, batch = step()
    metrics = EDKD(**EDKD_ARGS)(student, teacher, batch).metrics
    p_target = (teacher.logits / 4).softmax(dim=1).gather(1, batch.target.unsqueeze(1)).squeeze(1)
    confidence = torch.maximum(p_target, 1 - p_target)
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(
        {
            "edkd/confidence_mean": confidence.mean().item(),
            "edkd/beta_mean": (8 * torch.exp(confidence - 1)).mean().item(),
        }
    )
    assert not any(value.requires_grad for value in metrics.values())
    assert 8 * math.exp(-0.5) <= metrics["edkd/beta_mean"].item() <= 8


@decoupled
def test_warmup_rises_linearly_from_the_first_epoch_and_stops_at_one(kind: type[Distiller], arguments: dict) -> None:
    distiller = kind(**arguments)
    full = kd_part(kind(**{**arguments, "warmup_epochs": 0}), epoch=1)
    weights = [kd_part(distiller, epoch) / full for epoch in (1, 10, 20, 21, 240)]
    assert weights == pytest.approx([0.05, 0.5, 1, 1, 1])


@decoupled
def test_the_weight_follows_the_epoch_tensor_in_place(kind: type[Distiller], arguments: dict) -> None:
    """A captured graph is replayed with the same tensors: the weight must come from the tensor, each time anew."""
    student, teacher, batch = step(epoch=1)
    distiller = kind(**arguments)
    first = distiller(student, teacher, batch).losses["kd"].item()
    batch.epoch.fill_(2)
    assert distiller(student, teacher, batch).losses["kd"].item() == pytest.approx(2 * first)


@every_distiller
def test_losses_reach_the_student_only(kind: type[Distiller], arguments: dict) -> None:
    student, teacher, batch = step()
    teacher.logits.requires_grad_()
    outcome = kind(**arguments)(student, teacher, batch)
    assert isinstance(outcome, Outcome)
    sum(outcome.losses.values()).backward()
    assert student.logits.grad.abs().sum() > 0
    assert teacher.logits.grad is None


@every_distiller
def test_half_precision_logits_give_single_precision_losses(kind: type[Distiller], arguments: dict) -> None:
    student, teacher, batch = step(dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outcome = kind(**arguments)(student, teacher._replace(logits=teacher.logits.half()), batch)
    assert all(loss.dtype == torch.float32 for loss in outcome.losses.values())


@every_distiller
def test_the_last_batch_may_hold_one_sample(kind: type[Distiller], arguments: dict) -> None:
    student, teacher, batch = step(batch=1, classes=2)
    outcome = kind(**arguments)(student, teacher, batch)
    assert all(loss.isfinite() and loss.ndim == 0 for loss in outcome.losses.values())


@every_distiller
def test_arguments_are_hinted_keywords_whose_values_live_in_yaml(kind: type[Distiller], arguments: dict) -> None:
    parameters = inspect.signature(kind).parameters
    assert parameters.keys() == arguments.keys() | YOUNGER.get(kind, set())
    for name, parameter in parameters.items():
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
        assert (parameter.default is inspect.Parameter.empty) is (name in arguments)
        assert parameter.annotation is not inspect.Parameter.empty


@every_distiller
def test_logit_methods_have_no_memory_and_need_no_features(kind: type[Distiller], arguments: dict) -> None:
    distiller = kind(**arguments)
    assert not distiller.state_dict()
    assert not distiller.needs_feats
    assert distiller.needs_teacher is (kind is not Vanilla)


@pytest.mark.parametrize("kind", [kind for kind in ALL if kind is not Vanilla])
def test_a_missing_teacher_is_named(kind: type[Distiller]) -> None:
    student, _, batch = step()
    with pytest.raises(TypeError, match="needs the teacher's prediction"):
        kind(**ALL[kind])(student, None, batch)


def test_a_method_without_forward_is_refused() -> None:
    class Unfinished(Distiller):
        pass

    with pytest.raises(TypeError, match="forward"):
        Unfinished()

"""Further methods on logits: recorded steps, weights, and the values of each pair."""

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edkd import losses, models
from edkd.config import schema
from edkd.config.instantiate import build
from edkd.distillers.base import Batch, Distiller, Shapes, Spec
from edkd.distillers.ctkd import CTKD
from edkd.distillers.deepkd import DeepDKD, DeepKD
from edkd.errors import EdkdError
from edkd.models.base import Prediction
from edkd.training.optimizers import SGD
from tests.distillers.pairs import FIELD
from tests.golden.methods import CASES, assert_recorded, draw_logits

METHODS = [
    "kd_ls",
    "dkd_ls",
    "edkd_ls",
    "dist",
    "nkd",
    "ttm",
    "wttm",
    "rld",
    "normkd",
    "normkd_dkd",
    "ctkd",
    "deepkd",
    "deepkd_dkd",
]
each_method = pytest.mark.parametrize("method", METHODS)
Z = losses.standardise
CTKD_ARGS = {
    "ce_weight": 0.1,
    "kd_weight": 0.9,
    "t_start": 1.0,
    "t_end": 20.0,
    "decay": "cosine",
    "decay_max": 0.0,
    "decay_min": -1.0,
    "decay_loops": 10,
    "standardise": False,
}
NO_FEATS = Shapes((), (), 1, (1, 1, 1))


@pytest.fixture(scope="module")
def configured(compose: Any) -> Any:
    """`configured(method, pair)`: the checked configuration of a method on a pair, with the optimiser it is for."""

    @functools.cache
    def made(method: str, pair: str) -> schema.Settings:
        optimizer = "deepkd" if method.startswith("deepkd") else "sgd"
        return schema.settings(compose(f"distiller={method}", f"optimizer={optimizer}", f"pair={pair}"), method)

    return made


def ready(cfg: schema.Settings, student: nn.Parameter | nn.Module, classes: int) -> tuple[Distiller, Any]:
    """The method of a configuration, and its optimiser over the student and the method."""
    distiller: Distiller = build(cfg.distiller, "distiller")
    distiller.setup(Spec(NO_FEATS, NO_FEATS, classes, 10))
    own = list(student.parameters()) if isinstance(student, nn.Module) else [student]
    values = {"lr": torch.tensor(0.01), "momentum": 0.9, "weight_decay": 5e-4}
    return distiller, build(cfg.optimizer, "optimizer", params=[*own, *distiller.parameters()], **values)


def at_epoch(target: Tensor, epoch: float) -> Batch:
    return Batch(torch.arange(len(target)), target, torch.tensor(epoch, dtype=torch.float64))


# The distillation losses of each method at epoch 5 with the values of resnet32x4-resnet8x4.
FORMULAS: dict[str, Any] = {
    "kd_ls": lambda s, t, y: {"kd": 9 * losses.kd(Z(s), Z(t), 2.0)},
    "dkd_ls": lambda s, t, y: {"kd": 0.25 * losses.dkd(Z(s), Z(t), y, 9.0, 72.0, 2.0)},
    "edkd_ls": lambda s, t, y: {"kd": 0.25 * losses.edkd(Z(s), Z(t), y, 1.0, 8.0, 2.0, "batch")[0]},
    "dist": lambda s, t, y: {"kd": 2 * losses.dist(s, t, 1.0, 1.0, 4.0)},
    "nkd": lambda s, t, y: {"kd": losses.nkd(s, t, y, 1.5, 1.0)},
    "ttm": lambda s, t, y: {"kd": 45 * losses.ttm(s, t, 0.1)},
    "wttm": lambda s, t, y: {"kd": 4 * losses.wttm(s, t, 0.2)},
    "rld": lambda s, t, y: {"kd": 0.25 * losses.rld(s, t, y, 1.0, 8.0, 4.0, 4.0)},
    "normkd": lambda s, t, y: {"kd": 0.9 * losses.normkd(s, t, 2.0)},
    "normkd_dkd": lambda s, t, y: {"kd": 0.25 * losses.normkd_dkd(s, t, y, 4.0, 5.0, 2.0)},
    "ctkd": lambda s, t, y: {"kd": 0.9 * losses.kd(s, t, 1 + 20 * torch.tensor(1.0).sigmoid().item())},
    "deepkd": lambda s, t, y: {
        "tckd": losses.decouple(s, t, y, 4.0).tckd.mean(),
        "nckd": (1 - (t / 4).softmax(1)[range(6), y]).mean() * losses.decouple(s, t, y, 4.0).nckd.mean(),
    },
    "deepkd_dkd": lambda s, t, y: {
        "tckd": 0.25 * losses.decouple(s, t, y, 4.0).tckd.mean(),
        "nckd": 0.25 * 8 * losses.decouple(s, t, y, 4.0).nckd.mean(),
    },
}
CE_WEIGHTS = {"kd_ls": 0.1, "normkd": 0.1, "ctkd": 0.1, "deepkd": 0.5}  # 1 for the others


@each_method
def test_losses_are_those_of_the_formula_with_its_weights(configured: Any, method: str) -> None:
    student, teacher, target = draw_logits(CASES["logits"]["dist"][0]["inputs"])
    distiller, _ = ready(configured(method, "resnet32x4-resnet8x4"), nn.Parameter(student.detach()), 10)
    outcome = distiller(Prediction(student), Prediction(teacher), at_epoch(target, 5))
    assert {*outcome.losses} == {*distiller.loss_names}
    ce = CE_WEIGHTS.get(method, 1.0) * losses.cross_entropy(student, target)
    expected = {"ce": ce, **FORMULAS[method](student, teacher, target)}
    found = {name: loss.item() for name, loss in outcome.losses.items()}
    assert found == pytest.approx({name: loss.item() for name, loss in expected.items()}, rel=1e-6)
    assert not any(value.requires_grad for value in outcome.metrics.values())


# Methods whose values depend on the pair: which do, and the published ones.
BY_PAIR: dict[str, tuple[list[str], dict[str, tuple[float, ...]]]] = {
    "kd_ls": (
        ["distiller.temperature", "distiller.kd_weight"],
        {
            "resnet32x4-resnet8x4": (2, 9),
            "vgg13-vgg8": (3, 9),
            "wrn_40_2-wrn_40_1": (2, 9),
            "wrn_40_2-wrn_16_2": (2, 9),
            "resnet56-resnet20": (2, 9),
            "resnet110-resnet32": (2, 9),
            "resnet32x4-shufflenetv2": (2, 9),
            "vgg13-mobilenetv2": (3, 9),
            "resnet50-mobilenetv2": (3, 1),
        },
    ),
    "dkd_ls": (
        ["distiller.temperature", "distiller.alpha", "distiller.beta"],
        {
            "resnet32x4-resnet8x4": (2, 9, 72),
            "vgg13-vgg8": (2, 15, 30),
            "wrn_40_2-wrn_40_1": (2, 12, 24),
            "wrn_40_2-wrn_16_2": (2, 12, 24),
            "resnet56-resnet20": (3, 18, 36),
            "resnet110-resnet32": (2, 15, 30),
            "resnet32x4-shufflenetv2": (2, 9, 72),
            "vgg13-mobilenetv2": (3, 9, 18),
            "resnet50-mobilenetv2": (2, 15, 30),
        },
    ),
    "normkd_dkd": (
        ["distiller.alpha", "distiller.beta"],
        {
            "resnet110-resnet32": (5, 4),
            "resnet56-resnet20": (7, 2),
            "resnet32x4-resnet8x4": (4, 5),
            "resnet32x4-shufflenetv2": (4, 5),
            "wrn_40_2-wrn_16_2": (4, 5),
            "wrn_40_2-shufflenetv1": (4, 5),
            "wrn_40_2-wrn_40_1": (3, 6),
            "vgg13-mobilenetv2": (3, 6),
            "vgg13-vgg8": (2, 7),
            "resnet50-mobilenetv2": (2, 7),
            "resnet32x4-shufflenetv1": (0.5, 8.5),
        },
    ),
    "deepkd": (
        ["distiller.ce_weight", "optimizer.delta_tckd", "optimizer.delta_nckd"],
        {
            "resnet32x4-resnet8x4": (0.5, -0.075, 0.075),
            "wrn_40_2-wrn_16_2": (0.6, -0.075, 0.085),
            "wrn_40_2-wrn_40_1": (0.1, -0.1, 0.05),
            "vgg13-vgg8": (0.1, -0.075, 0.05),
            "resnet56-resnet20": (0.1, -0.075, 0.025),
            "resnet110-resnet32": (0.1, -0.1, 0.05),
            "resnet32x4-shufflenetv1": (0.1, -0.075, 0.075),
            "resnet32x4-shufflenetv2": (0.1, -0.075, 0.075),
            "wrn_40_2-shufflenetv1": (0.1, -0.075, 0.085),
            "vgg13-mobilenetv2": (0.8, -0.075, 0.095),
            "resnet50-mobilenetv2": (0.1, -0.1, 0.025),
        },
    ),
    "deepkd_dkd": (
        ["distiller.beta", "optimizer.delta_tckd", "optimizer.delta_nckd"],
        {
            "resnet32x4-resnet8x4": (8, -0.075, 0.05),
            "wrn_40_2-wrn_16_2": (8, -0.1, 0.05),
            "wrn_40_2-wrn_40_1": (4, -0.1, 0.05),
            "vgg13-vgg8": (6, -0.075, 0.025),
            "resnet56-resnet20": (0.5, -0.075, 0.075),
            "resnet110-resnet32": (3, -0.075, 0),
            "resnet32x4-shufflenetv1": (8, -0.075, 0.085),
            "resnet32x4-shufflenetv2": (8, -0.075, 0.075),
            "wrn_40_2-shufflenetv1": (8, -0.075, 0.085),
            "vgg13-mobilenetv2": (1, -0.075, 0.08),
            "resnet50-mobilenetv2": (2, -0.1, 0.025),
        },
    ),
}


@pytest.mark.parametrize("method", BY_PAIR)
def test_the_values_of_each_pair_are_the_published_ones(configured: Any, method: str) -> None:
    names, published = BY_PAIR[method]
    found = {}
    for pair in published:
        cfg = configured(method, pair)
        nodes = {"distiller": cfg.distiller, "optimizer": cfg.optimizer}
        found[pair] = tuple(nodes[group][name] for group, name in (each.split(".") for each in names))
    assert found == published


def test_an_optimisers_values_of_a_pair_belong_to_that_optimiser(compose: Any) -> None:
    assert compose("distiller=deepkd", "optimizer=sgd", "pair=vgg13-vgg8")["optimizer"] == schema.SGD


@pytest.mark.parametrize("method", ["kd", "dkd", "edkd"])
def test_standardisation_is_an_option_that_older_runs_do_not_know(compose: Any, method: str) -> None:
    plain = schema.settings(compose(f"distiller={method}"), method).distiller
    asked = schema.settings(compose(f"distiller={method}", "+distiller.standardise=true"), method).distiller
    assert asked == {**plain, "standardise": True}
    assert "standardise" not in plain


@functools.cache
def logits_of_network(name: str, size: int) -> Tensor:
    torch.manual_seed(0)
    with torch.no_grad():
        return getattr(models, name)(num_classes=100)(torch.randn(4, 3, size, size)).logits


@pytest.mark.parametrize(
    ("pair", "size"), [*((pair, 32) for pair in FIELD), ("vgg13-mobilenetv2", 64)], ids=[*FIELD, "64x64"]
)
def test_every_method_steps_on_every_pair(configured: Any, pair: str, size: int) -> None:
    teacher, student = (logits_of_network(name, size) for name in pair.split("-"))
    batch = at_epoch(torch.tensor([0, 1, 50, 99]), 1)
    for method in METHODS:
        logits = nn.Parameter(student.clone())
        cfg = configured(method, pair if method in BY_PAIR else FIELD[0])
        distiller, optimizer = ready(cfg, logits, 100)
        total = optimizer.minimise(distiller(Prediction(logits), Prediction(teacher), batch).losses)
        assert total.isfinite(), method
        assert logits.isfinite().all() and not torch.equal(logits, student), method


@pytest.mark.parametrize("case", CASES["logits"]["ctkd"], ids=lambda case: case["parameters"]["decay"])
def test_recorded_steps_of_ctkd(case: dict) -> None:
    given = case["parameters"]
    student, teacher, target = draw_logits(case["inputs"])
    names = ("t_start", "t_end", "decay", "decay_max", "decay_min")
    values = {name: given[name] for name in names} | {"decay_loops": int(given["decay_loops"])}
    method = CTKD(**{**CTKD_ARGS, **values, "kd_weight": given["weight"]})
    method.setup(Spec(NO_FEATS, NO_FEATS, 10, 10))
    method.double().theta.data.fill_(given["theta"])
    optimizer = SGD(method.parameters(), lr=given["lr"], momentum=0.9, weight_decay=5e-4)
    for epoch, strength in enumerate(case.get("strength_by_epoch", ()), 1):
        assert method.strength(torch.tensor(float(epoch)).double()).item() == pytest.approx(strength, rel=1e-9)
    for recorded in case["steps"]:
        batch = at_epoch(target, recorded["epoch"])
        outcome = method(Prediction(student), Prediction(teacher), batch)
        kd = outcome.losses["kd"]
        assert outcome.metrics["ctkd/temperature"].item() == pytest.approx(recorded["temperature"], rel=1e-9)
        assert kd.item() == pytest.approx(given["weight"] * recorded["loss"], rel=1e-9)
        on_student, on_theta = torch.autograd.grad(kd, [student, method.theta], retain_graph=True)
        assert_recorded(on_student / given["weight"], recorded["grad"]["student"])
        assert on_theta.item() == pytest.approx(recorded["theta_grad"], rel=1e-9)
        optimizer.minimise({"kd": kd})
        assert method.theta.item() == pytest.approx(recorded["theta_after"], rel=1e-9)


@pytest.mark.parametrize("case", CASES["logits"]["deepkd_parts"], ids=lambda case: case["parameters"]["on"])
def test_recorded_parts_of_deepkd(case: dict) -> None:
    given = case["parameters"]
    student, teacher, target = draw_logits(case["inputs"])
    both = {"ce_weight": 1.0, "temperature": given["temperature"], "top_k": given["top_k"]}
    if given["on"] == "kd":
        method: Distiller = DeepKD(**both, weighting="batch")
    else:
        method = DeepDKD(**both, **{name: given[name] for name in ("alpha", "beta", "warmup_epochs")})
    outcome = method(Prediction(student), Prediction(teacher), at_epoch(target, given["epoch"]))
    for name in ("tckd", "nckd"):
        assert outcome.losses[name].item() == pytest.approx(case[name], rel=1e-9)
        (gradient,) = torch.autograd.grad(outcome.losses[name], student, retain_graph=True)
        assert_recorded(gradient, case["grad"][name])


def test_deepkd_weighed_by_sample_is_kd() -> None:
    student, teacher, target = draw_logits(CASES["logits"]["deepkd_parts"][0]["inputs"])
    method = DeepKD(ce_weight=1.0, temperature=4.0, top_k=0, weighting="sample")
    parts = method(Prediction(student), Prediction(teacher), at_epoch(target, 1)).losses
    assert (parts["tckd"] + parts["nckd"]).item() == pytest.approx(losses.kd(student, teacher, 4.0).item(), rel=1e-9)


def test_deepkd_refuses_more_top_classes_than_there_are() -> None:
    method = DeepKD(ce_weight=1.0, temperature=4.0, top_k=11, weighting="batch")
    with pytest.raises(EdkdError, match="distiller.top_k is 11: the data set has 10 classes"):
        method.setup(Spec(NO_FEATS, NO_FEATS, 10, 10))

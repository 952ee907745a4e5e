"""Methods on features and relations as they are configured: on every pair of the field, and in training."""

import functools
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from edkd import CONF, models
from edkd.config import schema
from edkd.config.instantiate import build
from edkd.distillers.base import Batch, Distiller, Shapes, Spec
from edkd.errors import EdkdError
from edkd.models.base import Classifier, Prediction
from edkd.teachers.source import Precision
from edkd.training.optimizers import SGD
from edkd.training.step import Trainable
from tests.distillers.pairs import FIELD

METHODS = [
    *("at", "nst", "pkt", "sp", "cc", "rkd", "vid", "ofd", "reviewkd", "simkd", "catkd"),
    *("sd_kd", "sd_dkd", "sd_nkd"),
]
BATCH = 4
each_method = pytest.mark.parametrize("name", METHODS)


@functools.cache
def seen(name: str, size: int) -> tuple[Prediction, tuple[tuple[Tensor, Tensor], ...]]:
    """What an untrained network makes of four images, and its stages' batch norms."""
    torch.manual_seed(0)
    network = getattr(models, name)(num_classes=100)
    with torch.no_grad():
        made = network(torch.randn(BATCH, 3, size, size), want_feats=True)
    norms = ((norm.weight.detach(), norm.bias.detach()) for norm in getattr(network, "stage_norms", ()))
    return made._replace(classifier=Classifier(*(each.detach() for each in made.classifier))), tuple(norms)


def spec_of(student: Prediction, teacher: Prediction, norms: tuple[tuple[Tensor, Tensor], ...]) -> Spec:
    shapes = [
        Shapes(
            tuple(tuple(each.shape[1:]) for each in made.feats),
            tuple(tuple(each.shape[1:]) for each in made.preact_feats),
            made.pooled_feat.shape[1],
            tuple(made.last_map.shape[1:]),
        )
        for made in (student, teacher)
    ]
    return Spec(shapes[0], shapes[1], student.logits.shape[1], 64, teacher.classifier, norms)


def leaves(prediction: Prediction) -> tuple[Prediction, list[Tensor]]:
    """The prediction with tensors of its own that can be trained, and these tensors."""
    made: list[Tensor] = []

    def leaf(tensor: Tensor) -> Tensor:
        made.append(tensor.clone().requires_grad_())
        return made[-1]

    own = prediction.map(leaf)
    return own._replace(classifier=Classifier(*map(leaf, prediction.classifier))), made


def configured(name: str, pair: str = "", **changes: Any) -> Distiller:
    """The method with the values of conf/ for this pair; read without Hydra, which would take most of the time."""
    values: dict[str, Any] = {}
    for part in (f"distiller/{name}.yaml", f"tweak/{name}/{pair}.yaml"):
        path = CONF / part
        values |= yaml.safe_load(path.read_text()) if path.exists() else {}
    if "warmup_epochs" in values:  # ${schedule.warmup_epochs}
        values["warmup_epochs"] = 20
    return build({key: value for key, value in (values | changes).items() if key not in schema.LABELS}, "distiller")


def batch(count: int = BATCH, classes: int = 100) -> Batch:
    return Batch(torch.arange(count), torch.arange(count) * 7 % classes, torch.tensor(3.0))


@each_method
@pytest.mark.parametrize(("pair", "size"), [*((pair, 32) for pair in FIELD), ("vgg13-vgg8", 64)])
def test_a_step_on_every_pair(name: str, pair: str, size: int) -> None:
    teacher_name, student_name = pair.split("-")
    teacher, norms = seen(teacher_name, size)
    method = configured(name, pair)
    spec = spec_of(seen(student_name, size)[0], teacher, norms)
    torch.manual_seed(1)
    method.setup(spec)
    student, given = leaves(seen(student_name, size)[0])
    own = list(method.parameters())
    optimizer = SGD([*own, *given], lr=torch.tensor(1e-3), momentum=0.9, weight_decay=0.0)
    outcome = method(student, teacher, batch())
    assert {*outcome.losses} == {*method.loss_names} and outcome.losses["kd"] != 0
    reached = torch.autograd.grad(outcome.losses["kd"], given, retain_graph=True, allow_unused=True)
    assert any(each is not None and each.abs().max() > 0 for each in reached)
    optimizer.minimise(outcome.losses)
    assert all(each.isfinite().all() for each in (*outcome.losses.values(), *own, *given))
    assert all(each.grad is not None for each in own)
    assert method.eval().predict(student).logits.shape == (BATCH, 100)


def tiny(name: str, **changes: Any) -> tuple[Trainable, nn.Module]:
    """A student resnet8 with this method, and a teacher, resnet14, for ten classes of 8x8 images."""
    torch.manual_seed(2)
    teacher, student = models.resnet14(num_classes=10).eval(), models.resnet8(num_classes=10)
    method = configured(name, **changes)
    with torch.no_grad():
        seen_by_teacher, seen_by_student = (net(torch.zeros(2, 3, 8, 8), want_feats=True) for net in (teacher, student))
    norms = tuple((norm.weight.detach(), norm.bias.detach()) for norm in teacher.stage_norms)
    method.setup(spec_of(seen_by_student, seen_by_teacher, norms))
    return Trainable(student, method, Precision("fp32", torch.device("cpu"))), teacher


@each_method
def test_training_lowers_the_distillation_loss(name: str) -> None:
    trainable, teacher = tiny(name)
    images = torch.randn(16, 3, 8, 8)
    with torch.no_grad():
        given = teacher(images, want_feats=True)
    optimizer = SGD(list(trainable.parameters()), lr=torch.tensor(0.005), momentum=0.9, weight_decay=5e-4)
    found = []
    for _ in range(12):
        outcome, _ = trainable(images, given, batch(16, 10))
        optimizer.minimise(outcome.losses)
        found.append(outcome.losses["kd"].item())
    assert min(found[-3:]) < found[0]


@pytest.mark.parametrize(
    ("name", "teacher", "message"),
    [
        ("ofd", "mobilenetv2", "OFD needs a teacher with a batch norm before the ReLU that ends each stage"),
        ("reviewkd", "mobilenetv2", "ReviewKD needs a teacher with maps before a ReLU"),
    ],
)
def test_teachers_that_cannot_be_matched_are_refused(name: str, teacher: str, message: str) -> None:
    made, norms = seen(teacher, 32)
    with pytest.raises(EdkdError, match=message) as error:
        configured(name, "vgg13-vgg8").setup(spec_of(seen("vgg8", 32)[0], made, norms))
    assert "\n" not in str(error.value)


def test_channels_that_are_too_few_are_refused() -> None:
    made, norms = seen("resnet20", 32)
    with pytest.raises(EdkdError, match="must be 64 or less"):
        configured("simkd", factor=65).setup(spec_of(made, made, norms))

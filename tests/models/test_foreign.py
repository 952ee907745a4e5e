"""Networks of torchvision, of timm and of anybody, as networks of this project."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edkd import models
from edkd.data import _torchvision
from edkd.errors import EdkdError
from edkd.models import foreign
from edkd.models.fit import closest
from edkd.rundir import checkpoint

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Plain(nn.Module):
    """Anybody's network: logits, and no more."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Conv2d(4, 6, 3, stride=2))
        self.head = nn.Linear(6, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x).mean((2, 3)))
        return logits


def torchvision(arch: str, **more: Any) -> nn.Module:
    return foreign.torchvision(num_classes=5, arch=arch, **more).eval()


def timm(arch: str, **more: Any) -> nn.Module:
    return foreign.timm(num_classes=5, arch=arch, **more).eval()


@pytest.mark.parametrize(
    ("make", "feats", "has_last"),
    [
        (lambda: torchvision("resnet18"), [(64, 16), (64, 8), (128, 4), (256, 2), (512, 1)], True),
        (
            lambda: torchvision("mobilenet_v2", last_map="features"),
            [(16, 16), (24, 8), (32, 4), (96, 2), (1280, 1)],
            True,
        ),
        (lambda: torchvision("shufflenet_v2_x0_5", feats=["stage2", "stage3"]), [(48, 4), (96, 2)], False),
        (lambda: timm("test_resnet"), None, True),
        (lambda: timm("test_vit", options={"img_size": 32}), [], False),
        (lambda: foreign.predicting(Plain(), last_map="body").eval(), [(6, 7)], True),
    ],
)
def test_features_are_found(make: Callable[[], nn.Module], feats: list[tuple[int, int]] | None, has_last: bool) -> None:
    network = make()
    with torch.no_grad():
        found, alone = network(IMAGES), network(IMAGES, want_feats=False)
    assert torch.equal(found.logits, alone.logits) and alone == (alone.logits, (), (), None, None, None)
    if feats is not None:
        assert [(each.shape[1], each.shape[2]) for each in found.feats] == feats
    assert found.pooled_feat is not None and found.classifier is not None
    again = found.pooled_feat @ found.classifier.weight.T + found.classifier.bias
    torch.testing.assert_close(again, found.logits, atol=1e-5, rtol=1e-5)
    assert (found.last_map is not None) == has_last
    if found.last_map is not None:
        torch.testing.assert_close(found.last_map.mean((2, 3)), found.pooled_feat)


def test_parameters_keep_their_names_and_learn() -> None:
    plain = Plain()
    state = {key: value.clone() for key, value in plain.state_dict().items()}
    network = foreign.predicting(plain)
    checkpoint.load_into(network, state, "")
    assert list(network.state_dict()) == list(state)
    made = network.train()(IMAGES)
    (made.logits.sum() + sum(each.sum() for each in made.feats)).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_files_of_torchvisions_resnets_fit_ours(arch: str) -> None:
    theirs = _torchvision.load().models.get_model(arch, num_classes=5)
    for norm in [module for module in theirs.modules() if isinstance(module, nn.BatchNorm2d)]:
        nn.init.uniform_(norm.weight)
        nn.init.uniform_(norm.running_mean)
    ours = getattr(models, f"imagenet_{arch}")(num_classes=5)
    checkpoint.load_into(ours, theirs.state_dict(), "theirs.pth")
    with torch.no_grad():
        assert torch.equal(ours.eval()(IMAGES).logits, theirs.eval()(IMAGES))
    assert closest(theirs.state_dict()) == f"it fits imagenet_{arch} with 5 classes"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torchvision("resnet19"), "arch=resnet19: torchvision has no such network"),
        (lambda: timm("resnet19"), "arch=resnet19: timm has no such network"),
        (lambda: torchvision("resnet18", feats=["layer5"]), "ResNet has no module layer5; it has: conv1, bn1, "),
        (
            lambda: torchvision("resnet18", options={"wide": 2}),
            "torchvision cannot make resnet18 with options={'wide': 2}",
        ),
        (lambda: torchvision("googlenet", options={"init_weights": False}).train()(IMAGES), "GoogLeNet returns "),
        (
            lambda: foreign.pretrained("torchvision", "resnet34", "V9"),
            "weights=V9: torchvision has for resnet34 IMAGENET",
        ),
        (lambda: foreign.pretrained("timm", "resnet34", "V9"), "weights=V9: timm has for resnet34 a1_in1k, "),
    ],
)
def test_what_cannot_be_made(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(EdkdError) as raised:
        make()
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize(
    ("library", "arch", "weights", "id", "size"),
    [
        ("torchvision", "resnet50", "DEFAULT", "torchvision:resnet50.IMAGENET1K_V2", 224),
        ("torchvision", "resnet50", "IMAGENET1K_V1", "torchvision:resnet50.IMAGENET1K_V1", 224),
        ("timm", "resnet34", "a1_in1k", "timm:resnet34.a1_in1k", 224),
        ("timm", "test_vit", "DEFAULT", "timm:test_vit.r160_in1k", 160),
    ],
)
def test_weights_by_name(library: str, arch: str, weights: str, id: str, size: int) -> None:
    found = foreign.pretrained(library, arch, weights)
    assert (found.id, found.size) == (id, size)
    assert len(found.mean) == len(found.std) == 3

"""The 23 networks: golden outputs of the published benchmark, and what holds for every one of them."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from edkd import models
from edkd.models import Prediction

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "models.json").read_text())
REFERENCE_NAMES = {
    "resnet18": "ResNet18",
    "resnet50": "ResNet50",
    "mobilenetv2": "MobileNetV2",
    "shufflenetv1": "ShuffleV1",
    "shufflenetv2": "ShuffleV2",
}
every_network = pytest.mark.parametrize("name", models.names())


def golden(name: str) -> dict:
    return GOLDEN[REFERENCE_NAMES.get(name, name)]


def make(name: str, **kwargs: int) -> nn.Module:
    torch.manual_seed(0)
    return getattr(models, name)(**kwargs)


def fill(network: nn.Module) -> nn.Module:
    """Replace the weights by those of the golden file's rule, in float64."""
    state = {}
    for key, old in network.state_dict().items():
        x = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(tuple(old.shape))
        if key.endswith("num_batches_tracked"):
            x = np.zeros(())
        elif key.endswith("running_var"):
            x = 0.5 + np.abs(x)
        elif old.ndim > 1:
            x = x * np.sqrt(2 / np.prod(old.shape[1:]))
        elif key.endswith("weight"):
            x = 1 + 0.1 * x
        else:
            x = 0.1 * x
        state[key] = torch.as_tensor(x, dtype=torch.int64 if key.endswith("num_batches_tracked") else torch.float64)
    network = network.double()
    network.load_state_dict(state, strict=True)
    return network


def images(batch: int, size: int) -> Tensor:
    return torch.as_tensor(np.random.RandomState(7).standard_normal((batch, 3, size, size)))


def norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


def assert_described(actual: Tensor, shape: list[int], mean: float, std: float) -> None:
    assert list(actual.shape) == shape
    # A mean near zero is a difference of large numbers: its error is measured against the spread.
    assert actual.mean().item() == pytest.approx(mean, rel=1e-9, abs=1e-9 * std)
    assert actual.std().item() == pytest.approx(std, rel=1e-9)


def test_names_are_the_golden_networks() -> None:
    assert len(models.names()) == 23
    assert {REFERENCE_NAMES.get(name, name) for name in models.names()} == set(GOLDEN)


@every_network
def test_state_dict_matches_published_checkpoints(name: str) -> None:
    with torch.device("meta"):
        network = make(name)
    assert [[key, list(value.shape)] for key, value in network.state_dict().items()] == golden(name)["state"]
    assert sum(parameter.numel() for parameter in network.parameters()) == golden(name)["parameters"]


@every_network
def test_outputs_match_reference(name: str) -> None:
    network = fill(make(name)).eval()
    with torch.no_grad():
        prediction = network(images(4, 32))
    expected = golden(name)
    torch.testing.assert_close(
        prediction.logits, torch.tensor(expected["logits"], dtype=torch.float64), rtol=1e-9, atol=0
    )
    features = expected["features"]
    for group in ("feats", "preact_feats"):
        maps = getattr(prediction, group)
        assert len(maps) == len(features.get(group, ()))
        for actual, description in zip(maps, features.get(group, ())):
            assert_described(actual, *description)
    assert_described(prediction.pooled_feat, *features["pooled_feat"])


@every_network
def test_the_last_map_and_the_classifier_give_the_logits(name: str) -> None:
    prediction = make(name).eval()(images(2, 16).float())
    assert torch.equal(prediction.last_map.mean(dim=(2, 3)), prediction.pooled_feat)
    assert torch.equal(torch.nn.functional.linear(prediction.pooled_feat, *prediction.classifier), prediction.logits)


@pytest.mark.parametrize("name", ["resnet8x4", "resnet18", "resnet50", "vgg8", "wrn_16_2"])
def test_the_norm_of_a_stage_makes_its_map_before_the_relu(name: str) -> None:
    """WRN's and VGG's map is the norm's output; a ResNet adds its shortcut to it."""
    network = make(name).eval()
    outputs: list[torch.Tensor] = []
    for norm in network.stage_norms:
        norm.register_forward_hook(lambda module, inputs, output: outputs.append(output.clone()))
    maps = network(images(2, 16).float()).preact_feats[1:]
    assert [each.shape for each in outputs] == [each.shape for each in maps]
    if name in ("vgg8", "wrn_16_2"):
        assert all(torch.equal(each, other) for each, other in zip(outputs, maps, strict=True))
    shortcuts = {"resnet8x4": "layer3.0.downsample.1", "resnet18": "layer4.0.shortcut.1"}
    assert not any(network.get_submodule(shortcuts[name]) is norm for norm in network.stage_norms if name in shortcuts)


@every_network
def test_features_cost_nothing_unless_wanted(name: str) -> None:
    """Same output and gradient with and without features, and each batch norm sees the batch exactly once."""
    with_feats, without = make(name).train(), make(name).train()
    x = images(2, 16).float()
    full, bare = with_feats(x), without(x, want_feats=False)
    assert bare == Prediction(bare.logits, (), (), None)
    assert torch.equal(full.logits, bare.logits)
    for network, prediction in ((with_feats, full), (without, bare)):
        prediction.logits.square().sum().backward()
        assert [norm.num_batches_tracked.item() for norm in norms(network)] == [1] * len(norms(network))
    for one, other in zip(with_feats.parameters(), without.parameters()):
        assert torch.equal(one.grad, other.grad)
    for one, other in zip(with_feats.buffers(), without.buffers()):
        assert torch.equal(one, other)


class OperatorCount(TorchDispatchMode):
    """Counts the operators that reach a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


@every_network
def test_forward_needs_no_values_and_features_no_operator(name: str) -> None:
    """On the meta device there are no values to look at, as in a CUDA graph; features are by-products of the pass."""
    with torch.device("meta"):
        network = make(name).train()
        x = torch.empty(2, 3, 32, 32)
    counts = []
    for want_feats in (False, True):
        with OperatorCount() as operators:
            network(x, want_feats=want_feats)
        counts.append(operators.count)
    assert counts[0] == counts[1]


@every_network
def test_features_carry_gradients_and_agree(name: str) -> None:
    """Every feature is on the way to the loss, and no later in-place operation has overwritten it."""
    network = make(name).train()
    prediction = network(images(2, 16).float())
    features = (*prediction.feats, *prediction.preact_feats, prediction.pooled_feat)
    gradients = torch.autograd.grad(
        sum(f.square().sum() for f in features), list(network.parameters()), allow_unused=True
    )
    unused = [key for (key, _), gradient in zip(network.named_parameters(), gradients) if gradient is None]
    assert all(key.startswith(("fc.", "linear.", "classifier.")) for key in unused) and len(unused) == 2
    assert all(gradient.isfinite().all() for gradient in gradients if gradient is not None)
    if not name.startswith("wrn"):
        for feat, preact in zip(prediction.feats[1:], prediction.preact_feats[1:]):
            assert torch.equal(feat, preact.relu())
            assert (preact < 0).any()


@every_network
@pytest.mark.parametrize("size", [8, 16, 64])
def test_trains_at_other_sizes(name: str, size: int) -> None:
    network = make(name, num_classes=7).train()
    prediction = network(images(2, size).float(), want_feats=False)
    assert prediction.logits.shape == (2, 7)
    prediction.logits.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


@every_network
def test_channels_last_agrees(name: str) -> None:
    network = make(name).eval()
    x = images(2, 16).float()
    with torch.no_grad():
        expected = network(x).logits
        actual = network.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last)).logits
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("name", ["resnet8x4", "wrn_16_1", "vgg8", "mobilenetv2", "shufflenetv1", "shufflenetv2"])
def test_trains_under_bfloat16_autocast(name: str) -> None:
    network = make(name).train().to(memory_format=torch.channels_last)
    x = images(4, 16).float().to(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        prediction = network(x)
    assert prediction.logits.dtype == torch.bfloat16
    prediction.logits.float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("name", ["resnet20", "resnet18", "wrn_16_2", "vgg8", "mobilenetv2"])
def test_initial_weights_are_he_normal(name: str) -> None:
    for module in make(name).modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 5000:
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
            assert module.bias is None or not module.bias.any()


@pytest.mark.parametrize("name", ["vgg8", "mobilenetv2"])
def test_initial_classifier_is_small(name: str) -> None:
    classifier = next(module for module in make(name).modules() if isinstance(module, nn.Linear))
    assert classifier.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not classifier.bias.any()


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_imagenets_resnets_give_torchvisions_logits_from_its_weights(name: str) -> None:
    from edkd.data import _torchvision

    torch.manual_seed(0)
    theirs = getattr(_torchvision.load().models, name)(num_classes=7).eval()
    for norm in norms(theirs):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    ours = getattr(models, f"imagenet_{name}")(num_classes=7).eval()
    renamed = {
        key.replace("downsample", "shortcut").replace("fc.", "linear."): v for key, v in theirs.state_dict().items()
    }
    ours.load_state_dict(renamed, strict=True)
    x = images(2, 64).float()
    with torch.no_grad():
        made, expected = ours(x), theirs(x)
    assert torch.equal(made.logits, expected) or (made.logits - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert [tuple(feat.shape[1:]) for feat in made.feats[1:]] == [
        (width * (4 if name == "resnet50" else 1), side, side)
        for width, side in ((64, 16), (128, 8), (256, 4), (512, 2))
    ]


@pytest.mark.parametrize("name", models.IMAGENET)
def test_networks_of_imagenet_end_in_maps_of_7x7(name: str) -> None:
    millions = {"imagenet_resnet18": 11.69, "imagenet_resnet34": 21.80, "imagenet_resnet50": 25.56, "mobilenetv1": 4.23}
    with torch.device("meta"):
        network = getattr(models, name)().train()
        made = network(torch.empty(2, 3, 224, 224))
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions[name], abs=5e-3)
    assert made.logits.shape == (2, 1000) and made.last_map.shape[2:] == (7, 7)
    assert len(made.feats) == len(made.preact_feats) == 5
    assert [norm.num_features for norm in network.stage_norms] == [feat.shape[1] for feat in made.feats[1:]]

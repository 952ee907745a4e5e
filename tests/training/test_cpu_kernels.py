"""Convolutions as matrix products: the same mathematics as PyTorch's own, forward and backward."""

import contextlib
import ctypes
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edkd import models
from edkd.training import cpu_kernels, hardware
from edkd.training.cpu_kernels import Convolution


def pair(x: Tensor, *, in_fp32: bool, **options: Any) -> tuple[nn.Conv2d, nn.Conv2d]:
    """PyTorch's convolution and ours, with the same weights."""
    torch.manual_seed(0)
    theirs = nn.Conv2d(x.shape[1], **options).to(x.dtype)
    ours = nn.Conv2d(x.shape[1], **options).to(x.dtype)
    ours.load_state_dict(theirs.state_dict())
    cpu_kernels.use_products(ours, in_fp32=in_fp32)
    assert type(ours) is Convolution
    return theirs, ours


def both(x: Tensor, *, half: bool = False, **options: Any) -> list[tuple[Tensor, Tensor, list[Tensor]]]:
    """Output, gradient with respect to the input, and those to the parameters; PyTorch's first, then ours."""
    results = []
    for network in pair(x, in_fp32=True, **options):
        given = x.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16) if half else contextlib.nullcontext():
            made = network(given)
        weights = torch.linspace(-1, 1, made.numel()).view_as(made)
        (made.float() * weights).sum().backward()
        assert given.grad is not None
        results.append((made.detach(), given.grad, [p.grad for p in network.parameters() if p.grad is not None]))
    return results


SHAPES = [
    # channels, pixels, options
    (64, 4, {"out_channels": 96, "kernel_size": 3, "padding": 1, "bias": True}),
    (64, 4, {"out_channels": 96, "kernel_size": 3, "padding": 1, "bias": False}),
    (64, 2, {"out_channels": 8, "kernel_size": 3, "padding": 1}),
    (64, 8, {"out_channels": 32, "kernel_size": 3, "padding": 1}),
    (64, 1, {"out_channels": 32, "kernel_size": 3, "padding": 1}),
    (64, 4, {"out_channels": 32, "kernel_size": 3, "padding": 1, "stride": 2}),
    (64, 4, {"out_channels": 32, "kernel_size": 3, "padding": 2, "dilation": 2}),
    (64, 4, {"out_channels": 32, "kernel_size": 3, "padding": 1, "padding_mode": "reflect"}),
    (12, 6, {"out_channels": 20, "kernel_size": 1}),
    (12, 6, {"out_channels": 20, "kernel_size": 1, "stride": 2}),
    (12, 6, {"out_channels": 12, "kernel_size": 3, "padding": 1, "groups": 12, "stride": 2}),
    (12, 6, {"out_channels": 24, "kernel_size": 1, "groups": 3}),
]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("channels", "side", "options"), SHAPES)
def test_same_values_and_gradients_in_double_precision(
    channels: int, side: int, options: dict[str, Any], layout: torch.memory_format
) -> None:
    torch.manual_seed(1)
    x = torch.randn(3, channels, side, side, dtype=torch.float64).to(memory_format=layout)
    (made, of_x, of_parameters), (expected, expected_of_x, expected_of_parameters) = both(x, **options)
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(of_x, expected_of_x, rtol=0, atol=1e-6)  # the test's own weights are fp32
    for gradient, other in zip(of_parameters, expected_of_parameters, strict=True):
        torch.testing.assert_close(gradient, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("channels", "side", "options"), SHAPES)
def test_where_products_are_slow_fp32_is_left_to_pytorch(channels: int, side: int, options: dict[str, Any]) -> None:
    torch.manual_seed(1)
    x = torch.randn(3, channels, side, side).to(memory_format=torch.channels_last)
    theirs, ours = pair(x, in_fp32=False, **options)
    made, expected = ours(x), theirs(x)
    assert made.grad_fn.name() == expected.grad_fn.name()
    assert torch.equal(made, expected)


@pytest.mark.parametrize(("vendor", "fast"), [("GenuineIntel", True), ("AuthenticAMD", False), ("", False)])
def test_whose_products_are_fast(monkeypatch: pytest.MonkeyPatch, vendor: str, fast: bool) -> None:
    monkeypatch.setattr(hardware, "cpu_vendor", lambda: vendor)
    assert cpu_kernels.fast_products() is fast


@pytest.mark.parametrize(("channels", "side", "options"), SHAPES)
def test_bf16_is_as_near_as_bf16_is(channels: int, side: int, options: dict[str, Any]) -> None:
    torch.manual_seed(1)
    x = torch.randn(3, channels, side, side).to(memory_format=torch.channels_last)
    (exact, exact_of_x, _), _ = both(x, **options)
    _, (made, of_x, of_parameters) = both(x, half=True, **options)
    assert (made - exact).norm() < 0.02 * exact.norm()
    assert (of_x - exact_of_x).norm() < 0.02 * exact_of_x.norm()
    assert all(gradient.dtype == torch.float32 for gradient in of_parameters)


@pytest.mark.parametrize("name", ["vgg8", "mobilenetv2", "resnet8x4", "shufflenetv1", "shufflenetv2", "wrn_16_1"])
def test_networks_keep_their_weights_and_predictions(name: str) -> None:
    torch.manual_seed(0)
    network = getattr(models, name)(num_classes=10).to(memory_format=torch.channels_last).eval()
    x = torch.randn(4, 3, 32, 32).to(memory_format=torch.channels_last)
    names = list(network.state_dict())
    with torch.no_grad():
        before = network(x, want_feats=True)
        cpu_kernels.use_products(network, in_fp32=True)
        after = network(x, want_feats=True)
    assert list(network.state_dict()) == names
    torch.testing.assert_close(after.logits, before.logits, rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(after.feats, before.feats, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("size", [8, 16])
@pytest.mark.parametrize("name", models.names())
def test_every_network_trains(name: str, size: int, half: bool) -> None:
    """Also those that change a convolution's result in place."""
    torch.manual_seed(0)
    network = getattr(models, name)(num_classes=10).to(memory_format=torch.channels_last).train()
    cpu_kernels.use_products(network, in_fp32=True)
    x = torch.randn(4, 3, size, size).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16) if half else contextlib.nullcontext():
        logits = network(x, want_feats=False).logits
    logits.float().square().sum().backward()
    for parameter in network.parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all()


def test_no_gradient_is_made_that_nobody_asked_for() -> None:
    layer = nn.Conv2d(64, 8, 3, padding=1)
    cpu_kernels.use_products(layer, in_fp32=True)
    layer(torch.randn(2, 64, 4, 4)).sum().backward()
    layer.weight.requires_grad_(False)
    x = torch.randn(2, 64, 4, 4, requires_grad=True)
    grad = layer.weight.grad
    layer(x).sum().backward()
    assert x.grad is not None and layer.weight.grad is grad


def test_memory_is_kept_where_the_c_library_knows_how(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    class Library:
        def mallopt(self, name: int, value: int) -> int:
            asked.append((name, value))
            return 1

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library())
    cpu_kernels.keep_memory()
    assert dict(asked)[-4] == 0
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())  # another C library: no mallopt
    cpu_kernels.keep_memory()

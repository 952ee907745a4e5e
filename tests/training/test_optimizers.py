"""Optimisers: SGD is torch's, DOT takes its recorded steps, and both continue exactly from what they save."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edkd.errors import EdkdError
from edkd.training.optimizers import DOT, SGD
from tests.golden.methods import CASES, normal

VALUES = {"momentum": 0.9, "weight_decay": 5e-4}
MAKERS = {
    "SGD": lambda params, lr: SGD(params, lr=lr, **VALUES),
    "DOT": lambda p, lr: DOT(p, lr=lr, delta=0.075, **VALUES),
}
each_optimiser = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5))


def losses_of(model: nn.Module, number: int) -> dict[str, Tensor]:
    stream = torch.Generator().manual_seed(number)
    logits = model(torch.randn(6, 3, 5, 5, generator=stream))
    target = torch.randint(0, 5, (6,), generator=stream)
    taught = torch.randn(6, 5, generator=stream)
    return {"ce": nn.functional.cross_entropy(logits, target), "kd": (logits - taught).square().mean()}


def train(model: nn.Module, optimizer: Any, steps: range) -> None:
    for number in steps:
        optimizer.minimise(losses_of(model, number))


@pytest.mark.parametrize("case", CASES["optimisers"]["dot"], ids=lambda case: f"seed{case['inputs']['seed']}")
def test_recorded_steps_of_dot(case: dict) -> None:
    tensors, given = case["inputs"]["tensors"], case["parameters"]
    stream = np.random.RandomState(case["inputs"]["seed"])
    parameters = {name: nn.Parameter(normal(stream, *tensor["shape"])) for name, tensor in tensors.items()}
    values = {name: given[name] for name in ("lr", "momentum", "weight_decay", "delta")}
    optimizer = DOT(parameters.values(), **values)
    for recorded in case["steps"]:
        losses = {}
        for kind, loss in (("kd", "kd"), ("task", "ce")):
            products = [
                (parameters[name] * normal(stream, *tensor["shape"])).sum()  # its gradient is what was drawn
                for name, tensor in tensors.items()
                if kind in tensor["gradients"]
            ]
            losses[loss] = torch.stack(products).sum()
        optimizer.minimise(losses)
        for name, parameter in parameters.items():
            state = {"value": parameter, **optimizer.state[parameter]}
            assert state.keys() == recorded[name].keys()
            for key, entries in recorded[name].items():
                assert state[key].flatten().tolist() == pytest.approx(entries, rel=1e-9)


def test_sgd_is_torchs_on_the_sum_of_the_losses() -> None:
    ours, reference = network(), network()
    train(ours, SGD(ours.parameters(), lr=0.05, **VALUES), range(3))
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.05, fused=True, **VALUES)
    for number in range(3):
        optimizer.zero_grad()
        torch.stack(list(losses_of(reference, number).values())).sum().backward()
        optimizer.step()
    for mine, other in zip(ours.parameters(), reference.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_dot_without_a_difference_of_momenta_is_sgd() -> None:
    ours, reference = network().double(), network().double()
    sums = {}
    for model, make in ((ours, MAKERS["DOT"]), (reference, MAKERS["SGD"])):
        optimizer = make(model.parameters(), 0.05)
        optimizer.param_groups[0]["delta"] = 0.0
        sums[model] = []
        for number in range(3):
            stream = torch.Generator().manual_seed(number)
            output = model(torch.randn(6, 3, 5, 5, generator=stream).double())
            sums[model].append(optimizer.minimise({"ce": output.square().mean(), "kd": output.sum()}).item())
    assert sums[ours] == pytest.approx(sums[reference])
    for mine, other in zip(ours.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


@each_optimiser
def test_the_sum_of_the_losses_is_returned(make: Any) -> None:
    model = network()
    losses = losses_of(model, 0)
    total = make(model.parameters(), 0.05).minimise(losses)
    assert total.item() == (losses["ce"] + losses["kd"]).item()


@each_optimiser
def test_the_rate_may_be_a_tensor_that_changes_in_place(make: Any) -> None:
    model, other = network(), network()
    rate = torch.tensor(0.05)
    changing, constant = make(model.parameters(), rate), make(other.parameters(), 0.05)
    train(model, changing, range(1))
    train(other, constant, range(1))
    rate.fill_(0.005)
    constant.param_groups[0]["lr"] = 0.005
    train(model, changing, range(1, 3))
    train(other, constant, range(1, 3))
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


@each_optimiser
def test_a_restored_optimiser_continues_exactly(make: Any) -> None:
    model, other = network(), network()
    optimizer = make(model.parameters(), torch.tensor(0.05))
    train(model, optimizer, range(2))
    other.load_state_dict(model.state_dict())
    restored = make(other.parameters(), torch.tensor(1.0))
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, optimizer, range(2, 5))
    train(other, restored, range(2, 5))
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_parameter_that_no_loss_reaches_stays() -> None:
    model, idle = network(), nn.Parameter(torch.ones(2))
    optimizer = DOT([*model.parameters(), idle], lr=0.05, delta=0.075, **VALUES)
    train(model, optimizer, range(2))
    assert idle.tolist() == [1, 1]


@pytest.mark.parametrize("names", [["ce"], ["kd"], ["feat", "kd"]])
def test_dot_refuses_losses_without_two_sides_in_one_line(names: list[str]) -> None:
    model = network()
    loss = losses_of(model, 0)["kd"]
    with pytest.raises(
        EdkdError, match=f"needs a method with the loss ce .* this one has: {', '.join(names)}"
    ) as error:
        DOT(model.parameters(), lr=0.05, delta=0.075, **VALUES).minimise(dict.fromkeys(names, loss))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("delta", [-0.1, 0.2])
def test_dot_refuses_momenta_beyond_their_limits(delta: float) -> None:
    with pytest.raises(EdkdError, match=f"optimizer.delta is {delta}: both momenta"):
        DOT(network().parameters(), lr=0.05, delta=delta, **VALUES)

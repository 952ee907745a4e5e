"""Optimisers: SGD is torch's, DOT and DeepKD take their recorded steps, all continue exactly from what they save."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edkd.errors import EdkdError
from edkd.training.optimizers import DOT, SGD, DeepKD
from tests.golden.methods import CASES, normal

VALUES = {"momentum": 0.9, "weight_decay": 5e-4}
DEEPKD = {"delta_task": 0.075, "delta_tckd": -0.075, "delta_nckd": 0.05, "own_task_momentum": False}
MAKERS: dict[str, Any] = {
    "SGD": lambda params, lr: SGD(params, lr=lr, **VALUES),
    "DOT": lambda p, lr: DOT(p, lr=lr, delta=0.075, **VALUES),
    "DeepKD": lambda p, lr: DeepKD(p, lr=lr, **DEEPKD, **VALUES),
}
RECORDED = [(name, case) for name in ("dot", "deepkd") for case in CASES["optimisers"][name]]
each_optimiser = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5))


def losses_of(model: nn.Module, number: int) -> dict[str, Tensor]:
    stream = torch.Generator().manual_seed(number)
    logits = model(torch.randn(6, 3, 5, 5, generator=stream))
    target = torch.randint(0, 5, (6,), generator=stream)
    taught = torch.randn(6, 5, generator=stream)
    rest = (logits - taught).square().mean(), logits.abs().mean()
    return {"ce": nn.functional.cross_entropy(logits, target), "tckd": rest[0], "nckd": rest[1]}


def train(model: nn.Module, optimizer: Any, steps: range) -> None:
    for number in steps:
        optimizer.minimise(losses_of(model, number))


@pytest.mark.parametrize(("name", "case"), RECORDED, ids=[f"{n}-seed{c['inputs']['seed']}" for n, c in RECORDED])
def test_recorded_steps(name: str, case: dict) -> None:
    kind, kinds, fixed = {
        "dot": (DOT, {"kd": "kd", "task": "ce"}, {}),
        "deepkd": (DeepKD, {"nckd": "nckd", "tckd": "tckd", "task": "ce"}, {"own_task_momentum": False}),
    }[name]
    tensors, given = case["inputs"]["tensors"], case["parameters"]
    stream = np.random.RandomState(case["inputs"]["seed"])
    parameters = {name: nn.Parameter(normal(stream, *tensor["shape"])) for name, tensor in tensors.items()}
    optimizer = kind(parameters.values(), **{key: given[key] for key in given if key != "steps"}, **fixed)
    for recorded in case["steps"]:
        losses = {}
        for drawn, loss in kinds.items():
            products = [
                (parameters[name] * normal(stream, *tensor["shape"])).sum()  # its gradient is what was drawn
                for name, tensor in tensors.items()
                if drawn in tensor["gradients"]
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
    assert total.item() == torch.stack(list(losses.values())).sum().item()


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


@each_optimiser
def test_a_parameter_that_no_loss_reaches_stays(make: Any) -> None:
    model, idle = network(), nn.Parameter(torch.ones(2))
    optimizer = make([*model.parameters(), idle], 0.05)
    train(model, optimizer, range(2))
    assert idle.tolist() == [1, 1]


@pytest.mark.parametrize("own", [False, True])
def test_deepkd_gives_the_task_the_momentum_of_tckd_or_its_own(own: bool) -> None:
    weight = nn.Parameter(torch.zeros((), dtype=torch.float64))
    optimizer = DeepKD([weight], lr=0.05, **{**DEEPKD, "own_task_momentum": own}, **VALUES)
    for _ in range(2):
        optimizer.minimise({"ce": 2 * weight, "tckd": 0 * weight, "nckd": 0 * weight})
    assert optimizer.state[weight]["momentum_buffer"].item() == pytest.approx(2 * (0.975 if own else 0.825) + 2)


@pytest.mark.parametrize(
    ("kind", "names", "needed"),
    [
        *(("DOT", names, "dot needs ce and at least one other") for names in (["ce"], ["kd"], ["feat", "kd"])),
        *(
            ("DeepKD", names, "deepkd needs ce, tckd and nckd")
            for names in (["ce", "kd"], ["ce", "tckd"], ["ce", "kd", "nckd", "tckd"])
        ),
    ],
)
def test_other_losses_are_refused_in_one_line(kind: str, names: list[str], needed: str) -> None:
    model = network()
    loss = losses_of(model, 0)["tckd"]
    with pytest.raises(EdkdError, match=f"a step has the losses {', '.join(names)}: optimizer={needed}") as error:
        MAKERS[kind](model.parameters(), 0.05).minimise(dict.fromkeys(names, loss))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        *((DOT, {"delta": delta}, f"delta is {delta}: both momenta") for delta in (-0.1, 0.2)),
        *(
            (DeepKD, DEEPKD | {name: delta}, f"{name} is {delta}: 0.9 \\+ {name} must be at least 0 and below 1")
            for name, delta in (("delta_task", 0.1), ("delta_tckd", -0.95), ("delta_nckd", 0.2))
        ),
    ],
)
def test_momenta_beyond_their_limits_are_refused(kind: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(EdkdError, match=rf"^optimizer\.{message}"):
        kind(network().parameters(), lr=0.05, **given, **VALUES)

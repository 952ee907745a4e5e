"""Checks of a method in its first steps: what it returns, and where it keeps its state."""

from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from edkd.distillers.base import Distiller, Outcome
from edkd.errors import EdkdError

_OWN = ("train/loss", "train/top1", "val/", "test/")  # how the names of every run's metrics begin


def check_outcome(outcome: Any, distiller: Distiller, batch: int) -> None:
    """Raise EdkdError unless `outcome` is an `Outcome` for a `batch` of this many images, with a loss to minimise.

    Its losses and metrics must be 0-dim tensors, at least one loss with a gradient, and its names must not be those of
    the metrics that every run records.
    """
    name = f"{type(distiller).__module__}.{type(distiller).__qualname__}"
    if not isinstance(outcome, Outcome) or not outcome.losses:
        raise EdkdError(
            f"{name} returned {type(outcome).__name__ if not isinstance(outcome, Outcome) else 'no loss'}; "
            "it must return edkd.distillers.Outcome(losses={name: 0-dim tensor, ...}, metrics={...})"
        )
    for kind, values, shape in (
        ("losses", outcome.losses, ()),
        ("metrics", outcome.metrics, ()),
        ("by_class", outcome.by_class or {}, (batch,)),
    ):
        if not isinstance(values, dict):
            raise EdkdError(f"{name} returned {kind} as {type(values).__name__}; it must be a dictionary")
        for key, value in values.items():
            if not isinstance(value, Tensor) or value.shape != shape:
                found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                wanted = f"tensor of shape {shape}, a value an image" if shape else "0-dim tensor"
                raise EdkdError(f"{name} returned {kind}[{key!r}] as {found}; it must be a {wanted}")
    if outcome.logits is not None and (outcome.logits.dim() != 2 or len(outcome.logits) != batch):
        found = f"shape {tuple(outcome.logits.shape)}"
        raise EdkdError(f"{name} returned logits of {found}; {batch} images have shape ({batch}, classes)")
    for key in outcome.metrics:
        if key == "lr" or key.startswith(_OWN):
            taken = ", ".join(("lr", *_OWN))
            raise EdkdError(f"{name} returned metrics[{key!r}]; every run has metrics of its own, {taken}")
    if not any(loss.requires_grad for loss in outcome.losses.values()):
        raise EdkdError(f"{name} returned losses without a gradient: none depends on the student or on the method")


class Held:
    """The current parameters and buffers of a network and the state of its optimiser, to restore after a recording."""

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        places: list[tuple[str, dict[str, Any]]] = [
            (type(module).__name__, place)
            for module in network.modules()
            for place in (module._parameters, module._buffers)
        ]
        kept = (vars(optimizer), *optimizer.param_groups, *optimizer.state.values())
        places += [(type(optimizer).__name__, place) for place in kept]
        self.tensors: list[tuple[str, dict[str, Any], str, Tensor, Tensor]] = [
            (f"{owner}.{name}", place, name, value, value.detach())
            for owner, place in places
            for name, value in place.items()
            if isinstance(value, Tensor)
        ]
        self.numbers: list[tuple[str, dict[str, Any], str, float]] = [
            (f"{owner}.{name}", place, name, value)
            for owner, place in places
            for name, value in place.items()
            if isinstance(value, (int, float))
        ]

    def restore(self) -> list[str]:
        """Restore the tensors that were replaced, or whose memory was, and the numbers; returns their names."""
        replaced = []
        for name, place, key, tensor, memory in self.tensors:
            if place.get(key) is not tensor or tensor.data_ptr() != memory.data_ptr():
                tensor.data = memory
                place[key] = tensor
                replaced.append(name)
        for name, place, key, number in self.numbers:
            if place.get(key) != number:
                place[key] = number
                replaced.append(name)
        return replaced


class Unsaved:
    """Finds state that no checkpoint holds, by a comparison before and after a step."""

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.network, self.optimizer = network, optimizer
        self.made, self.kept = self._made(), self._plain()

    def _made(self) -> dict[str, Any]:
        """The parameters themselves, because one may be replaced, and the names of the buffers."""
        parameters = {f"parameter {name}": parameter for name, parameter in self.network.named_parameters()}
        return parameters | {f"buffer {name}": True for name, _ in self.network.named_buffers()}

    def _plain(self) -> dict[str, list[tuple[Any, int]]]:
        """Tensors, modules and numbers in plain attributes, alone or in containers, and temporary buffers, by name.

        Each tensor comes with the count of its in-place changes.
        """
        own = {
            name: value
            for name, value in vars(self.optimizer).items()
            if name not in ("state", "param_groups", "defaults")
            and not (name.startswith("_") and isinstance(value, bool))  # PyTorch's flags for checks in the first step
        }
        places = [("optimizer", own)]
        for path, module in self.network.named_modules():
            saved = ("_parameters", "_buffers", "_modules")
            places += [(path, {name: value for name, value in vars(module).items() if name not in saved})]
            places += [(path, {name: module._buffers[name] for name in module._non_persistent_buffers_set})]
        return {
            f"{path}.{name}".lstrip("."): [(each, getattr(each, "_version", 0)) for each in held]
            for path, place in places
            for name, value in place.items()
            if (held := [each for each in _leaves(value) if isinstance(each, (Tensor, nn.Module, int, float))])
        }

    def check(self) -> None:
        """Raise EdkdError if a step added or replaced a parameter, added a buffer or changed a plain attribute."""
        for name, made in self._made().items():
            if self.made.get(name) is not made:
                raise EdkdError(
                    f"the {name} was made in the first training step, where neither the optimiser nor a resumed run "
                    "finds it: a method makes its modules and buffers in setup(spec) (docs/extending.md)"
                )
        for name, held in self._plain().items():
            before = self.kept.get(name, [])
            if len(before) != len(held) or not all(_same(*pair) for pair in zip(before, held)):
                kind = type(held[-1][0]).__name__ if held else "container"
                raise EdkdError(
                    f"a training step changes {name} ({kind}), which no checkpoint holds, so a resumed run would "
                    "differ; in setup(spec) a method keeps numbers and tensors by register_buffer, persistent, and "
                    "modules as its attributes or in a ModuleList; an optimiser keeps tensors in its state "
                    "(docs/extending.md)"
                )


def _same(before: tuple[Any, int], after: tuple[Any, int]) -> bool:
    (was, changes), (now, changes_now) = before, after
    is_number = type(was) is type(now) and isinstance(was, (int, float))
    return (was is now and changes == changes_now) or (is_number and was == now)


def _leaves(value: Any) -> Iterator[Any]:
    """A value itself, or the members of a container and of the containers in it."""
    if not isinstance(value, (list, tuple, set, deque, dict)):
        yield value
        return
    for member in value.values() if isinstance(value, dict) else value:
        yield from _leaves(member)

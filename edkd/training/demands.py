"""What a method must keep to, found in the first steps: what it returns, and where it keeps what it remembers."""

from collections import deque
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from edkd.distillers.base import Distiller, Outcome
from edkd.errors import EdkdError


def check_outcome(outcome: Any, distiller: Distiller) -> None:
    """Raise EdkdError for what a method may not return."""
    name = f"{type(distiller).__module__}.{type(distiller).__qualname__}"
    if not isinstance(outcome, Outcome) or not outcome.losses:
        raise EdkdError(
            f"{name} returned {type(outcome).__name__ if not isinstance(outcome, Outcome) else 'no loss'}; "
            "it must return edkd.distillers.Outcome(losses={name: 0-dim tensor, ...}, metrics={...})"
        )
    for kind, values in (("losses", outcome.losses), ("metrics", outcome.metrics)):
        for key, value in values.items():
            if not isinstance(value, Tensor) or value.dim():
                found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise EdkdError(f"{name} returned {kind}[{key!r}] as {found}; it must be a 0-dim tensor")


class Held:
    """The parameters and buffers that a network holds now, to be put back where a recorded step replaces them."""

    def __init__(self, network: nn.Module) -> None:
        self.tensors: list[tuple[str, dict[str, Any], str, Tensor, Tensor]] = [
            (f"{type(module).__name__}.{name}", place, name, tensor, tensor.detach())
            for module in network.modules()
            for place in (module._parameters, module._buffers)
            for name, tensor in place.items()
            if isinstance(tensor, Tensor)
        ]

    def restore(self) -> list[str]:
        """Put back those that were replaced, they or their memory; returns their names."""
        replaced = []
        for name, place, key, tensor, memory in self.tensors:
            if place.get(key) is not tensor or tensor.data_ptr() != memory.data_ptr():
                tensor.data = memory
                place[key] = tensor
                replaced.append(name)
        return replaced


class Unsaved:
    """Finds what a method keeps where neither the optimiser nor a checkpoint sees it, by comparing around a step."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.made, self.tensors = self._made(), self._plain()

    def _made(self) -> dict[str, Any]:
        """Each parameter itself, for it may be replaced, and which buffers there are."""
        parameters = {f"parameter {name}": parameter for name, parameter in self.network.named_parameters()}
        return parameters | {f"buffer {name}": True for name, _ in self.network.named_buffers()}

    def _plain(self) -> dict[str, list[tuple[Tensor, int]]]:
        """Tensors in plain attributes, alone or in a container, with the count of their changes, by name."""
        return {
            f"{place}.{name}".lstrip("."): [(tensor, tensor._version) for tensor in held]
            for place, module in self.network.named_modules()
            for name, value in vars(module).items()
            if name not in ("_parameters", "_buffers", "_modules")
            and (held := [each for each in _leaves(value) if isinstance(each, Tensor)])
        }

    def check(self) -> None:
        """Raise EdkdError for a parameter, buffer or plain tensor that was added or replaced since the beginning."""
        for name, made in self._made().items():
            if self.made.get(name) is not made:
                raise EdkdError(
                    f"the {name} was made in the first training step, where neither the optimiser nor a resumed run "
                    "finds it: a method makes its modules and buffers in setup(spec) (docs/extending.md)"
                )
        for name, held in self._plain().items():
            before = self.tensors.get(name, [])
            same = len(before) == len(held) and all(a is b and m == n for (a, m), (b, n) in zip(before, held))
            if not same:
                raise EdkdError(
                    f"{name} is a plain tensor that a training step changes: no checkpoint holds it, so a resumed run "
                    "would differ; a method keeps it by register_buffer in setup(spec) (docs/extending.md)"
                )


def _leaves(value: Any) -> Iterable[Any]:
    """A value itself, or the members of a container."""
    if isinstance(value, (list, tuple, set, deque)):
        return value
    return value.values() if isinstance(value, dict) else [value]

"""Checks of a method in its first steps: what it returns, and where it keeps its state."""

from collections import deque
from collections.abc import Iterable
from typing import Any

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
    """A network's current parameters and buffers, to restore those that a recorded step replaces."""

    def __init__(self, network: nn.Module) -> None:
        self.tensors: list[tuple[str, dict[str, Any], str, Tensor, Tensor]] = [
            (f"{type(module).__name__}.{name}", place, name, tensor, tensor.detach())
            for module in network.modules()
            for place in (module._parameters, module._buffers)
            for name, tensor in place.items()
            if isinstance(tensor, Tensor)
        ]

    def restore(self) -> list[str]:
        """Restore the tensors that were replaced, or whose memory was; returns their names."""
        replaced = []
        for name, place, key, tensor, memory in self.tensors:
            if place.get(key) is not tensor or tensor.data_ptr() != memory.data_ptr():
                tensor.data = memory
                place[key] = tensor
                replaced.append(name)
        return replaced


class Unsaved:
    """Finds state that neither the optimiser nor a checkpoint sees, by a comparison before and after a step."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.made, self.kept = self._made(), self._plain()

    def _made(self) -> dict[str, Any]:
        """The parameters themselves, because one may be replaced, and the names of the buffers."""
        parameters = {f"parameter {name}": parameter for name, parameter in self.network.named_parameters()}
        return parameters | {f"buffer {name}": True for name, _ in self.network.named_buffers()}

    def _plain(self) -> dict[str, list[tuple[Any, int]]]:
        """Tensors, modules and numbers in plain attributes, alone or in a container, by name.

        Each tensor comes with the count of its in-place changes.
        """
        return {
            f"{place}.{name}".lstrip("."): [(each, getattr(each, "_version", 0)) for each in held]
            for place, module in self.network.named_modules()
            for name, value in vars(module).items()
            if name not in ("_parameters", "_buffers", "_modules")
            and (held := [each for each in _leaves(value) if isinstance(each, (Tensor, nn.Module, int, float))])
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
                    f"{name} is a plain {kind} that a training step changes: no checkpoint holds it, so a resumed run "
                    "would differ; in setup(spec) a method keeps numbers and tensors by register_buffer, and modules "
                    "as its attributes or in a ModuleList (docs/extending.md)"
                )


def _same(before: tuple[Any, int], after: tuple[Any, int]) -> bool:
    (was, changes), (now, changes_now) = before, after
    is_number = type(was) is type(now) and isinstance(was, (int, float))
    return (was is now and changes == changes_now) or (is_number and was == now)


def _leaves(value: Any) -> Iterable[Any]:
    """A value itself, or the members of a container."""
    if isinstance(value, (list, tuple, set, deque)):
        return value
    return value.values() if isinstance(value, dict) else [value]

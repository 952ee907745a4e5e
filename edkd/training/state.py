"""What training changes: student and method as one module, their optimiser, and how far they are."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from edkd.distillers.base import Batch, Distiller, Outcome, StrongView
from edkd.errors import EdkdError
from edkd.models.base import Prediction
from edkd.teachers.source import Precision, in_fp32


class Trainable(nn.Module):
    """The student and its method as one module: one `state_dict`, one list of parameters, one thing to wrap."""

    def __init__(self, student: nn.Module, distiller: Distiller, precision: Precision) -> None:
        super().__init__()
        self.student, self.distiller, self.precision = student, distiller, precision

    def forward(
        self,
        images: Tensor,
        teacher: Prediction | None,
        batch: Batch,
        strong: tuple[Tensor, Prediction] | None = None,
    ) -> tuple[Outcome, Tensor]:
        """The losses of a batch of images [B, 3, H, W], and the logits [B, K] that `predict` gives in this pass.

        strong: a strong view of the images, and what the teacher says of it.
        """
        with self.precision.autocast():
            prediction = in_fp32(self.student(images, want_feats=self.distiller.needs_feats))
            if strong is not None:
                second = in_fp32(self.student(strong[0], want_feats=self.distiller.needs_feats))
                batch = replace(batch, strong=StrongView(second, strong[1]))
        outcome = self.distiller(prediction, teacher, batch)
        # A method's result of another kind is the step's to refuse.
        own = outcome.logits if isinstance(outcome, Outcome) else None
        return outcome, prediction.logits.detach() if own is None else own

    @property
    def ends_in_method(self) -> bool:
        """Whether what is evaluated comes from modules of the method."""
        return type(self.distiller).predict is not Distiller.predict

    def predict(self, images: Tensor) -> Tensor:
        """The logits [B, K] that are evaluated: the student's, or those that the method makes of its features."""
        with self.precision.autocast():
            prediction = in_fp32(self.student(images, want_feats=self.ends_in_method))
        return self.distiller.predict(prediction).logits


class Unsaved:
    """Finds what a method keeps where neither the optimiser nor a checkpoint sees it, by comparing around a step."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.parameters = dict(network.named_parameters())
        self.buffers = {name for name, _ in network.named_buffers()}
        self.tensors = self._plain()

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
        for name, parameter in self.network.named_parameters():
            if self.parameters.get(name) is not parameter:
                raise EdkdError(
                    f"the parameter {name} was made in the first training step, where the optimiser does not see it: "
                    "a method makes its modules in setup(spec) (docs/extending.md)"
                )
        for name, _ in self.network.named_buffers():
            if name not in self.buffers:
                raise EdkdError(
                    f"the buffer {name} was made in the first training step, where a resumed run does not find it: "
                    "a method calls register_buffer in setup(spec) (docs/extending.md)"
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


@dataclass
class TrainState:
    """All that a checkpoint must hold."""

    trainable: Trainable
    optimizer: torch.optim.Optimizer
    epoch: int = 0  # epochs done
    best: dict[str, Any] | None = None

    @property
    def student(self) -> nn.Module:
        """The network that is trained."""
        return self.trainable.student

    @property
    def distiller(self) -> Distiller:
        """The method that trains it."""
        return self.trainable.distiller

    def state(self) -> dict[str, Any]:
        """Tensors and plain values, loadable with `weights_only=True`."""
        return {
            "epoch": self.epoch,
            "best": self.best,
            "model": self.trainable.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        if "model" not in state:  # a checkpoint of version 0.1
            parts = {"student": state["student"], "distiller": state["distiller"]}
            state = {**state, "model": {f"{part}.{key}": v for part, held in parts.items() for key, v in held.items()}}
        self.trainable.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:
            # The saved rate was loaded on the CPU; a saved buffer may have another memory layout than its parameter
            # has now, and fused SGD walks both in the order in which they lie in memory.
            group["lr"] = group["lr"].to(group["params"][0].device)
            for parameter in group["params"]:
                memory = self.optimizer.state.get(parameter, {})  # none without momentum
                for name, held in memory.items():
                    if isinstance(held, Tensor) and held.shape == parameter.shape:
                        memory[name] = torch.empty_like(parameter).copy_(held)
        self.epoch = state["epoch"]
        self.best = state["best"]

"""What training changes: student and method as one module, their optimiser, and how far they are."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from edkd.distillers.base import Batch, Distiller, Outcome, StrongView
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
        """The losses of a batch of images [B, 3, H, W], and the student's logits [B, K].

        strong: a strong view of the images, and what the teacher says of it.
        """
        with self.precision.autocast():
            prediction = in_fp32(self.student(images, want_feats=self.distiller.needs_feats))
            if strong is not None:
                second = in_fp32(self.student(strong[0], want_feats=self.distiller.needs_feats))
                batch = replace(batch, strong=StrongView(second, strong[1]))
        return self.distiller(prediction, teacher, batch), prediction.logits.detach()

    def predict(self, images: Tensor) -> Tensor:
        """The logits [B, K] that are evaluated: the student's, or those that the method makes of its features."""
        wants_feats = type(self.distiller).predict is not Distiller.predict
        with self.precision.autocast():
            prediction = in_fp32(self.student(images, want_feats=wants_feats))
        return self.distiller.predict(prediction).logits


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

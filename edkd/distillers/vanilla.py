"""Plain training with the labels, no teacher: how teachers and baselines are made."""

from typing import ClassVar

from edkd import losses
from edkd.distillers.base import Batch, Distiller, Outcome
from edkd.models.base import Prediction


class Vanilla(Distiller):
    """Cross-entropy alone."""

    needs_teacher: ClassVar[bool] = False
    loss_names: ClassVar[tuple[str, ...]] = ("ce",)

    def forward(self, student: Prediction, teacher: Prediction | None, batch: Batch) -> Outcome:
        """Losses: `ce`."""
        return Outcome({"ce": losses.cross_entropy(student.logits, batch.target)}, {})

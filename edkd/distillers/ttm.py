"""TTM: Zheng and Yang, "Knowledge Distillation Based on Transformed Teacher Matching", ICLR 2024, arXiv:2402.11148."""

from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from edkd import losses
from edkd.distillers.base import Batch, Distiller, Outcome, logits_of
from edkd.models.base import Prediction


class TTM(Distiller):
    """ce_weight·CE + kd_weight·KL(g ‖ p(s)), g the teacher at temperature 1/exponent, the student at 1.

    See `losses.ttm`.
    """

    def __init__(self, *, ce_weight: NonNegativeFloat, kd_weight: NonNegativeFloat, exponent: PositiveFloat) -> None:
        super().__init__()
        self.ce_weight = ce_weight
        self.kd_weight = kd_weight
        self.exponent = exponent

    def match(self, logits_student: Tensor, logits_teacher: Tensor) -> Tensor:
        """The distillation loss of logits [B, K], without its weight."""
        return losses.ttm(logits_student, logits_teacher, self.exponent)

    def forward(self, student: Prediction, teacher: Prediction | None, batch: Batch) -> Outcome:
        """Losses: `ce`, `kd`."""
        ce = losses.cross_entropy(student.logits, batch.target)
        kd = self.match(student.logits, logits_of(teacher))
        return Outcome({"ce": self.ce_weight * ce, "kd": self.kd_weight * kd}, {})

"""NKD: Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation", ICCV 2023, arXiv:2303.13005."""

from pydantic import NonNegativeFloat, PositiveFloat

from edkd import losses
from edkd.distillers.base import Batch, Distiller, Outcome, logits_of
from edkd.models.base import Prediction


class NKD(Distiller):
    """ce_weight·CE + kd_weight·(−p(t)_y·log p(s)_y − gamma·T²·Σ_{j≠y} q_T(t)_j·log q_T(s)_j), without a warm-up.

    p is the softmax at temperature 1, q_T the one at T over the non-target classes; see `losses.nkd`.
    """

    def __init__(
        self,
        *,
        ce_weight: NonNegativeFloat,
        kd_weight: NonNegativeFloat,
        gamma: NonNegativeFloat,
        temperature: PositiveFloat,
    ) -> None:
        super().__init__()
        self.ce_weight = ce_weight
        self.kd_weight = kd_weight
        self.gamma = gamma
        self.temperature = temperature

    def forward(self, student: Prediction, teacher: Prediction | None, batch: Batch) -> Outcome:
        """Losses: `ce`, `kd`."""
        ce = losses.cross_entropy(student.logits, batch.target)
        nkd = losses.nkd(student.logits, logits_of(teacher), batch.target, self.gamma, self.temperature)
        return Outcome({"ce": self.ce_weight * ce, "kd": self.kd_weight * nkd}, {})

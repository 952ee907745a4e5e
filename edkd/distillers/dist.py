"""DIST: Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022, arXiv:2205.10536."""

from pydantic import NonNegativeFloat, PositiveFloat

from edkd import losses
from edkd.distillers.base import Batch, Distiller, Outcome, logits_of
from edkd.models.base import Prediction


class DIST(Distiller):
    """ce_weight·CE + kd_weight·T²·(beta·inter + gamma·intra): correlations of the predicted probabilities.

    inter compares each sample's classes, intra each class's samples; see `losses.dist`.
    """

    def __init__(
        self,
        *,
        ce_weight: NonNegativeFloat,
        kd_weight: NonNegativeFloat,
        beta: NonNegativeFloat,
        gamma: NonNegativeFloat,
        temperature: PositiveFloat,
    ) -> None:
        super().__init__()
        self.ce_weight = ce_weight
        self.kd_weight = kd_weight
        self.beta = beta
        self.gamma = gamma
        self.temperature = temperature

    def forward(self, student: Prediction, teacher: Prediction | None, batch: Batch) -> Outcome:
        """Losses: `ce`, `kd`."""
        ce = losses.cross_entropy(student.logits, batch.target)
        dist = losses.dist(student.logits, logits_of(teacher), self.beta, self.gamma, self.temperature)
        return Outcome({"ce": self.ce_weight * ce, "kd": self.kd_weight * dist}, {})

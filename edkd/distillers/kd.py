"""Knowledge distillation: Hinton, Vinyals and Dean, 2015, arXiv:1503.02531."""

from pydantic import NonNegativeFloat, PositiveFloat

from edkd import losses
from edkd.distillers.base import Batch, Distiller, Outcome, both_logits
from edkd.models.base import Prediction


class KD(Distiller):
    """ce_weight·CE + kd_weight·T²·KL(teacher ‖ student), without a warm-up.

    standardise: compare standardised logits (LS, see `losses.standardise`); CE uses raw ones. Its default is here: in
    kd.yaml it would change the hashes of that file's older runs.
    """

    def __init__(
        self,
        *,
        ce_weight: NonNegativeFloat,
        kd_weight: NonNegativeFloat,
        temperature: PositiveFloat,
        standardise: bool = False,
    ) -> None:
        super().__init__()
        self.ce_weight = ce_weight
        self.kd_weight = kd_weight
        self.temperature = temperature
        self.standardise = standardise

    def forward(self, student: Prediction, teacher: Prediction | None, batch: Batch) -> Outcome:
        """Losses: `ce`, `kd`."""
        ce = losses.cross_entropy(student.logits, batch.target)
        kd = losses.kd(*both_logits(student, teacher, self.standardise), self.temperature)
        return Outcome({"ce": self.ce_weight * ce, "kd": self.kd_weight * kd}, {})

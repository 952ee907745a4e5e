"""RLD: Sun et al., "Knowledge Distillation with Refined Logits", 2024, arXiv:2408.07703."""

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat

from edkd import losses
from edkd.distillers.base import Batch, Distiller, Outcome, both_logits, warmup_weight
from edkd.models.base import Prediction


class RLD(Distiller):
    """ce_weight·CE + w(epoch)·(alpha·SCD + beta·MCD), w rising linearly to 1 over `warmup_epochs` (0: no warm-up).

    SCD, at `alpha_temperature`, compares the student's target with the teacher's top class; MCD, at `temperature`, the
    classes that the teacher ranks below the target; see `losses.rld`. In the published code alpha_temperature is 1
    unless its "same temperature" option is set, as in its authors' example.

    standardise: compare standardised logits (LS, see `losses.standardise`), which the authors offer as well.
    """

    def __init__(
        self,
        *,
        ce_weight: NonNegativeFloat,
        alpha: NonNegativeFloat,
        beta: NonNegativeFloat,
        temperature: PositiveFloat,
        alpha_temperature: PositiveFloat,
        warmup_epochs: NonNegativeInt,
        standardise: bool,
    ) -> None:
        super().__init__()
        self.ce_weight = ce_weight
        self.alpha = alpha
        self.beta = beta
        self.temperature = temperature
        self.alpha_temperature = alpha_temperature
        self.warmup_epochs = warmup_epochs
        self.standardise = standardise

    def forward(self, student: Prediction, teacher: Prediction | None, batch: Batch) -> Outcome:
        """Losses: `ce`, `kd`."""
        ce = losses.cross_entropy(student.logits, batch.target)
        logits = both_logits(student, teacher, self.standardise)
        rld = losses.rld(*logits, batch.target, self.alpha, self.beta, self.temperature, self.alpha_temperature)
        weight = warmup_weight(batch.epoch, self.warmup_epochs)
        return Outcome({"ce": self.ce_weight * ce, "kd": weight * rld}, {})

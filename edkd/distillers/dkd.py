"""Decoupled knowledge distillation: Zhao et al., CVPR 2022, arXiv:2203.08679."""

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat

from edkd import losses
from edkd.distillers.base import Batch, Distiller, Outcome, both_logits, warmup_weight
from edkd.models.base import Prediction


class DKD(Distiller):
    """ce_weight·CE + w(epoch)·(alpha·TCKD + beta·NCKD), w rising linearly to 1 over `warmup_epochs` (0: no warm-up).

    standardise: compare standardised logits (LS, see `losses.standardise`); CE uses raw ones. Its default is here: in
    dkd.yaml it would change the hashes of that file's older runs.
    """

    def __init__(
        self,
        *,
        ce_weight: NonNegativeFloat,
        alpha: NonNegativeFloat,
        beta: NonNegativeFloat,
        temperature: PositiveFloat,
        warmup_epochs: NonNegativeInt,
        standardise: bool = False,
    ) -> None:
        super().__init__()
        self.ce_weight = ce_weight
        self.alpha = alpha
        self.beta = beta
        self.temperature = temperature
        self.warmup_epochs = warmup_epochs
        self.standardise = standardise

    def forward(self, student: Prediction, teacher: Prediction | None, batch: Batch) -> Outcome:
        """Losses: `ce`, `kd`."""
        ce = losses.cross_entropy(student.logits, batch.target)
        logits = both_logits(student, teacher, self.standardise)
        dkd = losses.dkd(*logits, batch.target, self.alpha, self.beta, self.temperature)
        weight = warmup_weight(batch.epoch, self.warmup_epochs)
        return Outcome({"ce": self.ce_weight * ce, "kd": weight * dkd}, {})

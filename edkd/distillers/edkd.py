"""Exponential dynamic knowledge distillation: DKD whose NCKD weight follows the teacher's confidence in each sample."""

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat

from edkd import losses
from edkd.distillers.base import Batch, Distiller, Outcome, both_logits, warmup_weight
from edkd.models.base import Prediction


class EDKD(Distiller):
    """ce_weight·CE + w(epoch)·(alpha·TCKD + beta_i·NCKD), beta_i = beta·exp(−(1 − c_i)), w as in DKD.

    `weighting` says where beta_i is applied: "batch" is as published, mean(beta_i)·mean(NCKD); "sample" is
    mean(beta_i·NCKD_i).

    standardise: compare standardised logits (LS, see `losses.standardise`); CE uses raw ones. Its default is here: in
    edkd.yaml it would change the hashes of that file's older runs.
    """

    def __init__(
        self,
        *,
        ce_weight: NonNegativeFloat,
        alpha: NonNegativeFloat,
        beta: NonNegativeFloat,
        temperature: PositiveFloat,
        warmup_epochs: NonNegativeInt,
        weighting: losses.Weighting,
        standardise: bool = False,
    ) -> None:
        super().__init__()
        self.ce_weight = ce_weight
        self.alpha = alpha
        self.beta = beta
        self.temperature = temperature
        self.warmup_epochs = warmup_epochs
        self.weighting = weighting
        self.standardise = standardise

    def forward(self, student: Prediction, teacher: Prediction | None, batch: Batch) -> Outcome:
        """Losses: `ce`, `kd`. Metrics: `edkd/beta_mean`, `edkd/confidence_mean`. By class: `beta`, `confidence`."""
        ce = losses.cross_entropy(student.logits, batch.target)
        logits = both_logits(student, teacher, self.standardise)
        edkd, beta, confidence = losses.edkd(
            *logits, batch.target, self.alpha, self.beta, self.temperature, self.weighting
        )
        weight = warmup_weight(batch.epoch, self.warmup_epochs)
        return Outcome(
            {"ce": self.ce_weight * ce, "kd": weight * edkd},
            {"edkd/beta_mean": beta.mean(), "edkd/confidence_mean": confidence.mean()},
            by_class={"beta": beta, "confidence": confidence},
        )

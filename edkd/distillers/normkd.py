"""NormKD: Chi et al., "NormKD: Normalized Logits for Knowledge Distillation", 2023, arXiv:2308.00520."""

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat

from edkd import losses
from edkd.distillers.base import Batch, Distiller, Outcome, logits_of, warmup_weight
from edkd.models.base import Prediction


class NormKD(Distiller):
    """ce_weight·CE + kd_weight·τ_t²·KL(softmax(t / τ_t) ‖ softmax(s / τ_s)), τ = temperature_norm·std of each sample.

    See `losses.normkd`.
    """

    def __init__(
        self, *, ce_weight: NonNegativeFloat, kd_weight: NonNegativeFloat, temperature_norm: PositiveFloat
    ) -> None:
        super().__init__()
        self.ce_weight = ce_weight
        self.kd_weight = kd_weight
        self.temperature_norm = temperature_norm

    def forward(self, student: Prediction, teacher: Prediction | None, batch: Batch) -> Outcome:
        """Losses: `ce`, `kd`."""
        ce = losses.cross_entropy(student.logits, batch.target)
        normkd = losses.normkd(student.logits, logits_of(teacher), self.temperature_norm)
        return Outcome({"ce": self.ce_weight * ce, "kd": self.kd_weight * normkd}, {})


class NormDKD(Distiller):
    """ce_weight·CE + w(epoch)·τ_t²·(alpha·TCKD + beta·NCKD) of the divided logits, w as in DKD.

    See `losses.normkd_dkd`.
    """

    def __init__(
        self,
        *,
        ce_weight: NonNegativeFloat,
        alpha: NonNegativeFloat,
        beta: NonNegativeFloat,
        temperature_norm: PositiveFloat,
        warmup_epochs: NonNegativeInt,
    ) -> None:
        super().__init__()
        self.ce_weight = ce_weight
        self.alpha = alpha
        self.beta = beta
        self.temperature_norm = temperature_norm
        self.warmup_epochs = warmup_epochs

    def forward(self, student: Prediction, teacher: Prediction | None, batch: Batch) -> Outcome:
        """Losses: `ce`, `kd`."""
        ce = losses.cross_entropy(student.logits, batch.target)
        logits = student.logits, logits_of(teacher)
        normkd = losses.normkd_dkd(*logits, batch.target, self.alpha, self.beta, self.temperature_norm)
        weight = warmup_weight(batch.epoch, self.warmup_epochs)
        return Outcome({"ce": self.ce_weight * ce, "kd": weight * normkd}, {})

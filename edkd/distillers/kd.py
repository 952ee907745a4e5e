"""Knowledge distillation: Hinton, Vinyals and Dean, 2015, arXiv:1503.02531."""

from edkd import losses
from edkd.distillers.base import Batch, Distiller, Outcome, check_temperature, check_weights, logits_of
from edkd.models.base import Prediction


class KD(Distiller):
    """ce_weight·CE + kd_weight·T²·KL(teacher ‖ student), without a warm-up."""

    def __init__(self, *, ce_weight: float, kd_weight: float, temperature: float) -> None:
        super().__init__()
        check_temperature(temperature)
        check_weights(ce_weight=ce_weight, kd_weight=kd_weight)
        self.ce_weight = ce_weight
        self.kd_weight = kd_weight
        self.temperature = temperature

    def forward(self, student: Prediction, teacher: Prediction | None, batch: Batch) -> Outcome:
        """Losses: `ce`, `kd`."""
        ce = losses.cross_entropy(student.logits, batch.target)
        kd = losses.kd(student.logits, logits_of(teacher), self.temperature)
        return Outcome({"ce": self.ce_weight * ce, "kd": self.kd_weight * kd}, {})

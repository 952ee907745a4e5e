"""DeepKD: Huang et al., "DeepKD: A Deeply Decoupled and Denoised Knowledge Distillation Trainer", 2025.

arXiv:2505.15133. These are its losses; its optimiser, which gives each of the three losses a momentum of its own, is
`edkd.training.optimizers.DeepKD`.
"""

from typing import ClassVar

from torch import Tensor

from edkd import losses
from edkd.distillers.base import (
    Batch,
    Distiller,
    Outcome,
    Spec,
    check_temperature,
    check_warmup,
    check_weights,
    logits_of,
    warmup_weight,
)
from edkd.errors import EdkdError
from edkd.models.base import Prediction


class _TopClasses(Distiller):
    """TCKD, and NCKD over all classes but the target or, with `top_k`, over the teacher's largest logits."""

    loss_names: ClassVar[tuple[str, ...]] = ("ce", "tckd", "nckd")
    needs_losses_apart: ClassVar[bool] = True

    def __init__(self, *, temperature: float, top_k: int, name: str) -> None:
        super().__init__()
        check_temperature(temperature)
        if top_k < 0:
            raise EdkdError(
                f"distiller.top_k is {top_k}: it must be 0 (all classes) or more (see conf/distiller/{name}.yaml)"
            )
        self.temperature = temperature
        self.top_k = top_k

    def setup(self, spec: Spec) -> None:
        """Check that there are at least `top_k` classes."""
        if self.top_k > spec.num_classes:
            raise EdkdError(f"distiller.top_k is {self.top_k}: the data set has {spec.num_classes} classes")

    def parts(self, student: Prediction, teacher: Prediction | None, target: Tensor) -> losses.Decoupled:
        """TCKD and NCKD, with the teacher's log odds."""
        logits = student.logits, logits_of(teacher)
        parts = losses.decouple(*logits, target, self.temperature)
        if self.top_k == 0:
            return parts
        return parts._replace(nckd=losses.nckd_among_top(*logits, target, self.temperature, self.top_k))


class DeepKD(_TopClasses):
    """ce_weight·CE, TCKD and (1 − p_T(t)_y)·NCKD: KD in three losses, for an optimiser that treats them apart.

    weighting: where 1 − p_T(t)_y is applied. "batch" is as published, mean(1 − p_y)·mean(NCKD); "sample" is
    mean((1 − p_y)·NCKD), which with TCKD makes KD.
    """

    def __init__(self, *, ce_weight: float, temperature: float, top_k: int, weighting: losses.Weighting) -> None:
        super().__init__(temperature=temperature, top_k=top_k, name="deepkd")
        check_weights(ce_weight=ce_weight)
        if weighting not in losses.WEIGHTINGS:
            valid = ", ".join(losses.WEIGHTINGS)
            raise EdkdError(f"distiller.weighting is {weighting!r}; valid: {valid} (see conf/distiller/deepkd.yaml)")
        self.ce_weight = ce_weight
        self.weighting = weighting

    def forward(self, student: Prediction, teacher: Prediction | None, batch: Batch) -> Outcome:
        """Losses: `ce`, `tckd`, `nckd`."""
        ce = losses.cross_entropy(student.logits, batch.target)
        tckd, nckd, log_odds = self.parts(student, teacher, batch.target)
        other = (-log_odds).sigmoid()  # 1 − p_y, [B]
        weighed = other.mean() * nckd.mean() if self.weighting == "batch" else (other * nckd).mean()
        return Outcome({"ce": self.ce_weight * ce, "tckd": tckd.mean(), "nckd": weighed}, {})


class DeepDKD(_TopClasses):
    """ce_weight·CE, w(epoch)·alpha·TCKD and w(epoch)·beta·NCKD: DKD in three losses, w as in DKD."""

    def __init__(
        self, *, ce_weight: float, alpha: float, beta: float, temperature: float, warmup_epochs: int, top_k: int
    ) -> None:
        super().__init__(temperature=temperature, top_k=top_k, name="deepkd_dkd")
        check_weights(ce_weight=ce_weight, alpha=alpha, beta=beta)
        check_warmup(warmup_epochs)
        self.ce_weight = ce_weight
        self.alpha = alpha
        self.beta = beta
        self.warmup_epochs = warmup_epochs

    def forward(self, student: Prediction, teacher: Prediction | None, batch: Batch) -> Outcome:
        """Losses: `ce`, `tckd`, `nckd`."""
        ce = losses.cross_entropy(student.logits, batch.target)
        parts = self.parts(student, teacher, batch.target)
        weight = warmup_weight(batch.epoch, self.warmup_epochs)
        return Outcome(
            {
                "ce": self.ce_weight * ce,
                "tckd": weight * self.alpha * parts.tckd.mean(),
                "nckd": weight * self.beta * parts.nckd.mean(),
            },
            {},
        )

"""DeepKD: Huang et al., "DeepKD: A Deeply Decoupled and Denoised Knowledge Distillation Trainer", 2025.

arXiv:2505.15133. These are its losses; its optimiser, which gives each of the three losses a momentum of its own, is
`edkd.training.optimizers.DeepKD`.
"""

from typing import ClassVar

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat
from torch import Tensor

from edkd import losses
from edkd.distillers.base import Batch, Distiller, Outcome, Spec, logits_of, warmup_weight
from edkd.errors import EdkdError
from edkd.models.base import Prediction


class _TopClasses(Distiller):
    """TCKD, and NCKD over all classes but the target or, with `top_k`, over the teacher's largest logits."""

    loss_names: ClassVar[tuple[str, ...]] = ("ce", "tckd", "nckd")
    needs_losses_apart: ClassVar[bool] = True

    def __init__(self, *, temperature: PositiveFloat, top_k: NonNegativeInt) -> None:
        super().__init__()
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

    def __init__(
        self,
        *,
        ce_weight: NonNegativeFloat,
        temperature: PositiveFloat,
        top_k: NonNegativeInt,
        weighting: losses.Weighting,
    ) -> None:
        super().__init__(temperature=temperature, top_k=top_k)
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
        self,
        *,
        ce_weight: NonNegativeFloat,
        alpha: NonNegativeFloat,
        beta: NonNegativeFloat,
        temperature: PositiveFloat,
        warmup_epochs: NonNegativeInt,
        top_k: NonNegativeInt,
    ) -> None:
        super().__init__(temperature=temperature, top_k=top_k)
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

"""Scale-decoupled distillation: Wei, Luo and Luo, CVPR 2024, arXiv:2403.13512; on KD, DKD and NKD."""

from abc import abstractmethod
from typing import ClassVar

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat
from torch import Tensor

from edkd import losses
from edkd.distillers.base import Batch, Distiller, Outcome, warmup_weight
from edkd.errors import EdkdError
from edkd.models.base import Prediction


class SDD(Distiller):
    """ce_weight·CE + kd_weight·warmup(epoch)·mean over regions and samples of w·(a logit loss of the region's logits).

    Both networks' last maps are pooled to 4x4; the cells of their m x m pooling, for each m of `scales`, are the
    regions, and each network's classifier gives a cell's logits. w is 1 where the teacher is right in the region
    exactly when it is right on the whole image, else 2. The first scale is 1, the whole image. CE sees the ordinary
    logits.

    The published code replaces a loss that is not finite by 0; here it stops the run, as with every method.
    """

    needs_feats: ClassVar[bool] = True
    kd_weight: float = 1.0
    warmup_epochs: int = 0
    """The epochs over which the weight rises linearly, see `warmup_weight`."""

    def __init__(self, *, ce_weight: NonNegativeFloat, temperature: PositiveFloat, scales: list[int]) -> None:
        super().__init__()
        if scales[:1] != [1] or not set(scales) <= {1, 2, 4}:
            raise EdkdError(
                f"distiller.scales is {scales}: it must begin with 1, the whole image, and go on with any of 2 and 4 "
                "(see conf/distiller/sd_kd.yaml)"
            )
        self.ce_weight = ce_weight
        self.temperature = temperature
        self.scales = scales

    @abstractmethod
    def each(self, logits_student: Tensor, logits_teacher: Tensor, target: Tensor) -> Tensor:
        """The logit loss of each row: [R, K], [R, K] and [R] to [R]."""

    def forward(self, student: Prediction, teacher: Prediction | None, batch: Batch) -> Outcome:
        """Losses: `ce`, `kd`."""
        assert teacher is not None
        ce = losses.cross_entropy(student.logits, batch.target)
        sdd = losses.sdd(self._regional_logits(student), self._regional_logits(teacher), batch.target, self.each)
        weight = warmup_weight(batch.epoch, self.warmup_epochs)
        return Outcome({"ce": self.ce_weight * ce, "kd": weight * (self.kd_weight * sdd)}, {})

    def _regional_logits(self, prediction: Prediction) -> Tensor:
        """[B, N, K]."""
        assert prediction.last_map is not None and prediction.classifier is not None
        return losses.regional_logits(prediction.last_map, *prediction.classifier, self.scales)


class SDKD(SDD):
    """SDD with KD, T²·KL(teacher ‖ student), in each region, with kd_weight and without a warm-up."""

    def __init__(
        self, *, ce_weight: NonNegativeFloat, kd_weight: NonNegativeFloat, temperature: PositiveFloat, scales: list[int]
    ) -> None:
        super().__init__(ce_weight=ce_weight, temperature=temperature, scales=scales)
        self.kd_weight = kd_weight

    def each(self, logits_student: Tensor, logits_teacher: Tensor, target: Tensor) -> Tensor:
        """KD of each row: [R, K] to [R]."""
        return losses.kd_per_sample(logits_student, logits_teacher, self.temperature)


class SDDKD(SDD):
    """SDD with DKD, alpha·TCKD + beta·NCKD, in each region, under DKD's warm-up."""

    def __init__(
        self,
        *,
        ce_weight: NonNegativeFloat,
        alpha: NonNegativeFloat,
        beta: NonNegativeFloat,
        temperature: PositiveFloat,
        scales: list[int],
        warmup_epochs: NonNegativeInt,
    ) -> None:
        super().__init__(ce_weight=ce_weight, temperature=temperature, scales=scales)
        self.alpha = alpha
        self.beta = beta
        self.warmup_epochs = warmup_epochs

    def each(self, logits_student: Tensor, logits_teacher: Tensor, target: Tensor) -> Tensor:
        """DKD of each row: [R, K] to [R]."""
        parts = losses.decouple(logits_student, logits_teacher, target, self.temperature)
        return self.alpha * parts.tckd + self.beta * parts.nckd


class SDNKD(SDD):
    """SDD with NKD in each region, under DKD's warm-up.

    `mask_target` leaves the target out of NKD's second sum, as NKD does. The published code of SDD intends this
    but runs that sum over all classes with the plain softmax, as False does.
    """

    def __init__(
        self,
        *,
        ce_weight: NonNegativeFloat,
        gamma: NonNegativeFloat,
        temperature: PositiveFloat,
        mask_target: bool,
        scales: list[int],
        warmup_epochs: NonNegativeInt,
    ) -> None:
        super().__init__(ce_weight=ce_weight, temperature=temperature, scales=scales)
        self.gamma = gamma
        self.mask_target = mask_target
        self.warmup_epochs = warmup_epochs

    def each(self, logits_student: Tensor, logits_teacher: Tensor, target: Tensor) -> Tensor:
        """NKD of each row: [R, K] to [R]."""
        return losses.nkd_per_sample(
            logits_student, logits_teacher, target, self.gamma, self.temperature, self.mask_target
        )

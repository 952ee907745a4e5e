"""Similarity-preserving knowledge distillation: Tung and Mori, ICCV 2019, arXiv:1907.09682."""

from typing import ClassVar

from pydantic import NonNegativeFloat

from edkd import losses
from edkd.distillers.base import Batch, Distiller, Outcome
from edkd.models.base import Prediction


class SP(Distiller):
    """ce_weight·CE + feat_weight·mean squared difference of the similarity matrices of the last stage's maps.

    A matrix holds the inner products of the samples' maps, `feats[-1]`, each row scaled to length 1; the CRD benchmark
    compares the last stage alone, the paper also earlier ones.
    """

    needs_feats: ClassVar[bool] = True

    def __init__(self, *, ce_weight: NonNegativeFloat, feat_weight: NonNegativeFloat) -> None:
        super().__init__()
        self.ce_weight = ce_weight
        self.feat_weight = feat_weight

    def forward(self, student: Prediction, teacher: Prediction | None, batch: Batch) -> Outcome:
        """Losses: `ce`, `kd`."""
        assert teacher is not None
        ce = losses.cross_entropy(student.logits, batch.target)
        sp = losses.sp(student.feats[-1], teacher.feats[-1])
        return Outcome({"ce": self.ce_weight * ce, "kd": self.feat_weight * sp}, {})

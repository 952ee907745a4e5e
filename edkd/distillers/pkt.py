"""Probabilistic knowledge transfer: Passalis and Tefas, ECCV 2018, arXiv:1803.10837."""

from typing import ClassVar

from pydantic import NonNegativeFloat

from edkd import losses
from edkd.distillers.base import Batch, Distiller, Outcome
from edkd.models.base import Prediction


class PKT(Distiller):
    """ce_weight·CE + feat_weight·mean over pairs of samples of p_t·log(p_t / p_s).

    p is the cosine similarity of two samples' `pooled_feat`, moved to [0, 1] and divided by its sum over the batch.
    """

    needs_feats: ClassVar[bool] = True

    def __init__(self, *, ce_weight: NonNegativeFloat, feat_weight: NonNegativeFloat) -> None:
        super().__init__()
        self.ce_weight = ce_weight
        self.feat_weight = feat_weight

    def forward(self, student: Prediction, teacher: Prediction | None, batch: Batch) -> Outcome:
        """Losses: `ce`, `kd`."""
        assert student.pooled_feat is not None and teacher is not None and teacher.pooled_feat is not None
        ce = losses.cross_entropy(student.logits, batch.target)
        pkt = losses.pkt(student.pooled_feat, teacher.pooled_feat)
        return Outcome({"ce": self.ce_weight * ce, "kd": self.feat_weight * pkt}, {})

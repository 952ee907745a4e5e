"""Neuron selectivity transfer: Huang and Wang, "Like What You Like", 2017, arXiv:1707.01219."""

from typing import ClassVar

from pydantic import NonNegativeFloat

from edkd import losses
from edkd.distillers.base import Batch, Distiller, Outcome, Spec
from edkd.distillers.stages import paired
from edkd.models.base import Prediction


class NST(Distiller):
    """ce_weight·CE + feat_weight·Σ over stages of the squared maximum mean discrepancy of the channels' patterns.

    A pattern is a channel of `feats` as a vector of all places, scaled to length 1; the kernel is (xᵀy)². Stages are
    paired from the last one backwards, without the stems; the larger map is pooled to the smaller's size.
    """

    needs_feats: ClassVar[bool] = True

    def __init__(self, *, ce_weight: NonNegativeFloat, feat_weight: NonNegativeFloat) -> None:
        super().__init__()
        self.ce_weight = ce_weight
        self.feat_weight = feat_weight

    def setup(self, spec: Spec) -> None:
        """Raise EdkdError for networks without stages to compare."""
        assert spec.teacher is not None
        paired(spec.student.feats, spec.teacher.feats)

    def forward(self, student: Prediction, teacher: Prediction | None, batch: Batch) -> Outcome:
        """Losses: `ce`, `kd`."""
        assert teacher is not None
        ce = losses.cross_entropy(student.logits, batch.target)
        nst = sum((losses.nst(*maps) for maps in paired(student.feats, teacher.feats)), start=ce.new_zeros(()))
        return Outcome({"ce": self.ce_weight * ce, "kd": self.feat_weight * nst}, {})

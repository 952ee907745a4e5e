"""Attention transfer: Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017, arXiv:1612.03928."""

from typing import Annotated, ClassVar

from pydantic import Field, NonNegativeFloat

from edkd import losses
from edkd.distillers.base import Batch, Distiller, Outcome, Spec
from edkd.distillers.stages import paired
from edkd.models.base import Prediction


class AT(Distiller):
    """ce_weight·CE + feat_weight·Σ over stages of the mean squared difference of two attention maps.

    A sample's attention at a stage is Σ_c |f_c|^p over the channels of `feats`, scaled to length 1. Stages are paired
    from the last one backwards, without the stems; the larger map is pooled to the smaller's size.
    """

    needs_feats: ClassVar[bool] = True

    def __init__(
        self, *, ce_weight: NonNegativeFloat, feat_weight: NonNegativeFloat, p: Annotated[float, Field(ge=1)]
    ) -> None:
        super().__init__()
        self.ce_weight = ce_weight
        self.feat_weight = feat_weight
        self.p = p

    def setup(self, spec: Spec) -> None:
        """Raise EdkdError for networks without stages to compare."""
        assert spec.teacher is not None
        paired(spec.student.feats, spec.teacher.feats)

    def forward(self, student: Prediction, teacher: Prediction | None, batch: Batch) -> Outcome:
        """Losses: `ce`, `kd`."""
        assert teacher is not None
        ce = losses.cross_entropy(student.logits, batch.target)
        stages = paired(student.feats, teacher.feats)
        at = sum((losses.at(*maps, self.p) for maps in stages), start=ce.new_zeros(()))
        return Outcome({"ce": self.ce_weight * ce, "kd": self.feat_weight * at}, {})

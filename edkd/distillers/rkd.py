"""Relational knowledge distillation: Park, Kim, Lu and Cho, CVPR 2019, arXiv:1904.05068."""

from typing import ClassVar

from pydantic import NonNegativeFloat

from edkd import losses
from edkd.distillers.base import Batch, Distiller, Outcome
from edkd.models.base import Prediction


class RKD(Distiller):
    """ce_weight·CE + distance_weight·(relative distances of pairs) + angle_weight·(angles of triplets).

    Both are Huber losses between relations of the samples' `pooled_feat` in the student and in the teacher.
    """

    needs_feats: ClassVar[bool] = True

    def __init__(
        self, *, ce_weight: NonNegativeFloat, distance_weight: NonNegativeFloat, angle_weight: NonNegativeFloat
    ) -> None:
        super().__init__()
        self.ce_weight = ce_weight
        self.distance_weight = distance_weight
        self.angle_weight = angle_weight

    def forward(self, student: Prediction, teacher: Prediction | None, batch: Batch) -> Outcome:
        """Losses: `ce`, `kd`."""
        assert student.pooled_feat is not None and teacher is not None and teacher.pooled_feat is not None
        ce = losses.cross_entropy(student.logits, batch.target)
        rkd = losses.rkd(student.pooled_feat, teacher.pooled_feat, self.distance_weight, self.angle_weight)
        return Outcome({"ce": self.ce_weight * ce, "kd": rkd}, {})

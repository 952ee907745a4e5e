"""Class attention transfer: Guo, Yan, Li and Lin, CVPR 2023, arXiv:2304.12777."""

from typing import ClassVar

from pydantic import NonNegativeFloat, PositiveInt

from edkd import losses
from edkd.distillers.base import Batch, Distiller, Outcome
from edkd.models.base import Prediction


class CATKD(Distiller):
    """ce_weight·CE + feat_weight·MSE of the class maps of student and teacher, pooled to resolution x resolution.

    A class map is a classifier's weight, without its bias, at each place of the last map. `normalize` scales each
    pooled map to length 1; `binarize` is an ablation of the paper, see `losses.catkd`. The paper's student has no bias
    in its classifier; here the student's logits keep the bias.
    """

    needs_feats: ClassVar[bool] = True

    def __init__(
        self,
        *,
        ce_weight: NonNegativeFloat,
        feat_weight: NonNegativeFloat,
        resolution: PositiveInt,
        normalize: bool,
        binarize: bool,
    ) -> None:
        super().__init__()
        self.ce_weight = ce_weight
        self.feat_weight = feat_weight
        self.resolution = resolution
        self.normalize = normalize
        self.binarize = binarize

    def forward(self, student: Prediction, teacher: Prediction | None, batch: Batch) -> Outcome:
        """Losses: `ce`, `kd`."""
        assert student.last_map is not None and student.classifier is not None
        assert teacher is not None and teacher.last_map is not None and teacher.classifier is not None
        ce = losses.cross_entropy(student.logits, batch.target)
        maps_student = losses.class_maps(student.last_map, student.classifier.weight)
        maps_teacher = losses.class_maps(teacher.last_map, teacher.classifier.weight)
        cat = losses.catkd(maps_student, maps_teacher, self.resolution, self.normalize, self.binarize)
        return Outcome({"ce": self.ce_weight * ce, "kd": self.feat_weight * cat}, {})

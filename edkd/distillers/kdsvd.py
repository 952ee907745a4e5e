"""KDSVD: Lee, Kim and Song, "Self-supervised Knowledge Distillation Using SVD", ECCV 2018, arXiv:1807.06819."""

from typing import ClassVar

from edkd import losses
from edkd.distillers.base import Batch, Distiller, Outcome, Spec
from edkd.errors import EdkdError
from edkd.models.base import Prediction


class KDSVD(Distiller):
    """ce_weight·CE + feat_weight·Σ over successive stages of squared differences between relations of singular vectors.

    See `losses.kdsvd`; a stage is `feats` without the stem. Only pairs whose stages have the same channels can be
    compared. The eigenvalue solver reads back from the device, so on a GPU steps are run one by one.
    """

    needs_feats: ClassVar[bool] = True

    def __init__(self, *, ce_weight: float, feat_weight: float, k: int) -> None:
        super().__init__()
        if k < 1:
            raise EdkdError(f"distiller.k is {k}: it must be 1 or more (see conf/distiller/kdsvd.yaml)")
        self.ce_weight = ce_weight
        self.feat_weight = feat_weight
        self.k = k

    def setup(self, spec: Spec) -> None:
        """Refuse pairs of other shapes; there is nothing to make."""
        assert spec.teacher is not None
        student, teacher = ([shape[0] for shape in shapes.feats[1:]] for shapes in (spec.student, spec.teacher))
        if student != teacher:
            raise EdkdError(
                f"KDSVD needs the same channels in each stage, and the student has {student}, the teacher {teacher}: "
                "it works for resnet56-resnet20, resnet110-resnet32, resnet32x4-resnet8x4, wrn_40_2-wrn_16_2 and "
                "vgg13-vgg8"
            )
        if self.k + losses.KDSVD_EXTRA > min(student):
            raise EdkdError(
                f"distiller.k is {self.k}: with {losses.KDSVD_EXTRA} more it must not exceed the fewest channels of a "
                f"stage, {min(student)} (see conf/distiller/kdsvd.yaml)"
            )

    def forward(self, student: Prediction, teacher: Prediction | None, batch: Batch) -> Outcome:
        """Losses: `ce`, `kd`."""
        assert teacher is not None
        ce = losses.cross_entropy(student.logits, batch.target)
        kdsvd = losses.kdsvd(student.feats[1:], teacher.feats[1:], self.k)
        return Outcome({"ce": self.ce_weight * ce, "kd": self.feat_weight * kdsvd}, {})

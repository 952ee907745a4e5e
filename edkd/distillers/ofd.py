"""A comprehensive overhaul of feature distillation: Heo et al., ICCV 2019, arXiv:1904.01866."""

from typing import ClassVar

from pydantic import NonNegativeFloat, PositiveInt
from torch import nn

from edkd import losses
from edkd.distillers.base import Batch, Distiller, Outcome, Spec
from edkd.distillers.stages import paired
from edkd.errors import EdkdError
from edkd.models.base import Prediction


class OFD(Distiller):
    """ce_weight·CE + feat_weight·Σ over stages i of n of 2^(i − n)·(partial squared distance of maps before the ReLU).

    The student's map passes a convolution (no bias) to the teacher's width and a batch norm; the teacher's is pooled to
    the student's size and raised to the margin of its channel, the expected value of the negative outputs of the batch
    norm before that ReLU. Entries where the teacher is not active and the student is below it count nothing.

    A student without `preact_feats` (mobilenetv2, whose stages end without a ReLU) gives its `feats`; no code for such
    pairs is published. Stages are paired from the last one backwards, without the stems. The published code
    leaves the teacher in train mode and rounds margins to single precision; here the teacher is in eval mode.
    """

    needs_feats: ClassVar[bool] = True

    def __init__(self, *, ce_weight: NonNegativeFloat, feat_weight: NonNegativeFloat, kernel_size: PositiveInt) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise EdkdError(f"distiller.kernel_size is {kernel_size}: it must be odd (see conf/distiller/ofd.yaml)")
        self.ce_weight = ce_weight
        self.feat_weight = feat_weight
        self.kernel_size = kernel_size

    def setup(self, spec: Spec) -> None:
        """Make the connectors, and the margins from the teacher's batch norms."""
        assert spec.teacher is not None
        if not spec.teacher_norms:
            raise EdkdError(
                "OFD needs a teacher with a batch norm before the ReLU that ends each stage, which this one, with maps "
                f"{spec.teacher.feats}, does not have: ResNets, WideResNets and VGGs have it"
            )
        stages = paired(spec.student.preact_feats or spec.student.feats, spec.teacher.preact_feats)
        self.connectors = nn.ModuleList()
        for i, ((width, _, _), (goal, _, _)) in enumerate(stages):
            conv = nn.Conv2d(width, goal, self.kernel_size, padding=self.kernel_size // 2, bias=False)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            self.connectors.append(nn.Sequential(conv, nn.BatchNorm2d(goal)))
            self.register_buffer(f"margin{i}", losses.ofd_margin(*spec.teacher_norms[i - len(stages)]))

    def forward(self, student: Prediction, teacher: Prediction | None, batch: Batch) -> Outcome:
        """Losses: `ce`, `kd`."""
        assert teacher is not None
        ce = losses.cross_entropy(student.logits, batch.target)
        ofd = ce.new_zeros(())
        stages = paired(student.preact_feats or student.feats, teacher.preact_feats)
        for i, (connector, (feat, goal)) in enumerate(zip(self.connectors, stages, strict=True)):
            stage = losses.ofd(connector(feat), losses.pool(goal, feat.shape[-1]), self.get_buffer(f"margin{i}"))
            ofd = ofd + stage / 2 ** (len(stages) - 1 - i)
        return Outcome({"ce": self.ce_weight * ce, "kd": self.feat_weight * ofd}, {})

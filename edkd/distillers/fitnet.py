"""FitNets: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, arXiv:1412.6550."""

from typing import ClassVar

import torch.nn.functional as F
from pydantic import NonNegativeFloat
from torch import Tensor, nn

from edkd import losses
from edkd.distillers.base import Batch, Distiller, Outcome, Spec
from edkd.errors import EdkdError
from edkd.models.base import Prediction


class Regressor(nn.Module):
    """ReLU(BN(convolution)) from the student's map to the shape of the teacher's; both shapes are (C, H, W), H = W."""

    def __init__(self, student: tuple[int, int, int], teacher: tuple[int, int, int]) -> None:
        super().__init__()
        (inputs, height, _), (outputs, goal, _) = student, teacher
        self.conv: nn.Module
        if height == 2 * goal:
            self.conv = nn.Conv2d(inputs, outputs, kernel_size=3, stride=2, padding=1)
        elif 2 * height == goal:
            self.conv = nn.ConvTranspose2d(inputs, outputs, kernel_size=4, stride=2, padding=1)
        elif height >= goal:
            self.conv = nn.Conv2d(inputs, outputs, kernel_size=1 + height - goal)
        else:
            raise EdkdError(
                f"FitNet cannot match the student's {height}x{height} map with the teacher's {goal}x{goal}: "
                "the student's must be as large, larger, or half as large (see distiller.hint_stage)"
            )
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, feat: Tensor) -> Tensor:
        """[B, C, H, W] of the student to the shape of the teacher's map."""
        return F.relu(self.bn(self.conv(feat)))


class FitNet(Distiller):
    """ce_weight·CE + feat_weight·MSE(regressor(f_s), f_t) on the maps `feats[hint_stage]`; stage 0 is the stem's.

    As in the CRD benchmark, the hint is trained together with the cross-entropy, not in a stage before it.
    """

    needs_feats: ClassVar[bool] = True
    conv_reg: Regressor

    def __init__(self, *, ce_weight: NonNegativeFloat, feat_weight: NonNegativeFloat, hint_stage: int) -> None:
        super().__init__()
        self.ce_weight = ce_weight
        self.feat_weight = feat_weight
        self.hint_stage = hint_stage

    def setup(self, spec: Spec) -> None:
        """Make the regressor."""
        assert spec.teacher is not None
        stages = min(len(spec.student.feats), len(spec.teacher.feats))
        if not 0 <= self.hint_stage < stages:
            raise EdkdError(
                f"distiller.hint_stage is {self.hint_stage}: student and teacher both have stages 0 to {stages - 1}"
            )
        self.conv_reg = Regressor(spec.student.feats[self.hint_stage], spec.teacher.feats[self.hint_stage])

    def forward(self, student: Prediction, teacher: Prediction | None, batch: Batch) -> Outcome:
        """Losses: `ce`, `kd`."""
        assert teacher is not None
        ce = losses.cross_entropy(student.logits, batch.target)
        hint = losses.hint(self.conv_reg(student.feats[self.hint_stage]), teacher.feats[self.hint_stage])
        return Outcome({"ce": self.ce_weight * ce, "kd": self.feat_weight * hint}, {})

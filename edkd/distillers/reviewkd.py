"""ReviewKD: Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021, arXiv:2104.09044."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from edkd import losses
from edkd.distillers.base import Batch, Distiller, Outcome, Shapes, Spec, warmup_weight
from edkd.distillers.stages import paired
from edkd.errors import EdkdError
from edkd.models.base import Prediction

Shape = tuple[int, int, int]


class Fusion(nn.Module):
    """One level: brings the student's map to `mid` channels and fuses it with the deeper levels.

    The fused map goes on to the next level; a convolution of it has the width of the teacher's map, for comparison.
    """

    def __init__(self, student: Shape, teacher: Shape, mid: int, deepest: bool) -> None:
        super().__init__()
        (width, self.size, _), (goal, self.out_size, _) = student, teacher
        narrow, compare = nn.Conv2d(width, mid, 1, bias=False), nn.Conv2d(mid, goal, 3, padding=1, bias=False)
        self.conv1 = nn.Sequential(narrow, nn.BatchNorm2d(mid))
        self.conv2 = nn.Sequential(compare, nn.BatchNorm2d(goal))
        self.att_conv = None if deepest else nn.Sequential(nn.Conv2d(2 * mid, 2, 1), nn.Sigmoid())
        for convolution in (narrow, compare):
            nn.init.kaiming_uniform_(convolution.weight, a=1)

    def forward(self, feat: Tensor, deeper: Tensor | None) -> tuple[Tensor, Tensor]:
        """[B, C_s, H_s, H_s] and the deeper level's fused map to this level's, and to [B, C_t, H_t, H_t]."""
        fused: Tensor = self.conv1(feat)
        if self.att_conv is not None and deeper is not None:
            deeper = _resize(deeper, self.size)
            own, other = self.att_conv(torch.cat((fused, deeper), dim=1)).chunk(2, dim=1)
            fused = own * fused + other * deeper
        fused = _resize(fused, self.out_size)
        return fused, self.conv2(fused)


class ReviewKD(Distiller):
    """ce_weight·CE + w(epoch)·feat_weight·Σ over levels of hcl(reviewed student's map, teacher's map).

    Levels run from deep to shallow: the pooled vector as a 1x1 map, then the last stage to the first. Student maps are
    those after the ReLU, teacher maps those before it. `mid`, the width of all fused maps, is the student's pooled
    width, at most `max_width`. The published code lists heights for each pair; they are those of the two networks'
    maps, from which they are taken here. Stages are paired from the last one backwards, without the stems.
    """

    needs_feats: ClassVar[bool] = True

    def __init__(
        self,
        *,
        ce_weight: NonNegativeFloat,
        feat_weight: NonNegativeFloat,
        max_width: PositiveInt,
        warmup_epochs: NonNegativeInt,
    ) -> None:
        super().__init__()
        self.ce_weight = ce_weight
        self.feat_weight = feat_weight
        self.max_width = max_width
        self.warmup_epochs = warmup_epochs

    def setup(self, spec: Spec) -> None:
        """Make the fusion blocks."""
        assert spec.teacher is not None
        if not spec.teacher.preact_feats:
            raise EdkdError(
                f"ReviewKD needs a teacher with maps before a ReLU, which this one, with maps {spec.teacher.feats}, "
                "does not have: every family but mobilenetv2 has them"
            )
        mid = min(self.max_width, spec.student.pooled_feat)
        stages = paired(spec.student.feats, spec.teacher.preact_feats)
        deepest = Fusion(_as_map(spec.student), _as_map(spec.teacher), mid, deepest=True)
        others = (Fusion(student, teacher, mid, deepest=False) for student, teacher in reversed(stages))
        self.abfs = nn.ModuleList([deepest, *others])

    def forward(self, student: Prediction, teacher: Prediction | None, batch: Batch) -> Outcome:
        """Losses: `ce`, `kd`."""
        assert student.pooled_feat is not None and teacher is not None and teacher.pooled_feat is not None
        ce = losses.cross_entropy(student.logits, batch.target)
        pooled = (student.pooled_feat[:, :, None, None], teacher.pooled_feat[:, :, None, None])
        levels = [pooled, *reversed(paired(student.feats, teacher.preact_feats))]
        hcl, fused = ce.new_zeros(()), None
        for fusion, (feat, goal) in zip(self.abfs, levels, strict=True):
            fused, reviewed = fusion(feat, fused)
            hcl = hcl + losses.hcl(reviewed, goal)
        weight = self.feat_weight * warmup_weight(batch.epoch, self.warmup_epochs)
        return Outcome({"ce": self.ce_weight * ce, "kd": weight * hcl}, {})


def _as_map(shapes: Shapes) -> Shape:
    """The shape of the pooled vector as a map."""
    return shapes.pooled_feat, 1, 1


def _resize(feat: Tensor, size: int) -> Tensor:
    """Take the nearest value: [B, C, H, H] to [B, C, size, size]."""
    return feat if feat.shape[-1] == size else F.interpolate(feat, size=(size, size), mode="nearest")

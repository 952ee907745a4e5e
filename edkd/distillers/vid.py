"""Variational information distillation: Ahn et al., CVPR 2019, arXiv:1904.05835."""

import math
from typing import ClassVar

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import nn

from edkd import losses
from edkd.distillers.base import Batch, Distiller, Outcome, Spec
from edkd.distillers.stages import paired
from edkd.errors import EdkdError
from edkd.models.base import Prediction


class VID(Distiller):
    """ce_weight·CE + feat_weight·Σ over stages of mean(½·((μ − f_t)² / v + log v)).

    μ is the student's map after three 1x1 convolutions (ReLU between them, no biases, the teacher's width), v one
    variance per channel of the teacher, log(1 + exp(log_scale)) + eps, which starts at `init_pred_var`. Regressors and
    log-scales are trained; one published benchmark gives the log-scales to no optimiser. Stages are paired from the
    last one backwards, without the stems; the larger map is pooled to the smaller's size.
    """

    needs_feats: ClassVar[bool] = True

    def __init__(
        self, *, ce_weight: NonNegativeFloat, feat_weight: NonNegativeFloat, init_pred_var: float, eps: PositiveFloat
    ) -> None:
        super().__init__()
        if eps >= init_pred_var:
            raise EdkdError(
                f"distiller.eps is {eps}: it must be below distiller.init_pred_var, {init_pred_var} "
                "(see conf/distiller/vid.yaml)"
            )
        self.ce_weight = ce_weight
        self.feat_weight = feat_weight
        self.init_pred_var = init_pred_var
        self.eps = eps

    def setup(self, spec: Spec) -> None:
        """Make a regressor and the log-scales of each stage."""
        assert spec.teacher is not None
        self.regressors, self.log_scales = nn.ModuleList(), nn.ParameterList()
        start = math.log(math.expm1(self.init_pred_var - self.eps))
        for (width, _, _), (goal, _, _) in paired(spec.student.feats, spec.teacher.feats):
            self.regressors.append(
                nn.Sequential(
                    nn.Conv2d(width, goal, 1, bias=False),
                    nn.ReLU(),
                    nn.Conv2d(goal, goal, 1, bias=False),
                    nn.ReLU(),
                    nn.Conv2d(goal, goal, 1, bias=False),
                )
            )
            self.log_scales.append(nn.Parameter(torch.full((goal,), start)))

    def forward(self, student: Prediction, teacher: Prediction | None, batch: Batch) -> Outcome:
        """Losses: `ce`, `kd`."""
        assert teacher is not None
        ce = losses.cross_entropy(student.logits, batch.target)
        vid = ce.new_zeros(())
        stages = paired(student.feats, teacher.feats)
        for regressor, log_scale, maps in zip(self.regressors, self.log_scales, stages, strict=True):
            feat, goal = losses.to_smaller(*maps)
            vid = vid + losses.vid(regressor(feat), log_scale, goal, self.eps)
        return Outcome({"ce": self.ce_weight * ce, "kd": self.feat_weight * vid}, {})

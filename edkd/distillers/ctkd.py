"""CTKD: Li et al., "Curriculum Temperature for Knowledge Distillation", AAAI 2023, arXiv:2211.16231."""

from typing import Literal

import torch
from pydantic import NonNegativeFloat, NonPositiveFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from edkd import losses
from edkd.distillers.base import Batch, Distiller, Outcome, Spec, both_logits
from edkd.errors import EdkdError
from edkd.models.base import Prediction


class CTKD(Distiller):
    """ce_weight·CE + kd_weight·T²·KL(teacher ‖ student) at a temperature that is learned to make the loss larger.

    T = t_start + t_end·sigmoid(theta), theta beginning at 1. The gradient reaches theta through T² and both softmaxes,
    multiplied by a strength λ(epoch) ≤ 0, so that theta climbs the loss that the student descends. theta has the
    student's optimiser, weight decay included. The student's own gradient is that of KD.

    decay: how λ goes from decay_max to decay_min over decay_loops epochs. "cosine" is the published default. "linear"
    is as in the published code, which stops one epoch before its end: λ(e) = −min(e, 9)/10 with the published values.
    That code multiplies by λ, where its comments speak of −λ.

    standardise: compare standardised logits (LS, see `losses.standardise`).
    """

    theta: nn.Parameter  # 0-dim

    def __init__(
        self,
        *,
        ce_weight: NonNegativeFloat,
        kd_weight: NonNegativeFloat,
        t_start: PositiveFloat,
        t_end: PositiveFloat,
        decay: Literal["cosine", "linear"],
        decay_max: NonPositiveFloat,
        decay_min: float,
        decay_loops: PositiveInt,
        standardise: bool,
    ) -> None:
        super().__init__()
        if decay_min > decay_max:
            raise EdkdError(
                f"distiller.decay_min is {decay_min}: it must be distiller.decay_max, {decay_max}, or less "
                "(see conf/distiller/ctkd.yaml)"
            )
        self.ce_weight = ce_weight
        self.kd_weight = kd_weight
        self.t_start = t_start
        self.t_end = t_end
        self.decay = decay
        self.decay_max = decay_max
        self.decay_min = decay_min
        self.decay_loops = decay_loops
        self.standardise = standardise

    def setup(self, spec: Spec) -> None:
        """Make theta."""
        self.theta = nn.Parameter(torch.ones(()))

    def strength(self, epoch: Tensor) -> Tensor:
        """λ of an epoch, 0-dim on the device."""
        span = self.decay_max - self.decay_min
        if self.decay == "linear":
            return self.decay_max - span * epoch.clamp(max=self.decay_loops - 1) / self.decay_loops
        return self.decay_min + span * (1 + (torch.pi * epoch.clamp(max=self.decay_loops) / self.decay_loops).cos()) / 2

    def forward(self, student: Prediction, teacher: Prediction | None, batch: Batch) -> Outcome:
        """Losses: `ce`, `kd`. Metrics: `ctkd/temperature`."""
        ce = losses.cross_entropy(student.logits, batch.target)
        # The value of theta, with its gradient times the strength.
        theta = self.theta.detach() + self.strength(batch.epoch) * (self.theta - self.theta.detach())
        temperature = self.t_start + self.t_end * theta.sigmoid()
        kd = losses.kd(*both_logits(student, teacher, self.standardise), temperature)
        return Outcome(
            {"ce": self.ce_weight * ce, "kd": self.kd_weight * kd}, {"ctkd/temperature": temperature.detach()}
        )

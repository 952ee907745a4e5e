"""Networks for runs of several processes, named by `student.model._target_`."""

import os
import signal
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edkd import models
from edkd.models import Prediction
from edkd.training import distributed

KILL_AT = "EDKD_TEST_KILL_AT"  # "rank,batch": which process of `mortal` dies, at which of its training batches


class Plain(nn.Module):
    """One convolution with group norm: what it says of an image does not depend on the batch."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.GroupNorm(4, 16)
        self.linear = nn.Linear(16, num_classes)

    def forward(self, x: Tensor, want_feats: bool = True) -> Prediction:
        return Prediction(self.linear(F.relu(self.norm(self.conv(x))).mean(dim=(2, 3))))


class Alone(torch.optim.SGD):
    """An optimiser of one process."""

    def minimise(self, losses: dict[str, Tensor]) -> Tensor:
        raise NotImplementedError


def plain(num_classes: int = 10) -> nn.Module:
    return Plain(num_classes)


def mortal(num_classes: int = 10) -> nn.Module:
    """resnet8, with batch norm, that drops some of its pixels; one of its processes may die."""
    network, seen = models.resnet8(num_classes), 0

    def count(module: nn.Module, inputs: Any) -> Any:
        nonlocal seen
        seen += module.training
        if os.environ.get(KILL_AT) == f"{distributed.rank()},{seen}":
            os.kill(os.getpid(), signal.SIGKILL)
        return F.dropout(inputs[0], 0.1, module.training)

    network.register_forward_pre_hook(count)
    return network


class Faulty(Plain):
    """A network whose training raises."""

    def forward(self, x: Tensor, want_feats: bool = True) -> Prediction:
        if self.training and x.device.type != "meta":
            raise RuntimeError("a fault of this network")
        return super().forward(x, want_feats)


def faulty(num_classes: int = 10) -> nn.Module:
    return Faulty(num_classes)

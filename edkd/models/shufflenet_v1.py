"""ShuffleNet (3 groups): Zhang et al., ShuffleNet: An Extremely Efficient CNN for Mobile Devices, CVPR 2018.

As the CRD benchmark (Tian et al., ICLR 2020) has it for small images: a 1x1 stem of 24 channels that keeps the
resolution, a ReLU after the depthwise convolution, and a narrow part that is a quarter of what a block's last
convolution returns. Parameter names are that benchmark's; initial weights are torch's defaults, as there.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edkd.models.base import Prediction, channel_shuffle, classify, through_stages

_STEM = 24
_GROUPS = 3


class Block(nn.Module):
    """A bottleneck of grouped 1x1 convolutions around a depthwise one; returns its result before the ReLU.

    With stride 2 the shortcut is an average pool whose channels are appended, otherwise the input is added.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.groups = 1 if in_channels == _STEM else _GROUPS
        computed = channels - in_channels if stride == 2 else channels
        narrow = computed // 4
        self.conv1 = nn.Conv2d(in_channels, narrow, 1, groups=self.groups, bias=False)
        self.bn1 = nn.BatchNorm2d(narrow)
        self.conv2 = nn.Conv2d(narrow, narrow, 3, stride=stride, padding=1, groups=narrow, bias=False)
        self.bn2 = nn.BatchNorm2d(narrow)
        self.conv3 = nn.Conv2d(narrow, computed, 1, groups=_GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(computed)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, C', H/stride, W/stride]."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(channel_shuffle(out, self.groups))), inplace=True)
        out = self.bn3(self.conv3(out))
        if self.stride == 2:
            return torch.cat((out, F.avg_pool2d(x, 3, stride=2, padding=1)), dim=1)
        out += x
        return out


class ShuffleNetV1(nn.Module):
    """ShuffleNet with 3 groups: stages of 4, 8 and 4 blocks, each halving the image."""

    def __init__(self, *, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, _STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(_STEM)
        self.layer1 = _stage(_STEM, 240, blocks=4)
        self.layer2 = _stage(240, 480, blocks=8)
        self.layer3 = _stage(480, 960, blocks=4)
        self.linear = nn.Linear(960, num_classes)

    def forward(self, x: Tensor, want_feats: bool = True) -> Prediction:
        """Classify images [B, 3, H, W]; feats are the stem and three stages."""
        stem = F.relu(self.bn1(self.conv1(x)), inplace=True)
        stages = (self.layer1, self.layer2, self.layer3)
        passed = through_stages(stem, stages, want_feats)
        return classify(passed.last, self.linear, passed if want_feats else None)


def _stage(in_channels: int, channels: int, blocks: int) -> nn.Sequential:
    first = Block(in_channels, channels, stride=2)
    return nn.Sequential(first, *(Block(channels, channels, stride=1) for _ in range(blocks - 1)))


def shufflenetv1(num_classes: int = 100) -> ShuffleNetV1:
    """ShuffleNetV1 with 3 groups, 0.95 M parameters at 100 classes."""
    return ShuffleNetV1(num_classes=num_classes)

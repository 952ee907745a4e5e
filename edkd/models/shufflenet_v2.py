"""ShuffleNetV2 at width 1: Ma et al., ShuffleNet V2: Practical Guidelines for Efficient CNN Design, ECCV 2018.

As the CRD benchmark (Tian et al., ICLR 2020) has it for small images: a 1x1 stem of 24 channels that keeps the
resolution. Parameter names are that benchmark's; initial weights are torch's defaults, as there.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edkd.models.base import Prediction, channel_shuffle, classify, through_stages

_STEM = 24
_HEAD = 1024


class Block(nn.Module):
    """Half of the channels pass unchanged, half are convolved, then both are interleaved; returned before the ReLU.

    The half that passes comes from a ReLU, so the ReLU after the block leaves it as it is.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Conv2d(half, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to the same shape."""
        passed, out = x.chunk(2, dim=1)
        out = F.relu(self.bn1(self.conv1(out)), inplace=True)
        out = self.bn2(self.conv2(out))
        out = self.bn3(self.conv3(out))
        return channel_shuffle(torch.cat((passed, out), dim=1), 2)


class DownBlock(nn.Module):
    """Two convolved branches with stride 2, interleaved; returned before the ReLU."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = nn.Conv2d(in_channels, in_channels, 3, stride=2, padding=1, groups=in_channels, bias=False)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv2 = nn.Conv2d(in_channels, half, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(in_channels, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = nn.Conv2d(half, half, 3, stride=2, padding=1, groups=half, bias=False)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = nn.Conv2d(half, half, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, C', H/2, W/2]."""
        left = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        right = F.relu(self.bn3(self.conv3(x)), inplace=True)
        right = self.bn5(self.conv5(self.bn4(self.conv4(right))))
        return channel_shuffle(torch.cat((left, right), dim=1), 2)


class ShuffleNetV2(nn.Module):
    """ShuffleNetV2 of width 1: stages of 4, 8 and 4 blocks, each halving the image."""

    def __init__(self, *, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, _STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(_STEM)
        self.layer1 = _stage(_STEM, 116, blocks=4)
        self.layer2 = _stage(116, 232, blocks=8)
        self.layer3 = _stage(232, 464, blocks=4)
        self.conv2 = nn.Conv2d(464, _HEAD, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(_HEAD)
        self.linear = nn.Linear(_HEAD, num_classes)

    def forward(self, x: Tensor, want_feats: bool = True) -> Prediction:
        """Classify images [B, 3, H, W]; feats are the stem and three stages."""
        stem = F.relu(self.bn1(self.conv1(x)), inplace=True)
        stages = (self.layer1, self.layer2, self.layer3)
        passed = through_stages(stem, stages, want_feats)
        last_map = F.relu(self.bn2(self.conv2(passed.last)), inplace=True)
        return classify(last_map, self.linear, passed if want_feats else None)


def _stage(in_channels: int, channels: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(DownBlock(in_channels, channels), *(Block(channels) for _ in range(blocks - 1)))


def shufflenetv2(num_classes: int = 100) -> ShuffleNetV2:
    """ShuffleNetV2 at width 1, 1.36 M parameters at 100 classes."""
    return ShuffleNetV2(num_classes=num_classes)

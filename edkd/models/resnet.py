"""ResNets for small images: He et al., Deep Residual Learning for Image Recognition, CVPR 2016, section 4.2.

Depth 6n+2: a 3x3 stem and three stages of n basic blocks, the last two halving the image. The x4 networks are those
of Tian et al., Contrastive Representation Distillation, ICLR 2020, with four times the channels (twice in the stem).
Parameter names and initial weights (`init_convolutions`; the classifier as torch draws it) are those of that
benchmark.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from edkd.models.base import Prediction, classify, init_convolutions, last_norm, through_stages

Widths = tuple[int, int, int, int]
"""Channels of the stem and of the three stages."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; returns their sum before the ReLU."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = (
            nn.Identity()
            if stride == 1 and in_channels == channels
            else nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, C', H/stride, W/stride]."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        out += self.downsample(x)
        return out


class ResNet(nn.Module):
    """A ResNet of depth 6n+2."""

    def __init__(self, *, depth: int, widths: Widths, num_classes: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        stem, *stages = widths
        self.conv1 = nn.Conv2d(3, stem, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.layer1 = _stage(stem, stages[0], blocks, stride=1)
        self.layer2 = _stage(stages[0], stages[1], blocks, stride=2)
        self.layer3 = _stage(stages[1], stages[2], blocks, stride=2)
        self.fc = nn.Linear(stages[2], num_classes)
        init_convolutions(self)

    @property
    def stage_norms(self) -> tuple[nn.BatchNorm2d, ...]:
        """The batch norm that ends each stage, before the shortcut is added."""
        return tuple(last_norm(stage) for stage in (self.layer1, self.layer2, self.layer3))

    def forward(self, x: Tensor, want_feats: bool = True) -> Prediction:
        """Classify images [B, 3, H, W]; feats are the stem and three stages."""
        stem = F.relu(self.bn1(self.conv1(x)), inplace=True)
        stages = (self.layer1, self.layer2, self.layer3)
        passed = through_stages(stem, stages, want_feats)
        return classify(passed.last, self.fc, passed if want_feats else None)


def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, channels, stride)
    return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1)))


_NARROW: Widths = (16, 16, 32, 64)
_WIDE: Widths = (32, 64, 128, 256)


def resnet8(num_classes: int = 100) -> ResNet:
    """ResNet-8, 0.08 M parameters at 100 classes."""
    return ResNet(depth=8, widths=_NARROW, num_classes=num_classes)


def resnet14(num_classes: int = 100) -> ResNet:
    """ResNet-14, 0.18 M parameters at 100 classes."""
    return ResNet(depth=14, widths=_NARROW, num_classes=num_classes)


def resnet20(num_classes: int = 100) -> ResNet:
    """ResNet-20, 0.28 M parameters at 100 classes."""
    return ResNet(depth=20, widths=_NARROW, num_classes=num_classes)


def resnet32(num_classes: int = 100) -> ResNet:
    """ResNet-32, 0.47 M parameters at 100 classes."""
    return ResNet(depth=32, widths=_NARROW, num_classes=num_classes)


def resnet44(num_classes: int = 100) -> ResNet:
    """ResNet-44, 0.67 M parameters at 100 classes."""
    return ResNet(depth=44, widths=_NARROW, num_classes=num_classes)


def resnet56(num_classes: int = 100) -> ResNet:
    """ResNet-56, 0.86 M parameters at 100 classes."""
    return ResNet(depth=56, widths=_NARROW, num_classes=num_classes)


def resnet110(num_classes: int = 100) -> ResNet:
    """ResNet-110, 1.74 M parameters at 100 classes."""
    return ResNet(depth=110, widths=_NARROW, num_classes=num_classes)


def resnet8x4(num_classes: int = 100) -> ResNet:
    """ResNet-8 with four times the channels, 1.23 M parameters at 100 classes."""
    return ResNet(depth=8, widths=_WIDE, num_classes=num_classes)


def resnet32x4(num_classes: int = 100) -> ResNet:
    """ResNet-32 with four times the channels, 7.43 M parameters at 100 classes."""
    return ResNet(depth=32, widths=_WIDE, num_classes=num_classes)

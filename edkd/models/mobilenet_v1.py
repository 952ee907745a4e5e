"""MobileNetV1: Howard et al., MobileNets: Efficient CNNs for Mobile Vision Applications, 2017, arXiv:1704.04861.

As its table 1, except that the last depthwise convolution has stride 1: the table's 2 disagrees with its own output
size. Initial weights are `init_convolutions`, and the classifier as torch draws it; the paper states neither.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from edkd.models.base import Prediction, classify, init_convolutions, last_norm, through_stages

_STAGES = ((128, 2), (256, 2), (512, 6), (1024, 2))  # (channels, blocks); the first block of each has stride 2


class SeparableBlock(nn.Module):
    """A 3x3 convolution of each channel, then a 1x1 over all; returned before the last ReLU."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, in_channels, 3, stride=stride, padding=1, groups=in_channels, bias=False)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv2 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, C', H/stride, W/stride]."""
        out: Tensor = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        return out


class MobileNetV1(nn.Module):
    """MobileNetV1 of width 1: a 224x224 image reaches the last stage as 7x7."""

    def __init__(self, *, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.block1 = SeparableBlock(32, 64, 1)
        self.stages = nn.ModuleList()
        in_channels = 64
        for channels, blocks in _STAGES:
            first = SeparableBlock(in_channels, channels, 2)
            self.stages.append(
                nn.Sequential(first, *(SeparableBlock(channels, channels, 1) for _ in range(blocks - 1)))
            )
            in_channels = channels
        self.linear = nn.Linear(in_channels, num_classes)
        init_convolutions(self)

    @property
    def stage_norms(self) -> tuple[nn.BatchNorm2d, ...]:
        """The batch norm that ends each stage."""
        return tuple(map(last_norm, self.stages))

    def forward(self, x: Tensor, want_feats: bool = True) -> Prediction:
        """Classify images [B, 3, H, W]; feats are the stem, to which the first block belongs, and four stages."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        stem = F.relu(self.block1(x), inplace=True)
        stages = [stage for stage in self.stages if isinstance(stage, nn.Sequential)]
        passed = through_stages(stem, stages, want_feats)
        return classify(passed.last, self.linear, passed if want_feats else None)


def mobilenetv1(num_classes: int = 1000) -> MobileNetV1:
    """MobileNetV1 at width 1, 4.2 M parameters at 1000 classes."""
    return MobileNetV1(num_classes=num_classes)

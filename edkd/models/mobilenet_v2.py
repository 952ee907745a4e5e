"""MobileNetV2 at half width: Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, CVPR 2018.

As the CRD benchmark (Tian et al., ICLR 2020) has it for small images: half the channels, plain ReLU, stride 2 in the
stem but not in the second stage, so a 32x32 image reaches the head as 2x2. Parameter names and initial weights
(`init_convolutions`, `init_classifier`) are that benchmark's.
"""

from typing import NamedTuple

from torch import Tensor, nn

from edkd.models.base import Prediction, StagePass, classify, init_classifier, init_convolutions

_STEM = 16
_HEAD = 1280


class _Stage(NamedTuple):
    expansion: int
    channels: int
    blocks: int
    stride: int


_STAGES = (
    _Stage(1, 8, 1, 1),
    _Stage(6, 12, 2, 1),
    _Stage(6, 16, 3, 2),
    _Stage(6, 32, 4, 2),
    _Stage(6, 48, 3, 1),
    _Stage(6, 80, 3, 2),
    _Stage(6, 160, 1, 1),
)
_KEPT = (1, 2, 4, 6)
"""The last stage of each resolution: its map is a feature."""


class InvertedResidual(nn.Module):
    """Widen, convolve each channel, narrow; added to the input where shapes agree."""

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.residual = stride == 1 and in_channels == channels
        self.conv = nn.Sequential(
            nn.Conv2d(in_channels, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, hidden, 3, stride=stride, padding=1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, C', H/stride, W/stride]."""
        out = self.conv(x)
        if self.residual:
            out += x
        return out


class MobileNetV2(nn.Module):
    """MobileNetV2 of width 0.5 and expansion 6."""

    def __init__(self, *, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(
            nn.Conv2d(3, _STEM, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(_STEM), nn.ReLU(inplace=True)
        )
        self.blocks = nn.Sequential()
        in_channels = _STEM
        for stage in _STAGES:
            blocks = nn.Sequential()
            for i in range(stage.blocks):
                stride = stage.stride if i == 0 else 1
                blocks.append(InvertedResidual(in_channels, stage.channels, stride, stage.expansion))
                in_channels = stage.channels
            self.blocks.append(blocks)
        self.conv2 = nn.Sequential(
            nn.Conv2d(in_channels, _HEAD, 1, bias=False), nn.BatchNorm2d(_HEAD), nn.ReLU(inplace=True)
        )
        classifier = nn.Linear(_HEAD, num_classes)
        self.classifier = nn.Sequential(classifier)
        init_convolutions(self)
        init_classifier(classifier)

    def forward(self, x: Tensor, want_feats: bool = True) -> Prediction:
        """Classify images [B, 3, H, W]; feats are the stem (after its ReLU) and the last linear map of a resolution.

        There are no `preact_feats`: a stage ends without a ReLU.
        """
        x = self.conv1(x)
        feats = [x] if want_feats else []
        for i, stage in enumerate(self.blocks):
            x = stage(x)
            if want_feats and i in _KEPT:
                feats.append(x)
        (classifier,) = self.classifier
        assert isinstance(classifier, nn.Linear)
        return classify(self.conv2(x), classifier, StagePass(x, tuple(feats), ()) if want_feats else None)


def mobilenetv2(num_classes: int = 100) -> MobileNetV2:
    """MobileNetV2 at half width, 0.81 M parameters at 100 classes."""
    return MobileNetV2(num_classes=num_classes)

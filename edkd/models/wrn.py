"""Wide residual networks: Zagoruyko and Komodakis, Wide Residual Networks, BMVC 2016.

Depth 6n+4, width factor k: a 3x3 stem of 16 channels and three stages of n pre-activation blocks with 16k, 32k and
64k channels, without dropout. Parameter names and initial weights (`init_convolutions`; the classifier as torch
draws its weight, bias zero) are those of the CRD benchmark (Tian et al., ICLR 2020).

Features are those of that benchmark: `feats` are the sums that stages return, `preact_feats` the same after the batch
norm that follows, which belongs to the next stage or, at the end, to the network. The stem has one map for both.
"""

from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from edkd.models.base import Prediction, StagePass, classify, init_convolutions


class Block(nn.Module):
    """Batch norm, ReLU, convolution, twice, and a shortcut.

    The caller runs the first batch norm and ReLU, once, because their result is also a feature.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.convShortcut = (
            None if in_channels == channels else nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)
        )

    def forward(self, x: Tensor, active: Tensor) -> Tensor:
        """Map `x` [B, C, H, W] and `active` = ReLU(bn1(x)) to [B, C', H/stride, W/stride]."""
        out = F.relu(self.bn2(self.conv1(active)), inplace=True)
        out = self.conv2(out)
        out += x if self.convShortcut is None else self.convShortcut(active)
        return out


class Stage(nn.Module):
    """Blocks of one resolution."""

    def __init__(self, in_channels: int, channels: int, blocks: int, stride: int) -> None:
        super().__init__()
        first = Block(in_channels, channels, stride)
        self.layer = nn.Sequential(first, *(Block(channels, channels, 1) for _ in range(blocks - 1)))

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks of `layer`, typed."""
        return cast(tuple[Block, ...], tuple(self.layer))

    @property
    def norm(self) -> nn.BatchNorm2d:
        """The batch norm that this stage's input passes first."""
        return self.blocks[0].bn1

    def forward(self, x: Tensor, active: Tensor) -> Tensor:
        """Map `x` [B, C, H, W] and `active` = ReLU(norm(x)) to [B, C', H/stride, W/stride]."""
        first, *others = self.blocks
        x = first(x, active)
        for block in others:
            x = block(x, F.relu(block.bn1(x), inplace=True))
        return x


class WideResNet(nn.Module):
    """A wide residual network of depth 6n+4."""

    def __init__(self, *, depth: int, width: int, num_classes: int) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.block1 = Stage(16, 16 * width, blocks, stride=1)
        self.block2 = Stage(16 * width, 32 * width, blocks, stride=2)
        self.block3 = Stage(32 * width, 64 * width, blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, num_classes)
        init_convolutions(self)
        nn.init.zeros_(self.fc.bias)

    @property
    def stage_norms(self) -> tuple[nn.BatchNorm2d, ...]:
        """The batch norm that follows each stage."""
        return (self.block2.norm, self.block3.norm, self.bn1)

    def forward(self, x: Tensor, want_feats: bool = True) -> Prediction:
        """Classify images [B, 3, H, W]; feats are the stem and three stages."""
        x = self.conv1(x)
        active = F.relu(self.block1.norm(x), inplace=True)
        feats, preact_feats = ([x], [x]) if want_feats else ([], [])
        for stage, next_norm in (
            (self.block1, self.block2.norm),
            (self.block2, self.block3.norm),
            (self.block3, self.bn1),
        ):
            x = stage(x, active)
            normed = next_norm(x)
            active = F.relu(normed, inplace=not want_feats)
            if want_feats:
                feats.append(x)
                preact_feats.append(normed)
        passed = StagePass(active, tuple(feats), tuple(preact_feats))
        return classify(active, self.fc, passed if want_feats else None)


def wrn_16_1(num_classes: int = 100) -> WideResNet:
    """WRN-16-1, 0.18 M parameters at 100 classes."""
    return WideResNet(depth=16, width=1, num_classes=num_classes)


def wrn_16_2(num_classes: int = 100) -> WideResNet:
    """WRN-16-2, 0.70 M parameters at 100 classes."""
    return WideResNet(depth=16, width=2, num_classes=num_classes)


def wrn_40_1(num_classes: int = 100) -> WideResNet:
    """WRN-40-1, 0.57 M parameters at 100 classes."""
    return WideResNet(depth=40, width=1, num_classes=num_classes)


def wrn_40_2(num_classes: int = 100) -> WideResNet:
    """WRN-40-2, 2.26 M parameters at 100 classes."""
    return WideResNet(depth=40, width=2, num_classes=num_classes)

"""ImageNet's ResNets, with their stem or one for small images: He et al., Deep Residual Learning, CVPR 2016, table 1.

The stem for small images is one 3x3 convolution without pooling, so a 32x32 image reaches the last stage as 4x4.
ImageNet's is a 7x7 convolution and a max pooling, each of stride 2: a 224x224 image reaches the last stage as 7x7. The
stride of a bottleneck sits in its 3x3 convolution, as in torchvision. Parameter names and initial weights
(`init_convolutions`; the classifier as torch draws it) are those of the CRD benchmark (Tian et al., ICLR 2020).
"""

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from edkd.models.base import Prediction, classify, init_convolutions, last_norm, through_stages


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; returns their sum before the ReLU."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = _shortcut(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, width, H/stride, W/stride]."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return out


class Bottleneck(nn.Module):
    """A 3x3 convolution between two 1x1 and a shortcut; returns their sum before the ReLU."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        channels = self.expansion * width
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.shortcut = _shortcut(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, 4·width, H/stride, W/stride]."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        out += self.shortcut(x)
        return out


class ResNetImageNet(nn.Module):
    """Four stages of `blocks` basic or bottleneck blocks, 64 to 512 channels wide.

    large_stem: ImageNet's stem, which divides the side of an image by four. With it this is torchvision's network,
    except for the names of some parameters.
    """

    torchvision_names: ClassVar[dict[str, str]] = {".downsample.": ".shortcut.", "fc.": "linear."}

    def __init__(
        self,
        *,
        block: type[BasicBlock] | type[Bottleneck],
        blocks: tuple[int, int, int, int],
        num_classes: int,
        large_stem: bool,
    ) -> None:
        super().__init__()
        self.large_stem = large_stem
        kernel, stride = (7, 2) if large_stem else (3, 1)
        self.conv1 = nn.Conv2d(3, 64, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _stage(block, 64, 64, blocks[0], stride=1)
        self.layer2 = _stage(block, 64 * block.expansion, 128, blocks[1], stride=2)
        self.layer3 = _stage(block, 128 * block.expansion, 256, blocks[2], stride=2)
        self.layer4 = _stage(block, 256 * block.expansion, 512, blocks[3], stride=2)
        self.linear = nn.Linear(512 * block.expansion, num_classes)
        init_convolutions(self)

    @property
    def stage_norms(self) -> tuple[nn.BatchNorm2d, ...]:
        """The batch norm that ends each stage, before the shortcut is added."""
        return tuple(last_norm(stage) for stage in (self.layer1, self.layer2, self.layer3, self.layer4))

    def forward(self, x: Tensor, want_feats: bool = True) -> Prediction:
        """Classify images [B, 3, H, W]; feats are the stem and four stages."""
        stem = F.relu(self.bn1(self.conv1(x)), inplace=True)
        if self.large_stem:
            stem = F.max_pool2d(stem, 3, stride=2, padding=1)
        stages = (self.layer1, self.layer2, self.layer3, self.layer4)
        passed = through_stages(stem, stages, want_feats)
        return classify(passed.last, self.linear, passed if want_feats else None)


def _shortcut(in_channels: int, channels: int, stride: int) -> nn.Module:
    if stride == 1 and in_channels == channels:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels))


def _stage(
    block: type[BasicBlock] | type[Bottleneck], in_channels: int, width: int, blocks: int, stride: int
) -> nn.Sequential:
    first = block(in_channels, width, stride)
    return nn.Sequential(first, *(block(width * block.expansion, width, 1) for _ in range(blocks - 1)))


def resnet18(num_classes: int = 100) -> ResNetImageNet:
    """ResNet-18 for small images, 11.2 M parameters at 100 classes."""
    return ResNetImageNet(block=BasicBlock, blocks=(2, 2, 2, 2), num_classes=num_classes, large_stem=False)


def resnet50(num_classes: int = 100) -> ResNetImageNet:
    """ResNet-50 for small images, 23.7 M parameters at 100 classes."""
    return ResNetImageNet(block=Bottleneck, blocks=(3, 4, 6, 3), num_classes=num_classes, large_stem=False)


def imagenet_resnet18(num_classes: int = 1000) -> ResNetImageNet:
    """ResNet-18, 11.7 M parameters at 1000 classes."""
    return ResNetImageNet(block=BasicBlock, blocks=(2, 2, 2, 2), num_classes=num_classes, large_stem=True)


def imagenet_resnet34(num_classes: int = 1000) -> ResNetImageNet:
    """ResNet-34, 21.8 M parameters at 1000 classes."""
    return ResNetImageNet(block=BasicBlock, blocks=(3, 4, 6, 3), num_classes=num_classes, large_stem=True)


def imagenet_resnet50(num_classes: int = 1000) -> ResNetImageNet:
    """ResNet-50, 25.6 M parameters at 1000 classes."""
    return ResNetImageNet(block=Bottleneck, blocks=(3, 4, 6, 3), num_classes=num_classes, large_stem=True)

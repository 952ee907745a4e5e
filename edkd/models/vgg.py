"""VGG with batch norm for small images: Simonyan and Zisserman, Very Deep Convolutional Networks, ICLR 2015.

Five blocks of 3x3 convolutions with 64 to 512 channels; a 2x2 max pool follows each of the first three, so a 32x32
image leaves the last as 4x4; then the mean over the image and one linear layer. Parameter names and initial weights
(`init_convolutions`, `init_classifier`) are those of the CRD benchmark (Tian et al., ICLR 2020).
"""

from torch import Tensor, nn
from torch.nn import functional as F

from edkd.models.base import Prediction, StagePass, classify, init_classifier, init_convolutions, last_norm

_CHANNELS = (64, 128, 256, 512, 512)
_POOLED = 3


class VGG(nn.Module):
    """A VGG with `convolutions` convolutions in its five blocks."""

    def __init__(self, *, convolutions: tuple[int, int, int, int, int], num_classes: int) -> None:
        super().__init__()
        in_channels = (3, *_CHANNELS)
        self.block0, self.block1, self.block2, self.block3, self.block4 = (
            _block(*shape) for shape in zip(in_channels, _CHANNELS, convolutions)
        )
        self.classifier = nn.Linear(_CHANNELS[-1], num_classes)
        init_convolutions(self)
        init_classifier(self.classifier)

    @property
    def stage_norms(self) -> tuple[nn.BatchNorm2d, ...]:
        """The batch norm that ends each block after the first."""
        return tuple(last_norm(block) for block in (self.block1, self.block2, self.block3, self.block4))

    def forward(self, x: Tensor, want_feats: bool = True) -> Prediction:
        """Classify images [B, 3, H, W], H and W at least 8; feats are the five blocks, before their pools."""
        x = F.relu(self.block0(x), inplace=True)
        feats, preact_feats = ([x], [x]) if want_feats else ([], [])
        for i, block in enumerate((self.block1, self.block2, self.block3, self.block4)):
            preact = block(F.max_pool2d(x, 2) if i < _POOLED else x)
            x = F.relu(preact, inplace=not want_feats)
            if want_feats:
                feats.append(x)
                preact_feats.append(preact)
        passed = StagePass(x, tuple(feats), tuple(preact_feats))
        return classify(x, self.classifier, passed if want_feats else None)


def _block(in_channels: int, channels: int, convolutions: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(convolutions):
        layers += [nn.Conv2d(in_channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
        in_channels = channels
    return nn.Sequential(*layers[:-1])  # the network runs the last ReLU, to keep what comes before it


def vgg8(num_classes: int = 100) -> VGG:
    """VGG-8, 3.97 M parameters at 100 classes."""
    return VGG(convolutions=(1, 1, 1, 1, 1), num_classes=num_classes)


def vgg11(num_classes: int = 100) -> VGG:
    """VGG-11, 9.28 M parameters at 100 classes."""
    return VGG(convolutions=(1, 1, 2, 2, 2), num_classes=num_classes)


def vgg13(num_classes: int = 100) -> VGG:
    """VGG-13, 9.46 M parameters at 100 classes."""
    return VGG(convolutions=(2, 2, 2, 2, 2), num_classes=num_classes)


def vgg16(num_classes: int = 100) -> VGG:
    """VGG-16, 14.8 M parameters at 100 classes."""
    return VGG(convolutions=(2, 2, 3, 3, 3), num_classes=num_classes)


def vgg19(num_classes: int = 100) -> VGG:
    """VGG-19, 20.1 M parameters at 100 classes."""
    return VGG(convolutions=(2, 2, 4, 4, 4), num_classes=num_classes)

"""The networks of the CIFAR-100 distillation benchmark, and those of its ImageNet pairs.

`edkd.models.<name>(num_classes=100)` makes one with fresh weights; `network(x, want_feats=True)` maps normalised
square images [B, 3, H, W] to a `Prediction`. Any size is allowed that is large enough for the network's strides.
`edkd.models.foreign` has networks of other libraries.
"""

from edkd.models.base import Prediction
from edkd.models.mobilenet_v1 import mobilenetv1
from edkd.models.mobilenet_v2 import mobilenetv2
from edkd.models.resnet import (
    resnet8,
    resnet8x4,
    resnet14,
    resnet20,
    resnet32,
    resnet32x4,
    resnet44,
    resnet56,
    resnet110,
)
from edkd.models.resnet_imagenet import (
    imagenet_resnet18,
    imagenet_resnet34,
    imagenet_resnet50,
    resnet18,
    resnet50,
)
from edkd.models.shufflenet_v1 import shufflenetv1
from edkd.models.shufflenet_v2 import shufflenetv2
from edkd.models.vgg import vgg8, vgg11, vgg13, vgg16, vgg19
from edkd.models.wrn import wrn_16_1, wrn_16_2, wrn_40_1, wrn_40_2

__all__ = [
    "IMAGENET",
    "Prediction",
    "imagenet_resnet18",
    "imagenet_resnet34",
    "imagenet_resnet50",
    "mobilenetv1",
    "mobilenetv2",
    "names",
    "resnet8",
    "resnet8x4",
    "resnet14",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet32x4",
    "resnet44",
    "resnet50",
    "resnet56",
    "resnet110",
    "shufflenetv1",
    "shufflenetv2",
    "vgg8",
    "vgg11",
    "vgg13",
    "vgg16",
    "vgg19",
    "wrn_16_1",
    "wrn_16_2",
    "wrn_40_1",
    "wrn_40_2",
]


IMAGENET = ("imagenet_resnet18", "imagenet_resnet34", "imagenet_resnet50", "mobilenetv1")
"""The names of the networks for images of 224x224."""


def names() -> tuple[str, ...]:
    """The names of the CIFAR-100 benchmark's networks, each a factory of this module."""
    return tuple(name for name in __all__ if name not in ("IMAGENET", "Prediction", "names", *IMAGENET))

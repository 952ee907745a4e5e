"""torchvision's data sets and transforms, imported late."""

from typing import Any


def load() -> Any:
    """The torchvision module, see `edkd.models._torchvision`."""
    from edkd.models import _torchvision  # late: importing `edkd.data.sources` must not load torch

    return _torchvision.load()


def transforms_v2() -> Any:
    """torchvision's second generation of transforms, which takes tensors."""
    load()
    from torchvision.transforms import v2

    return v2

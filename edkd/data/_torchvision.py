"""torchvision's data sets and transforms, imported late."""

from typing import Any


def load() -> Any:
    """The torchvision module, see `edkd.models._torchvision`."""
    from edkd.models import _torchvision  # loads torch, without which the data sets' functions are known

    return _torchvision.load()


def transforms_v2() -> Any:
    """torchvision's second generation of transforms, which takes tensors."""
    load()
    from torchvision.transforms import v2

    return v2

"""The one place that imports torchvision: late, because it costs seconds, and also with a CPU build of torch."""

import functools
import warnings
from typing import Any


@functools.cache
def load() -> Any:
    """The torchvision module.

    The wheel of the package registry is built for CUDA. With a CPU build of torch its compiled part does not load,
    and the import fails where it describes two operators that the compiled part declares. Declaring them here is
    enough for data sets and transforms, which use neither.
    """
    with warnings.catch_warnings():
        # torchvision warns of compiled image and video readers that do not load; nothing here uses them.
        warnings.simplefilter("ignore")
        try:
            import torchvision
        except RuntimeError as error:
            if "torchvision::" not in str(error):
                raise
            import torch

            for name in ("nms", "qnms"):
                torch.library.define(
                    f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                )
            import torchvision
    return torchvision

"""Which of the networks a file's weights belong to."""

from collections.abc import Mapping

import torch
from torch import Tensor

from edkd import models
from edkd.models.base import in_own_names


def closest(state: Mapping[str, Tensor]) -> str:
    """Name the network whose entries overlap most with a ``state_dict``, by name and shape, and how many do.

    The number of classes is the number of rows of the file's last matrix, as in every network here.
    """
    classes = [tensor.shape[0] for tensor in state.values() if tensor.ndim == 2][-1:]
    best, shared, entries = "", 0, 1
    for name in (*models.names(), *models.IMAGENET):
        with torch.device("meta"):
            network = getattr(models, name)(num_classes=classes[0] if classes else 1)
        own, held = (_shapes(each) for each in (network.state_dict(), in_own_names(network, state)))
        common, union = len(own.items() & held.items()), len(own.keys() | held.keys())
        if common * entries > shared * union:
            best, shared, entries = name, common, union
    if not shared:
        return "no network here has an entry of it"
    if shared == entries:
        return f"it fits {best} with {classes[0]} classes"
    return f"the closest network is {best} with {shared} of {entries} entries"


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {key: tensor.shape for key, tensor in state.items() if not key.endswith("num_batches_tracked")}

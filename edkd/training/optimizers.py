"""Optimisers that get the losses by name. Configuration names one in conf/optimizer."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


class SGD(torch.optim.SGD):
    """Stochastic gradient descent on the sum of the losses. `lr` is a tensor on the device, so that it can change."""

    def __init__(
        self, params: Iterable[torch.nn.Parameter], *, lr: Tensor, momentum: float, weight_decay: float
    ) -> None:
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay, fused=True)

    def minimise(self, losses: Mapping[str, Tensor]) -> Tensor:
        """One step down the sum of the losses (0-dim each), which is returned."""
        total = torch.stack(list(losses.values())).sum()
        self.zero_grad(set_to_none=True)
        total.backward()
        self.step()
        return total

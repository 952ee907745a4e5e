"""Optimisers of named losses: each minimises what a method returns, and some treat the losses apart."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edkd.errors import EdkdError


class SGD(torch.optim.SGD):
    """Stochastic gradient descent with momentum on the sum of all losses."""

    def __init__(
        self, params: Iterable[nn.Parameter], *, lr: float | Tensor, momentum: float, weight_decay: float
    ) -> None:
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay, fused=True)

    def minimise(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Take one step down the sum of the losses; returns the sum."""
        self.zero_grad(set_to_none=True)
        total = torch.stack(list(losses.values())).sum()
        total.backward()
        self.step()
        return total


class DOT(torch.optim.Optimizer):
    """Distillation-oriented trainer: the task's and the distillation's gradient have a momentum buffer each.

    Zhao, Cui, Song and Liang, "DOT: A Distillation-Oriented Trainer", ICCV 2023, arXiv:2307.08436. With g_c the
    gradient of the loss `ce` and g_k that of all others, v_c ← (momentum − delta)·v_c + g_c + weight_decay·p,
    v_k ← (momentum + delta)·v_k + g_k, and p ← p − lr·v_c − lr·v_k.

    As in the published code, a parameter that only one of the two reaches has the momentum itself, and where that one
    is g_k, weight decay begins with the second step.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        *,
        lr: float | Tensor,
        momentum: float,
        weight_decay: float,
        delta: float,
    ) -> None:
        if not 0 <= delta <= min(momentum, 1 - momentum):
            raise EdkdError(
                f"optimizer.delta is {delta}: both momenta, {momentum} - delta and {momentum} + delta, "
                "must lie between 0 and 1 (see conf/optimizer/dot.yaml)"
            )
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "delta": delta})

    def minimise(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Take one step down the losses; returns their sum. Raises EdkdError without `ce` or with nothing beside it."""
        others = [loss for name, loss in losses.items() if name != "ce"]
        if len(others) in (0, len(losses)):
            raise EdkdError(
                "optimizer=dot needs a method with the loss ce and at least one other; "
                f"this one has: {', '.join(losses)}"
            )
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        task = torch.autograd.grad(losses["ce"], parameters, retain_graph=True, allow_unused=True)
        kd = torch.autograd.grad(torch.stack(others).sum(), parameters, allow_unused=True)
        gradients = dict(zip(parameters, zip(task, kd)))
        for group in self.param_groups:
            self._update(group, {parameter: gradients[parameter] for parameter in group["params"]})
        return torch.stack(list(losses.values())).sum()

    def _update(self, group: dict[str, Any], gradients: dict[Tensor, tuple[Tensor | None, Tensor | None]]) -> None:
        """Update one group's parameters from their (task, distillation) gradients; None: none reaches the parameter."""
        lr, momentum, decay, delta = (group[name] for name in ("lr", "momentum", "weight_decay", "delta"))
        both = [(each, task, kd) for each, (task, kd) in gradients.items() if task is not None and kd is not None]
        task_only = [(each, task) for each, (task, kd) in gradients.items() if task is not None and kd is None]
        kd_only = [(each, kd) for each, (task, kd) in gradients.items() if task is None and kd is not None]
        kd_first = [(each, kd) for each, kd in kd_only if each not in self.state]
        kd_later = [(each, kd) for each, kd in kd_only if each in self.state]
        self._descend([(each, task) for each, task, _ in both], "momentum_buffer", momentum - delta, decay, lr)
        self._descend([(each, kd) for each, _, kd in both], "momentum_kd_buffer", momentum + delta, 0.0, lr)
        self._descend(task_only, "momentum_buffer", momentum, decay, lr)
        self._descend(kd_first, "momentum_kd_buffer", momentum, 0.0, lr)
        self._descend(kd_later, "momentum_kd_buffer", momentum, decay, lr)

    @torch.no_grad()
    def _descend(
        self, pairs: list[tuple[Tensor, Tensor]], buffer: str, momentum: float, decay: float, lr: float | Tensor
    ) -> None:
        """v ← momentum·v + gradient + decay·p; p ← p − lr·v, for these parameters p with their gradients."""
        if not pairs:
            return
        parameters, gradients = [each for each, _ in pairs], [gradient for _, gradient in pairs]
        for parameter in parameters:
            if buffer not in self.state[parameter]:
                self.state[parameter][buffer] = torch.zeros_like(parameter)
        velocities = [self.state[parameter][buffer] for parameter in parameters]
        torch._foreach_mul_(velocities, momentum)
        torch._foreach_add_(velocities, gradients)
        torch._foreach_add_(velocities, parameters, alpha=decay)
        torch._foreach_sub_(parameters, torch._foreach_mul(velocities, lr))

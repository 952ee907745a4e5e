"""Optimisers of named losses: each minimises what a method returns, and some treat the losses apart."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edkd.distillers.base import Distiller
from edkd.errors import EdkdError
from edkd.training.distributed import add_gradients

_APART = "they need a momentum each, which optimizer=deepkd gives ce, tckd and nckd"
_DOT = "optimizer=dot needs ce and at least one other, as every method has but vanilla, simkd, deepkd and deepkd_dkd"
_DEEPKD = "optimizer=deepkd needs ce, tckd and nckd, as distiller=deepkd and deepkd_dkd have; others go with sgd"


class SGD(torch.optim.SGD):
    """Stochastic gradient descent with momentum on the sum of all losses.

    adds_gradients: `minimise` adds the gradients of all processes (`distributed.add_gradients`). An optimiser
    without it serves one process only.
    """

    adds_gradients = True

    def __init__(
        self, params: Iterable[nn.Parameter], *, lr: float | Tensor, momentum: float, weight_decay: float
    ) -> None:
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay, fused=True)

    @staticmethod
    def misfit(method: type[Distiller]) -> str | None:
        """Why this optimiser cannot minimise a method's losses; None if it can."""
        return _APART if method.needs_losses_apart else None

    def minimise(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Take one step down the sum of the losses; returns the sum."""
        self.zero_grad(set_to_none=True)
        total = torch.stack(list(losses.values())).sum()
        total.backward()
        add_gradients(parameter.grad for group in self.param_groups for parameter in group["params"])
        self.step()
        return total


class DOT(torch.optim.Optimizer):
    """Distillation-oriented trainer: the task's and the distillation's gradient have a momentum buffer each.

    Zhao, Cui, Song and Liang, "DOT: A Distillation-Oriented Trainer", ICCV 2023, arXiv:2307.08436. With g_c the
    gradient of the loss `ce` and g_k that of all others, v_c ← (momentum − delta)·v_c + g_c + weight_decay·p,
    v_k ← (momentum + delta)·v_k + g_k, and p ← p − lr·v_c − lr·v_k.

    As in the published code, a parameter that only one of the two gradients reaches has `momentum` itself. If that
    gradient is g_k, weight decay begins with the second step.
    """

    adds_gradients = True

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

    @staticmethod
    def misfit(method: type[Distiller]) -> str | None:
        """Why this optimiser cannot minimise a method's losses; None if it can."""
        if method.needs_losses_apart:
            return _APART
        return None if "ce" in method.loss_names and len(method.loss_names) > 1 else _DOT

    def minimise(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Take one step down the losses; returns their sum. Raises EdkdError without `ce` or with nothing beside it."""
        others = [loss for name, loss in losses.items() if name != "ce"]
        if len(others) in (0, len(losses)):
            raise EdkdError(f"a step has the losses {', '.join(losses)}: {_DOT}")
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        task = torch.autograd.grad(losses["ce"], parameters, retain_graph=True, allow_unused=True)
        kd = torch.autograd.grad(torch.stack(others).sum(), parameters, allow_unused=True)
        add_gradients([*task, *kd])
        gradients = dict(zip(parameters, zip(task, kd)))
        for group in self.param_groups:
            self._update(group, {parameter: gradients[parameter] for parameter in group["params"]})
        return torch.stack(list(losses.values())).sum()

    def _update(self, group: dict[str, Any], gradients: dict[Tensor, tuple[Tensor | None, Tensor | None]]) -> None:
        """Update one group's parameters from their (task, distillation) gradients; None: no such gradient."""
        lr, momentum, decay, delta = (group[name] for name in ("lr", "momentum", "weight_decay", "delta"))
        both = [(each, task, kd) for each, (task, kd) in gradients.items() if task is not None and kd is not None]
        task_only = [(each, task) for each, (task, kd) in gradients.items() if task is not None and kd is None]
        kd_only = [(each, kd) for each, (task, kd) in gradients.items() if task is None and kd is not None]
        kd_first = [(each, kd) for each, kd in kd_only if each not in self.state]
        kd_later = [(each, kd) for each, kd in kd_only if each in self.state]
        _descend(self.state, [(each, task) for each, task, _ in both], "momentum_buffer", momentum - delta, decay, lr)
        _descend(self.state, [(each, kd) for each, _, kd in both], "momentum_kd_buffer", momentum + delta, 0.0, lr)
        _descend(self.state, task_only, "momentum_buffer", momentum, decay, lr)
        _descend(self.state, kd_first, "momentum_kd_buffer", momentum, 0.0, lr)
        _descend(self.state, kd_later, "momentum_kd_buffer", momentum, decay, lr)


class DeepKD(torch.optim.Optimizer):
    """The optimiser of DeepKD: the gradients of the losses `ce`, `tckd` and `nckd` have a momentum buffer each.

    Huang, Song, Zhang and Ren, "DeepKD: A Deeply Decoupled and Denoised Knowledge Distillation Trainer", 2025,
    arXiv:2505.15133. In the order ce, nckd, tckd, v ← (momentum + delta)·v + g and p ← p − lr·v. Weight decay enters
    the gradient of `tckd` alone, with p as it is after the other two updates.

    own_task_momentum: whether `ce` has momentum + delta_task, as the paper says. The published code gives it the
    momentum of `tckd`.
    """

    adds_gradients = True

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        *,
        lr: float | Tensor,
        momentum: float,
        weight_decay: float,
        delta_task: float,
        delta_tckd: float,
        delta_nckd: float,
        own_task_momentum: bool,
    ) -> None:
        for name, delta in {"task": delta_task, "tckd": delta_tckd, "nckd": delta_nckd}.items():
            if not 0 <= momentum + delta < 1:
                raise EdkdError(
                    f"optimizer.delta_{name} is {delta}: {momentum} + delta_{name} must be at least 0 and below 1 "
                    "(see conf/optimizer/deepkd.yaml)"
                )
        momenta = {
            "momentum_ce": momentum + (delta_task if own_task_momentum else delta_tckd),
            "momentum_tckd": momentum + delta_tckd,
            "momentum_nckd": momentum + delta_nckd,
        }
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, **momenta})

    @staticmethod
    def misfit(method: type[Distiller]) -> str | None:
        """Why this optimiser cannot minimise a method's losses; None if it can."""
        return None if {*method.loss_names} == {"ce", "tckd", "nckd"} else _DEEPKD

    def minimise(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Take one step down the losses; returns their sum. Raises EdkdError unless they are ce, tckd and nckd."""
        if losses.keys() != {"ce", "tckd", "nckd"}:
            raise EdkdError(f"a step has the losses {', '.join(losses)}: {_DEEPKD}")
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        gradients = {}
        for name, again in {"ce": True, "tckd": True, "nckd": False}.items():
            found = torch.autograd.grad(losses[name], parameters, retain_graph=again, allow_unused=True)
            add_gradients(found)
            gradients[name] = dict(zip(parameters, found))
        for group in self.param_groups:
            for name, buffer in _DEEPKD_BUFFERS.items():
                reached = [(each, g) for each in group["params"] if (g := gradients[name][each]) is not None]
                decay = group["weight_decay"] if name == "tckd" else 0.0
                _descend(self.state, reached, buffer, group[f"momentum_{name}"], decay, group["lr"])
        return torch.stack(list(losses.values())).sum()


_DEEPKD_BUFFERS = {"ce": "momentum_buffer", "nckd": "momentum_ncg_buffer", "tckd": "momentum_tcg_buffer"}


@torch.no_grad()
def _descend(
    state: dict[Tensor, Any],
    pairs: list[tuple[Tensor, Tensor]],
    buffer: str,
    momentum: float,
    decay: float,
    lr: float | Tensor,
) -> None:
    """v ← momentum·v + gradient + decay·p; p ← p − lr·v, for these parameters p with their gradients."""
    if not pairs:
        return
    parameters, gradients = [each for each, _ in pairs], [gradient for _, gradient in pairs]
    for parameter in parameters:
        if buffer not in state[parameter]:
            state[parameter][buffer] = torch.zeros_like(parameter)
    velocities = [state[parameter][buffer] for parameter in parameters]
    torch._foreach_mul_(velocities, momentum)
    torch._foreach_add_(velocities, gradients)
    torch._foreach_add_(velocities, parameters, alpha=decay)
    torch._foreach_sub_(parameters, torch._foreach_mul(velocities, lr))

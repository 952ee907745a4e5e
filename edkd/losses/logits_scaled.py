"""Losses on logits whose scale is taken out, sample by sample: logit standardisation and NormKD.

Shapes as in `edkd.losses.logits`; `std` is the standard deviation over the classes, with divisor K − 1.
"""

import torch
from torch import Tensor

from edkd.losses.logits import decouple, kd_per_sample
from edkd.losses.probabilities import upcast


def standardise(logits: Tensor) -> Tensor:
    """Z(z) = (z − mean(z)) / (std(z) + 1e-7) of each sample, [B, K], for another loss to work on.

    Sun, Ren, Li, Wang and Cao, "Logit Standardization in Knowledge Distillation", CVPR 2024, arXiv:2403.01427.
    The gradient flows through mean and standard deviation.
    """
    wide = upcast(logits)
    return (wide - wide.mean(dim=1, keepdim=True)) / (wide.std(dim=1, keepdim=True) + 1e-7)


def normkd(logits_student: Tensor, logits_teacher: Tensor, temperature_norm: float) -> Tensor:
    """NormKD, KD at each sample's own two temperatures, batch mean (scalar).

    Chi, Zheng, Li, Yang, Wu, Lin and Cai, "NormKD: Normalized Logits for Knowledge Distillation", 2023,
    arXiv:2308.00520. With τ = temperature_norm·std of each network's logits, mean(τ_t²·KL(softmax(t / τ_t) ‖
    softmax(s / τ_s))). The factor is the teacher's, and the gradient flows through τ_s.
    """
    student, _ = _divided(logits_student, temperature_norm)
    teacher, tau = _divided(logits_teacher.detach(), temperature_norm)
    return (tau**2 * kd_per_sample(student, teacher, 1.0)).mean()


def normkd_dkd(
    logits_student: Tensor,
    logits_teacher: Tensor,
    target: Tensor,
    alpha: float,
    beta: float,
    temperature_norm: float,
) -> Tensor:
    """NormKD on DKD, mean(τ_t²·(alpha·TCKD + beta·NCKD)) with both parts of the divided logits (scalar)."""
    student, _ = _divided(logits_student, temperature_norm)
    teacher, tau = _divided(logits_teacher.detach(), temperature_norm)
    parts = decouple(student, teacher, target, 1.0)
    return (tau**2 * (alpha * parts.tckd + beta * parts.nckd)).mean()


def _divided(logits: Tensor, temperature_norm: float) -> tuple[Tensor, Tensor]:
    """Logits divided by their τ, [B, K], and τ, [B]; τ is 1 for a sample whose logits are all equal."""
    wide = upcast(logits)
    tau = temperature_norm * wide.std(dim=1)
    tau = torch.where(tau > 0, tau, torch.ones_like(tau))
    return wide / tau.unsqueeze(1), tau

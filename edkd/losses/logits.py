"""Distillation losses on logits, as pure tensor functions: KD, DKD, EDKD and the parts they share.

Shapes and symbols used throughout: B >= 1 samples, K >= 2 classes; `logits_student` and `logits_teacher` are [B, K],
`target` is int64 [B], T is the temperature (> 0). Gradients reach the student's logits only.

Everything is computed in log space and in at least single precision (half-precision logits are upcast, float64 stays),
so values and gradients are finite for any finite logits. No function reads a value back from the device, so all of them
can be captured in a CUDA graph.
"""

from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

Weighting = Literal["batch", "sample"]
WEIGHTINGS: tuple[str, ...] = get_args(Weighting)


class Decoupled(NamedTuple):
    """The two parts of KD for each sample, and what EDKD needs to weigh them."""

    tckd: Tensor
    """[B], T²·KL between the two-way distributions (p_y, 1 − p_y) of teacher and student."""
    nckd: Tensor
    """[B], T²·KL between the teacher's and the student's softmax over the non-target classes alone."""
    teacher_log_odds: Tensor
    """[B], log(p_y / (1 − p_y)) of the teacher at temperature T; no gradient."""


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy with the labels, batch mean (scalar), at temperature 1."""
    return F.cross_entropy(_upcast(logits), target)


def kd(logits_student: Tensor, logits_teacher: Tensor, temperature: float) -> Tensor:
    """Knowledge distillation, batch mean of `kd_per_sample` (scalar). The weights beside CE are the caller's.

    Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531, section 2.
    """
    return kd_per_sample(logits_student, logits_teacher, temperature).mean()


def kd_per_sample(logits_student: Tensor, logits_teacher: Tensor, temperature: float) -> Tensor:
    """T²·KL(softmax(teacher / T) ‖ softmax(student / T)), summed over classes: [B]."""
    log_student = F.log_softmax(_upcast(logits_student) / temperature, dim=1)
    log_teacher = F.log_softmax(_upcast(logits_teacher.detach()) / temperature, dim=1)
    return temperature**2 * _kl(log_teacher.exp(), log_teacher, log_student)


def dkd(
    logits_student: Tensor, logits_teacher: Tensor, target: Tensor, alpha: float, beta: float, temperature: float
) -> Tensor:
    """Decoupled knowledge distillation, mean(alpha·TCKD + beta·NCKD) over the batch (scalar).

    Zhao, Cui, Song, Qiu and Liang, "Decoupled Knowledge Distillation", CVPR 2022, arXiv:2203.08679, equation 7,
    with the factor T² of KD.
    """
    parts = decouple(logits_student, logits_teacher, target, temperature)
    return alpha * parts.tckd.mean() + beta * parts.nckd.mean()


def edkd(
    logits_student: Tensor,
    logits_teacher: Tensor,
    target: Tensor,
    alpha: float,
    beta: float,
    temperature: float,
    weighting: str,
) -> Tensor:
    """Exponential dynamic knowledge distillation: DKD whose beta follows the teacher's confidence (scalar).

    For sample i, c_i = max(p_y, 1 − p_y) of the teacher and beta_i = beta·exp(−(1 − c_i)). See `edkd_confidence`,
    `edkd_beta` and, for the two readings of `weighting` ("batch" as published, "sample"), `edkd_combine`.
    """
    parts = decouple(logits_student, logits_teacher, target, temperature)
    beta_i = edkd_beta(edkd_confidence(parts.teacher_log_odds), beta)
    return edkd_combine(parts, alpha, beta_i, weighting)


def decouple(logits_student: Tensor, logits_teacher: Tensor, target: Tensor, temperature: float) -> Decoupled:
    """Split KD into its target and its non-target part, per sample (DKD, arXiv:2203.08679, section 3.1).

    The parts satisfy KD = TCKD + (1 − p_y of the teacher)·NCKD. With two classes NCKD is 0.
    """
    is_target = torch.arange(logits_student.shape[1], device=target.device) == target.unsqueeze(1)
    odds_student, log_student = _split(logits_student, is_target, temperature)
    odds_teacher, log_teacher = _split(logits_teacher.detach(), is_target, temperature)

    two_way_student, two_way_teacher = _two_way(odds_student), _two_way(odds_teacher)
    tckd = _kl(two_way_teacher.exp(), two_way_teacher, two_way_student)
    # The target's entry takes no part: -inf in the exponent makes its weight exactly 0, against a finite factor.
    nckd = _kl(log_teacher.masked_fill(is_target, -torch.inf).exp(), log_teacher, log_student)
    return Decoupled(temperature**2 * tckd, temperature**2 * nckd, odds_teacher)


def edkd_confidence(teacher_log_odds: Tensor) -> Tensor:
    """c_i = max(p_y, 1 − p_y) in [1/2, 1], from the teacher's log odds at the loss's temperature: [B] to [B].

    It is the *larger* side of the pair: a teacher that is sure that the target is wrong counts as confident, too.
    """
    return torch.sigmoid(teacher_log_odds.detach().abs())


def edkd_beta(confidence: Tensor, beta: float) -> Tensor:
    """beta_i = beta·exp(−(1 − c_i)) in [beta·e^(−1/2), beta]: [B] to [B], without a gradient."""
    return beta * torch.exp(confidence.detach() - 1)


def edkd_combine(parts: Decoupled, alpha: float, beta: Tensor, weighting: str) -> Tensor:
    """Weigh the decoupled parts with a beta per sample, [B], and average over the batch (scalar).

    "batch" is EDKD as published: NCKD is averaged before beta is applied, alpha·mean(TCKD) + mean(beta_i)·mean(NCKD),
    so a sample's confidence acts on the whole batch. "sample" weighs each sample's own NCKD,
    mean(alpha·TCKD_i + beta_i·NCKD_i). The two agree where beta_i is the same throughout the batch.

    Raises:
        ValueError: another `weighting`.
    """
    if weighting == "batch":
        return alpha * parts.tckd.mean() + beta.mean() * parts.nckd.mean()
    if weighting == "sample":
        return (alpha * parts.tckd + beta * parts.nckd).mean()
    raise ValueError(f"unknown weighting {weighting!r}; valid: {', '.join(WEIGHTINGS)}")


def _upcast(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _split(logits: Tensor, is_target: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The target's log odds, [B], and the log-probabilities among the non-target classes, [B, K].

    One log-sum-exp over the non-target logits z gives both: z_j − lse is the log softmax over the non-targets for
    j ≠ y, and log(p_y / (1 − p_y)) for j = y. So the [B, K] result holds the log odds in the target's place, which
    is finite where a masked log softmax would hold −inf.
    """
    scaled = _upcast(logits) / temperature
    relative = scaled - scaled.masked_fill(is_target, -torch.inf).logsumexp(dim=1, keepdim=True)
    # A masked sum, not a gather: the gradient of gather scatters with atomics on CUDA, this one is deterministic.
    return (relative * is_target).sum(dim=1), relative


def _two_way(log_odds: Tensor) -> Tensor:
    """(log p_y, log(1 − p_y)) from the log odds: [B] to [B, 2], exact at both ends."""
    return F.logsigmoid(torch.stack((log_odds, -log_odds), dim=1))


def _kl(p_teacher: Tensor, log_teacher: Tensor, log_student: Tensor) -> Tensor:
    """KL(teacher ‖ student) along the last dimension: [B, K] to [B]."""
    return (p_teacher * (log_teacher - log_student)).sum(dim=1)

"""Distillation losses on logits, as pure tensor functions: KD, DKD, EDKD and the parts they share.

Shapes and symbols used throughout: B >= 1 samples, K >= 2 classes; `logits_student` and `logits_teacher` are [B, K],
`target` is int64 [B], T is the temperature (> 0). Gradients reach the student's logits only.

Everything is computed in log space and in at least single precision (half-precision logits are upcast, float64 stays),
so values and gradients are finite for any finite logits. No function reads a value back from the device, so all of them
can be captured in a CUDA graph.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from edkd.losses.probabilities import kl, mask_of, split, two_way, upcast, weights_among

Weighting = Literal["batch", "sample"]


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
    return F.cross_entropy(upcast(logits), target)


def kd(logits_student: Tensor, logits_teacher: Tensor, temperature: float | Tensor) -> Tensor:
    """Knowledge distillation, batch mean of `kd_per_sample` (scalar). The caller weighs it against CE.

    Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531, section 2.
    """
    return kd_per_sample(logits_student, logits_teacher, temperature).mean()


def kd_per_sample(logits_student: Tensor, logits_teacher: Tensor, temperature: float | Tensor) -> Tensor:
    """T²·KL(softmax(teacher / T) ‖ softmax(student / T)), summed over classes: [B].

    A temperature that is a tensor, 0-dim, receives a gradient through the factor and both softmaxes.
    """
    log_student = F.log_softmax(upcast(logits_student) / temperature, dim=1)
    log_teacher = F.log_softmax(upcast(logits_teacher.detach()) / temperature, dim=1)
    return temperature**2 * kl(log_teacher.exp(), log_teacher, log_student)


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
    weighting: Weighting,
) -> tuple[Tensor, Tensor, Tensor]:
    """Exponential dynamic knowledge distillation: DKD whose beta follows the teacher's confidence.

    For sample i, c_i = max(p_y, 1 − p_y) of the teacher at temperature T, in [1/2, 1], and
    beta_i = beta·exp(−(1 − c_i)), in [beta·e^(−1/2), beta]. c_i is the *larger* side of the pair: a teacher that is
    sure that the target is wrong counts as confident, too.

    "batch" is EDKD as published: NCKD is averaged before beta is applied, alpha·mean(TCKD) + mean(beta_i)·mean(NCKD),
    so a sample's confidence acts on the whole batch. "sample" weighs each sample's own NCKD,
    mean(alpha·TCKD_i + beta_i·NCKD_i). The two agree where beta_i is the same throughout the batch.

    Returns the loss (scalar), and beta_i and c_i, [B], without a gradient.
    """
    tckd, nckd, teacher_log_odds = decouple(logits_student, logits_teacher, target, temperature)
    confidence = torch.sigmoid(teacher_log_odds.abs())
    beta_i = beta * torch.exp(confidence - 1)
    if weighting == "batch":
        loss = alpha * tckd.mean() + beta_i.mean() * nckd.mean()
    else:
        loss = (alpha * tckd + beta_i * nckd).mean()
    return loss, beta_i, confidence


def decouple(logits_student: Tensor, logits_teacher: Tensor, target: Tensor, temperature: float) -> Decoupled:
    """Split KD into its target and its non-target part, per sample (DKD, arXiv:2203.08679, section 3.1).

    The parts satisfy KD = TCKD + (1 − p_y of the teacher)·NCKD. With two classes NCKD is 0.
    """
    is_target = mask_of(target, logits_student.shape[1])
    odds_student, log_student = split(logits_student, is_target, temperature)
    odds_teacher, log_teacher = split(logits_teacher.detach(), is_target, temperature)

    pair_student, pair_teacher = two_way(odds_student), two_way(odds_teacher)
    tckd = kl(pair_teacher.exp(), pair_teacher, pair_student)
    nckd = kl(weights_among(log_teacher, is_target), log_teacher, log_student)
    return Decoupled(temperature**2 * tckd, temperature**2 * nckd, odds_teacher)

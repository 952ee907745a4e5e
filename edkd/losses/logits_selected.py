"""Losses on logits that treat some of the classes apart: NKD, refined logits (RLD) and NCKD over the top classes.

Shapes as in `edkd.losses.logits`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from edkd.losses.probabilities import (
    at_target,
    kl,
    kl_among,
    log_softmax_among,
    mask_of,
    split,
    two_way,
    upcast,
    weights_among,
)


def nkd(logits_student: Tensor, logits_teacher: Tensor, target: Tensor, gamma: float, temperature: float) -> Tensor:
    """Normalised knowledge distillation, the batch mean of `nkd_per_sample` (scalar)."""
    return nkd_per_sample(logits_student, logits_teacher, target, gamma, temperature, mask_target=True).mean()


def nkd_per_sample(
    logits_student: Tensor,
    logits_teacher: Tensor,
    target: Tensor,
    gamma: float,
    temperature: float,
    mask_target: bool,
) -> Tensor:
    """Normalised knowledge distillation: [B, K] and int64 [B] to [B]; a cross-entropy, not 0 for equal logits.

    Yang, Zeng et al., "From Knowledge Distillation to Self-Knowledge Distillation", ICCV 2023, arXiv:2303.13005.
    −p_1(t)_y·log p_1(s)_y − gamma·T²·Σ_{j≠y} q_T(t)_j·log q_T(s)_j, where p_1 is the softmax at temperature 1 and q_T
    that at T over the non-target classes alone. Without `mask_target` the sum and q_T are over all classes, as SDD's
    published code has it.
    """
    is_target = mask_of(target, logits_student.shape[1])
    teacher = logits_teacher.detach()
    p_target = at_target(F.softmax(upcast(teacher), dim=1), is_target)
    of_target = -p_target * at_target(F.log_softmax(upcast(logits_student), dim=1), is_target)
    left_out = is_target if mask_target else torch.zeros_like(is_target)
    q_teacher = weights_among(log_softmax_among(teacher, left_out, temperature), left_out)
    others = -(q_teacher * log_softmax_among(logits_student, left_out, temperature)).sum(dim=1)
    return of_target + gamma * temperature**2 * others


def rld(
    logits_student: Tensor,
    logits_teacher: Tensor,
    target: Tensor,
    alpha: float,
    beta: float,
    temperature: float,
    alpha_temperature: float,
) -> Tensor:
    """Refined logit distillation, mean(alpha·SCD + beta·MCD) over the batch (scalar).

    Sun, Chen, Lyu, Chen, Chen and Wang, "Knowledge Distillation with Refined Logits", 2024, arXiv:2408.07703.
    SCD = T_a²·KL between two-way distributions at T_a = `alpha_temperature`: the teacher's of its own top class,
    (max p, 1 − max p), and the student's of the target, (p_y, 1 − p_y). MCD = T²·KL between the softmaxes at T over the
    classes whose teacher logit is below the teacher's logit of the target; 0 where there is none.
    """
    classes = logits_student.shape[1]
    is_target = mask_of(target, classes)
    teacher = logits_teacher.detach()
    odds_student, _ = split(logits_student, is_target, alpha_temperature)
    odds_teacher, _ = split(teacher, mask_of(teacher.argmax(dim=1), classes), alpha_temperature)
    pair_student, pair_teacher = two_way(odds_student), two_way(odds_teacher)
    scd = alpha_temperature**2 * kl(pair_teacher.exp(), pair_teacher, pair_student)

    not_below = teacher >= at_target(teacher, is_target).unsqueeze(1)
    mcd = temperature**2 * kl_among(logits_student, teacher, not_below, temperature)
    return (alpha * scd + beta * mcd).mean()


def nckd_among_top(
    logits_student: Tensor, logits_teacher: Tensor, target: Tensor, temperature: float, top_k: int
) -> Tensor:
    """NCKD over the classes of the teacher's `top_k` largest logits, without the target: [B].

    Huang, Song, Zhang and Ren, "DeepKD: A Deeply Decoupled and Denoised Knowledge Distillation Trainer", 2025,
    arXiv:2505.15133. If the target is among the k, k − 1 classes take part. All classes that tie with the
    k-th take part. The result is 0 if no class remains.
    """
    teacher = logits_teacher.detach()
    smaller = teacher < teacher.topk(top_k, dim=1).values[:, -1:]
    left_out = smaller | mask_of(target, teacher.shape[1])
    return temperature**2 * kl_among(logits_student, teacher, left_out, temperature)

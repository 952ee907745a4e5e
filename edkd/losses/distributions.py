"""Losses that compare predicted distributions in other ways than KD: by correlation (DIST), and with a temperature on
the teacher's side alone (TTM, WTTM).

Shapes as in `edkd.losses.logits`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from edkd.losses.probabilities import kl, upcast


def dist(logits_student: Tensor, logits_teacher: Tensor, beta: float, gamma: float, temperature: float) -> Tensor:
    """DIST, T²·(beta·inter + gamma·intra) (scalar).

    Huang, You, Wang, Qian and Xu, "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022, arXiv:2205.10536.
    With a and b the softmaxes at T of student and teacher, [B, K], and ρ Pearson's correlation, inter is 1 − the mean
    over samples of ρ(a_i·, b_i·), intra is 1 − the mean over classes of ρ(a_·k, b_·k). A single sample has no
    correlation over the batch: its intra is constant.
    """
    student = F.softmax(upcast(logits_student) / temperature, dim=1)
    teacher = F.softmax(upcast(logits_teacher.detach()) / temperature, dim=1)
    inter = 1 - _correlation(student, teacher, dim=1).mean()
    intra = 1 - _correlation(student, teacher, dim=0).mean()
    return temperature**2 * (beta * inter + gamma * intra)


def _correlation(first: Tensor, second: Tensor, dim: int) -> Tensor:
    """Pearson's correlation along a dimension, the product of the norms enlarged by 1e-8 as published."""
    first, second = (each - each.mean(dim=dim, keepdim=True) for each in (first, second))
    norms = torch.linalg.vector_norm(first, dim=dim) * torch.linalg.vector_norm(second, dim=dim)
    return (first * second).sum(dim=dim) / (norms + 1e-8)


def ttm(logits_student: Tensor, logits_teacher: Tensor, exponent: float) -> Tensor:
    """Transformed teacher matching, mean KL(g ‖ p(s)) at the student's temperature 1, without a factor T² (scalar).

    Zheng and Yang, "Knowledge Distillation Based on Transformed Teacher Matching", ICLR 2024, arXiv:2402.11148.
    g = p(t)^γ / U with U = Σ_k p(t)_k^γ, γ = `exponent`: the teacher's softmax at temperature 1/γ.
    """
    divergence, _ = _transformed(logits_student, logits_teacher, exponent)
    return divergence.mean()


def wttm(logits_student: Tensor, logits_teacher: Tensor, exponent: float) -> Tensor:
    """Weighted TTM, mean(U·KL(g ‖ p(s))), g and U as in `ttm` (scalar).

    U, between 1 and K^(1−γ), is larger the less sure the teacher is: such samples count more.
    """
    divergence, weight = _transformed(logits_student, logits_teacher, exponent)
    return (weight * divergence).mean()


def _transformed(logits_student: Tensor, logits_teacher: Tensor, exponent: float) -> tuple[Tensor, Tensor]:
    """KL(g ‖ p(s)) and U of each sample: [B], [B]."""
    powers = exponent * F.log_softmax(upcast(logits_teacher.detach()), dim=1)
    log_u = powers.logsumexp(dim=1)
    log_g = powers - log_u.unsqueeze(1)
    return kl(log_g.exp(), log_g, F.log_softmax(upcast(logits_student), dim=1)), log_u.exp()

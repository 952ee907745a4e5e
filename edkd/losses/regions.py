"""Scale-decoupled distillation: losses on the logits of an image's regions, as pure tensor functions.

Wei, Luo and Luo, "Scale Decoupled Distillation", CVPR 2024, arXiv:2403.13512. B samples, K classes, N regions; the
first region is the whole image. Gradients reach the student's side only.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from edkd.losses.features import pool

GRID = 4
"""The height to which the last map is pooled before its regions are taken."""

RowLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From the logits of student and teacher, [R, K] each, and the target, int64 [R], to one loss a row, [R]."""


def regional_logits(last_map: Tensor, weight: Tensor, bias: Tensor, scales: Sequence[int]) -> Tensor:
    """The logits that a network's classifier gives to each region, [B, N, K].

    The last map, [B, C, H, W], is pooled to 4x4, then to m x m for each m of `scales`; each cell, row by row, is a
    region, and the classifier, weight [K, C] and bias [K], is applied to its vector.
    """
    grid = pool(last_map, GRID)
    cells = torch.cat([pool(grid, scale).flatten(2) for scale in scales], dim=2)
    return F.linear(cells.mT, weight, bias)


def regional_weights(logits_teacher: Tensor, target: Tensor) -> Tensor:
    """1 where the teacher is right in a region exactly when it is right on the whole image, else 2: [B, N]."""
    right = logits_teacher.argmax(dim=2) == target[:, None]
    return 1.0 + (right != right[:, :1])


def sdd(logits_student: Tensor, logits_teacher: Tensor, target: Tensor, loss: RowLoss) -> Tensor:
    """The weighted mean of a logit loss over regions and samples, Σ weight·loss / (N·B) (scalar).

    Args:
        logits_student: `regional_logits`, [B, N, K].
        logits_teacher: [B, N, K].
        target: int64 [B].
        loss: the loss of one region of one sample.
    """
    regions = logits_student.shape[1]
    target_of_region = target[:, None].expand(-1, regions).flatten()
    each = loss(logits_student.flatten(0, 1), logits_teacher.flatten(0, 1), target_of_region)
    weights = regional_weights(logits_teacher, target).to(each.dtype)
    return (weights.flatten() * each).mean()


def nkd_per_sample(
    logits_student: Tensor,
    logits_teacher: Tensor,
    target: Tensor,
    gamma: float,
    temperature: float,
    mask_target: bool,
) -> Tensor:
    """Normalised KD, −p_1(t)_y·log p_1(s)_y − gamma·T²·Σ_j q_T(t)_j·log q_T(s)_j: [B, K] and [B] to [B].

    Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation", ICCV 2023, arXiv:2303.13005. p_1 is the
    softmax at temperature 1, q_T that at T over the classes without the target. Without `mask_target` q_T is the
    softmax over all classes, as SDD's published code has it. A cross-entropy: it does not vanish for equal logits.
    """
    student, teacher = _upcast(logits_student), _upcast(logits_teacher.detach())
    is_target = torch.arange(student.shape[1], device=target.device) == target[:, None]
    nothing = torch.zeros_like(is_target)
    of_target = (_log_softmax(teacher, nothing).exp() * _log_softmax(student, nothing) * is_target).sum(dim=1)
    left_out = is_target if mask_target else nothing
    log_teacher, log_student = (_log_softmax(logits / temperature, left_out) for logits in (teacher, student))
    of_others = (log_teacher.masked_fill(left_out, -torch.inf).exp() * log_student).sum(dim=1)
    return -of_target - gamma * temperature**2 * of_others


def _upcast(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _log_softmax(logits: Tensor, left_out: Tensor) -> Tensor:
    """The log softmax over the classes that are not left out; the others hold a finite number without meaning."""
    return logits - logits.masked_fill(left_out, -torch.inf).logsumexp(dim=1, keepdim=True)

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
"""From the logits of student and teacher, [R, K] each, and the target, int64 [R], to one loss per row, [R]."""


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

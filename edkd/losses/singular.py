"""The loss of KDSVD on singular vectors of features, as pure tensor functions. Gradients reach the student only."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

KDSVD_EXTRA = 3
"""How many singular vectors of the student more than k are matched with the k of the teacher."""
_SMALLEST_GAP = 1e-4


def kdsvd(feats_student: Sequence[Tensor], feats_teacher: Sequence[Tensor], k: int) -> Tensor:
    """Relations between the singular vectors of successive stages: squared differences, batch mean (scalar).

    Lee, Kim and Song, "Self-supervised Knowledge Distillation Using Singular Value Decomposition", ECCV 2018,
    arXiv:1807.06819. A stage of one sample is its `channel_directions`, V [C, k]: the teacher's, and for each of them
    the student's nearest in direction. Two successive stages are related by exp(−(V_ic − V_(i−1)d)² / 8) for all
    channels c and d, and the loss is the sum, over stages, channels and vectors, of the squared differences between
    the student's and the teacher's relations. Channels of a stage must agree; heights may differ.

    This is the paper's loss as it is read here. It is not verified against published code: the value recorded from one
    implementation for k = 1 (`kdsvd_k1` in tests/golden/losses.json) is another, for any choice of the vectors' signs.

    Args:
        feats_student: [B, C_i, h_i, h_i] of each stage.
        feats_teacher: [B, C_i, H_i, H_i] of each stage.
        k: the number of singular vectors.
    """
    student, teacher = [], []
    for feat_student, feat_teacher in zip(feats_student, feats_teacher, strict=True):
        of_teacher = channel_directions(feat_teacher.detach(), k)
        student.append(_nearest(channel_directions(feat_student, k + KDSVD_EXTRA), of_teacher))
        teacher.append(of_teacher)
    pairs = zip(student, student[1:], teacher, teacher[1:])
    total = sum((_relation(s, s_next) - _relation(t, t_next)).square().sum() for s, s_next, t, t_next in pairs)
    assert isinstance(total, Tensor)
    return total / len(feats_student[0])


def channel_directions(feat: Tensor, k: int) -> Tensor:
    """The first k right singular vectors, over channels, of each map as an [H·W, C] matrix: [B, C, H, W] to [B, C, k].

    A vector's sign is free; the one with a positive sum is taken: the first vector of a map after a ReLU has entries of
    one sign. Vectors are the eigenvectors of the C x C matrix of inner products. Their gradient is exact,
    Σ_j v_j·(v_jᵀ·dG·v) / (λ − λ_j), but leaves out pairs whose eigenvalues, divided by the largest, lie closer than
    1e-4: there single-precision features do not determine the vectors, and autograd's own gradient is not finite where
    several channels are 0 everywhere.
    """
    rows = feat.flatten(2)
    gram = rows @ rows.mT
    # In double precision: the solver does not converge on some maps of low rank in single.
    values, vectors = (part.to(gram.dtype) for part in torch.linalg.eigh(gram.detach().double()))  # ascending
    kept = vectors[..., -k:]
    gaps = values[:, None, -k:] - values[..., None]  # [B, C, k]
    near = gaps.abs() <= _SMALLEST_GAP * values[:, -1:, None]
    inverse = (~near) / gaps.masked_fill(near, 1)
    change = vectors @ (inverse * (vectors.mT @ (gram - gram.detach()) @ kept))  # 0, with the gradient above
    directions = (kept + change).flip(2)
    return directions * torch.where(kept.flip(2).sum(dim=1, keepdim=True) < 0, -1.0, 1.0)


def _nearest(student: Tensor, teacher: Tensor) -> Tensor:
    """For each of the teacher's vectors the student's with the largest |cosine|, with its sign: [B, C, k]."""
    cosine = student.mT @ teacher  # [B, k + extra, k]
    chosen = F.one_hot(cosine.detach().abs().argmax(dim=1), student.shape[2]).mT
    return student @ (chosen * cosine.detach().sign())


def _relation(stage: Tensor, next_stage: Tensor) -> Tensor:
    """exp(−(difference)² / 8) between all channels of two stages, for each vector: [B, C', C, k]."""
    return torch.exp(-(next_stage[:, :, None] - stage[:, None]).square() / 8)

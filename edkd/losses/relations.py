"""Distillation losses on the relations between the samples of a batch, as pure tensor functions.

B samples; a vector or map may have another width in the student than in the teacher, because only relations between
samples are compared. Gradients reach the student's side only, except in `cc`, whose embeddings are both trained. A
batch of one sample has no relations and gives 0. No function reads a value back from the device.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_PKT_EPS = 1e-7
_RKD_EPS = 1e-12


def pkt(pooled_student: Tensor, pooled_teacher: Tensor) -> Tensor:
    """Probabilistic knowledge transfer, mean over all B² pairs (scalar).

    Passalis and Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018,
    arXiv:1803.10837, with the cosine kernel. p_ij = k_ij / Σ_j k_ij with k_ij = (cos(x_i, x_j) + 1) / 2, and the loss
    is the mean over i, j of p_ij(teacher)·log(p_ij(teacher) / p_ij(student)); the diagonal takes part, and 1e-7 is
    added to lengths and probabilities, as published.

    Args:
        pooled_student: [B, C_s].
        pooled_teacher: [B, C_t].
    """
    student, teacher = _cosine_probabilities(pooled_student), _cosine_probabilities(pooled_teacher.detach())
    return (teacher * ((teacher + _PKT_EPS) / (student + _PKT_EPS)).log()).mean()


def sp(feat_student: Tensor, feat_teacher: Tensor) -> Tensor:
    """Similarity-preserving distillation: mean squared difference of the batch's similarity matrices (scalar).

    Tung and Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, arXiv:1907.09682:
    G = F·Fᵀ with one flattened map per row, each row of G scaled to length 1; ‖G_t − G_s‖² / B².

    Args:
        feat_student: [B, C_s, H_s, W_s].
        feat_teacher: [B, C_t, H_t, W_t].
    """
    return F.mse_loss(_similarities(feat_student), _similarities(feat_teacher.detach()))


def cc(embedded_student: Tensor, embedded_teacher: Tensor) -> Tensor:
    """Correlation congruence as the CRD benchmark computes it, mean over neighbours in the batch (scalar).

    Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019, arXiv:1904.01802. With
    E = |embedded_student − embedded_teacher|, the mean over i of Σ_c E_ic·E_(i+1)c. The paper compares kernels of all
    pairs of samples; this is what the benchmark ran, and it depends on the order of the batch.

    Args:
        embedded_student: [B, D]; receives a gradient.
        embedded_teacher: [B, D]; receives one, too, because the embedding is trained.
    """
    distance = (embedded_student - embedded_teacher).abs()
    return (distance[:-1] * distance[1:]).sum() / max(len(distance) - 1, 1)


def rkd(pooled_student: Tensor, pooled_teacher: Tensor, distance_weight: float, angle_weight: float) -> Tensor:
    """Relational distillation: distance_weight·(distances of pairs) + angle_weight·(angles of triplets) (scalar).

    Park, Kim, Lu and Cho, "Relational Knowledge Distillation", CVPR 2019, arXiv:1904.05068. Both
    parts are Huber losses (turning linear at 1), averaged over all B² and B³ entries: of the distances between samples
    divided by their mean, and of the cosines of the angles that samples i and k make at j.

    Args:
        pooled_student: [B, C_s].
        pooled_teacher: [B, C_t].
        distance_weight: the weight of the distances, 25 in the CRD benchmark.
        angle_weight: the weight of the angles, 50 in the CRD benchmark.
    """
    between_student = pooled_student - pooled_student[:, None]  # [B, B, C_s]
    between_teacher = (pooled_teacher - pooled_teacher[:, None]).detach()
    distances = F.smooth_l1_loss(_relative_distances(between_student), _relative_distances(between_teacher))
    angles = F.smooth_l1_loss(_angles(between_student), _angles(between_teacher))
    return distance_weight * distances + angle_weight * angles


def _cosine_probabilities(x: Tensor) -> Tensor:
    """(cos(x_i, x_j) + 1) / 2, each row divided by its sum: [B, C] to [B, B]."""
    x = x / (x.norm(dim=1, keepdim=True) + _PKT_EPS)
    kernel = (x @ x.T + 1) / 2
    return kernel / kernel.sum(dim=1, keepdim=True)


def _similarities(feat: Tensor) -> Tensor:
    """Inner products of the samples' maps, rows scaled to length 1: [B, C, H, W] to [B, B]."""
    rows = feat.flatten(1)
    return F.normalize(rows @ rows.T)


def _relative_distances(between: Tensor) -> Tensor:
    """Euclidean distances divided by the mean over pairs of different samples: [B, B, C] to [B, B], diagonal 0."""
    count = len(between)
    others = ~torch.eye(count, dtype=torch.bool, device=between.device)
    distance = between.square().sum(dim=2).clamp(min=_RKD_EPS).sqrt() * others
    # No pair is nearer than sqrt(eps), so this clamp acts only where there is no pair at all.
    return distance * (count * (count - 1)) / distance.sum().clamp(min=_RKD_EPS)


def _angles(between: Tensor) -> Tensor:
    """The cosines of the angles between samples i and k, seen from j: [B, B, C] to [B (j), B (i), B (k)]."""
    direction = F.normalize(between, dim=2)
    return direction @ direction.mT

"""Distillation losses on features, as pure tensor functions. B samples; gradients reach the student's side only.

A map is [B, C, H, W] with H = W. Functions take one stage's maps; a method sums over the stages.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def pool(feat: Tensor, size: int) -> Tensor:
    """Adaptive average pooling of a map to size x size; a smaller map's values are repeated.

    The two usual cases have kernels of their own, because on CUDA the gradient of the general one is summed in an
    order that changes from run to run.
    """
    height = feat.shape[-1]
    if height == size:
        return feat
    if height % size == 0:
        return F.avg_pool2d(feat, height // size)
    if size % height == 0:
        return F.interpolate(feat, size=(size, size), mode="nearest")
    return F.adaptive_avg_pool2d(feat, size)


def to_smaller(feat_student: Tensor, feat_teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Pool the larger of two maps to the size of the smaller."""
    size = min(feat_student.shape[-1], feat_teacher.shape[-1])
    return pool(feat_student, size), pool(feat_teacher, size)


def hint(regressed: Tensor, feat_teacher: Tensor) -> Tensor:
    """The hint loss of FitNets: mean squared error over all entries (scalar).

    Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, arXiv:1412.6550, equation 3. `regressed` is the
    student's map after the regressor, in the shape of the teacher's, [B, C, H, W].
    """
    return F.mse_loss(regressed, feat_teacher.detach())


def nce(scores: Tensor, images: int) -> Tensor:
    """Noise-contrastive estimation of one positive against k negatives, batch mean (scalar).

    Tian, Krishnan and Isola, "Contrastive Representation Distillation", ICLR 2020, arXiv:1910.10699. A sample gives
    −log(x_0 / (x_0 + c)) − Σ_j log(c / (x_j + c)), with c = k / images; the published code adds 1e-7 to both
    denominators.

    Args:
        scores: [B, 1 + k], positive numbers; the first column belongs to the positive.
        images: the number of training images.
    """
    noise = (scores.shape[1] - 1) / images
    total = scores + (noise + 1e-7)
    positive = (scores[:, 0] / total[:, 0]).log()
    negative = (noise / total[:, 1:]).log().sum(dim=1)
    return -(positive + negative).mean()


def at(feat_student: Tensor, feat_teacher: Tensor, p: float) -> Tensor:
    """Attention transfer: mean squared difference of two attention maps (scalar).

    Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017, arXiv:1612.03928. A sample's
    attention is Σ_c |f_c|^p over its channels, as a vector of all places, scaled to length 1. The larger map is pooled
    to the smaller's size first; channels may differ. As in the CRD benchmark, the difference is averaged over places;
    the paper takes its norm instead.
    """
    student, teacher = to_smaller(feat_student, feat_teacher.detach())
    return F.mse_loss(_attention(student, p), _attention(teacher, p))


def nst(feat_student: Tensor, feat_teacher: Tensor) -> Tensor:
    """Neuron selectivity transfer: squared maximum mean discrepancy of the channels' patterns, batch mean (scalar).

    Huang and Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", 2017, arXiv:1707.01219,
    with the polynomial kernel k(x, y) = (xᵀy)². A pattern is a channel's map, scaled to length 1. Each sample
    gives mean k(s, s) + mean k(t, t) − 2·mean k(s, t) over all pairs of channels. The larger map is pooled to the
    smaller's size first; channels may differ.
    """
    student, teacher = (F.normalize(feat.flatten(2), dim=2) for feat in to_smaller(feat_student, feat_teacher.detach()))
    within = _polynomial_kernel(student, student) + _polynomial_kernel(teacher, teacher)
    return within - 2 * _polynomial_kernel(student, teacher)


def vid(mean: Tensor, log_scale: Tensor, feat_teacher: Tensor, eps: float) -> Tensor:
    """Variational information distillation: −log of a normal density of the teacher's map, mean over entries (scalar).

    Ahn et al., "Variational Information Distillation for Knowledge Transfer", CVPR 2019, arXiv:1904.05835:
    ½·((mean − f_t)² / v + log v) with one variance per channel, v = log(1 + exp(log_scale)) + eps; the constant
    ½·log 2π is left out.

    Args:
        mean: the regressed student's map, [B, C, H, W].
        log_scale: [C]; receives a gradient.
        feat_teacher: [B, C, H, W].
        eps: the smallest variance.
    """
    variance = (F.softplus(log_scale) + eps)[:, None, None]
    return (((mean - feat_teacher.detach()).square() / variance + variance.log()) / 2).mean()


def ofd(connected: Tensor, feat_teacher: Tensor, margin: Tensor) -> Tensor:
    """The partial squared distance of OFD: summed over channels and places, batch mean (scalar).

    Heo et al., "A Comprehensive Overhaul of Feature Distillation", ICCV 2019, arXiv:1904.01866, of
    maps before their ReLU. With the margin ReLU u = max(f_t, margin), an entry gives (x − u)², but 0 where the teacher
    is at or below 0 and the student at or below u.

    Args:
        connected: x, the student's map after its connector, [B, C, H, W].
        feat_teacher: [B, C, H, W].
        margin: one negative number per channel, [C].
    """
    feat_teacher = feat_teacher.detach()
    goal = torch.maximum(feat_teacher, margin[:, None, None])
    counts = (feat_teacher > 0) | (connected > goal)
    return ((connected - goal).square() * counts).sum() / len(connected)


def ofd_margin(weight: Tensor, bias: Tensor) -> Tensor:
    """The expected value of a batch norm's negative outputs, [C], which are taken as normally distributed.

    arXiv:1904.01866. With σ = |weight| and μ = bias, m = μ − σ·φ(μ/σ) / Φ(−μ/σ), or −3σ where negative
    outputs are rarer than one in a thousand, Φ(−μ/σ) ≤ 0.001.
    """
    mean, deviation = bias.double(), weight.double().abs().clamp(min=1e-12)  # a norm may have switched a channel off
    ratio = mean / deviation
    negative = torch.special.ndtr(-ratio)
    density = torch.exp(-ratio.square() / 2) / math.sqrt(2 * math.pi)
    expected = mean - deviation * density / negative.clamp(min=1e-3)
    return torch.where(negative > 1e-3, expected, -3 * deviation).to(bias.dtype)


def hcl(feat_student: Tensor, feat_teacher: Tensor) -> Tensor:
    """The hierarchical context loss of ReviewKD: a weighted mean of mean squared errors (scalar).

    Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021, arXiv:2104.09044. The maps, both
    [B, C, h, h], are compared as they are and pooled to those of the sizes 4, 2 and 1 that are below h, with weights
    1, 1/2, 1/4 …, whose sum divides the total.
    """
    feat_teacher = feat_teacher.detach()
    sizes = [size for size in (4, 2, 1) if size < feat_student.shape[-1]]
    total, weight, weights = F.mse_loss(feat_student, feat_teacher), 1.0, 1.0
    for size in sizes:
        weight /= 2
        total = total + weight * F.mse_loss(pool(feat_student, size), pool(feat_teacher, size))
        weights += weight
    return total / weights


def class_maps(last_map: Tensor, weight: Tensor) -> Tensor:
    """The class activation maps of CAT-KD: a classifier's weight [K, C] at each place of [B, C, H, W], to [B, K, H, W].

    Guo et al., "Class Attention Transfer Based Knowledge Distillation", CVPR 2023, arXiv:2304.12777. The
    classifier's bias takes no part.
    """
    return F.conv2d(last_map, weight[:, :, None, None])


def catkd(maps_student: Tensor, maps_teacher: Tensor, resolution: int, normalize: bool, binarize: bool) -> Tensor:
    """Class attention transfer: mean squared difference of pooled class maps over all B·K·r² entries (scalar).

    Guo et al., arXiv:2304.12777.

    Args:
        maps_student: `class_maps` of the student, [B, K, H_s, W_s].
        maps_teacher: `class_maps` of the teacher, [B, K, H_t, W_t].
        resolution: r, the height to which both are pooled.
        normalize: whether each pooled map is scaled to length 1 (a length below 1e-12 counts as that).
        binarize: whether the teacher's map first becomes 1 where it exceeds the mean of its absolute values over the
            image, and 0 elsewhere (an ablation of the paper).
    """
    maps_teacher = maps_teacher.detach()
    if binarize:
        maps_teacher = (maps_teacher > maps_teacher.abs().mean(dim=(2, 3), keepdim=True)).to(maps_teacher.dtype)
    student, teacher = (pool(maps, resolution).flatten(2) for maps in (maps_student, maps_teacher))
    if normalize:
        student, teacher = F.normalize(student, dim=2), F.normalize(teacher, dim=2)
    return F.mse_loss(student, teacher)


def _attention(feat: Tensor, p: float) -> Tensor:
    """Σ_c |f_c|^p, flattened and scaled to length 1: [B, C, H, W] to [B, H·W]; the sum's scale does not matter."""
    return F.normalize(feat.abs().pow(p).mean(dim=1).flatten(1))


def _polynomial_kernel(x: Tensor, y: Tensor) -> Tensor:
    """Mean of (x_iᵀy_j)² over all samples and pairs of rows; x is [B, C, N], y is [B, D, N] (scalar).

    Σ_ij (x_iᵀy_j)² is also the inner product of xᵀx and yᵀy, two N x N matrices. The way with the smaller matrices
    is taken, because 2048 channels would make matrices of a gigabyte.
    """
    batch, rows, places = x.shape
    columns = y.shape[1]
    if rows * columns <= places * places:
        return (x @ y.mT).square().mean()
    return ((x.mT @ x) * (y.mT @ y)).sum() / (batch * rows * columns)

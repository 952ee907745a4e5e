"""What losses on logits share: log-probabilities, among all classes or some of them, and the divergence between two.

B samples, K classes, T the temperature. Everything is computed in log space, so that values and gradients are finite
for any finite logits.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def upcast(logits: Tensor) -> Tensor:
    """Half-precision logits in single precision; others as they are."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def mask_of(target: Tensor, classes: int) -> Tensor:
    """Which class is each sample's target: int64 [B] to bool [B, K]."""
    return torch.arange(classes, device=target.device) == target.unsqueeze(1)


def split(logits: Tensor, is_target: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The target's log odds, [B], and the log-probabilities among the non-target classes, [B, K].

    One log-sum-exp over the non-target logits z gives both: z_j − lse is the log softmax over the non-targets for
    j ≠ y, and log(p_y / (1 − p_y)) for j = y. So the [B, K] result holds the log odds in the target's place, which
    is finite where a masked log softmax would hold −inf.
    """
    relative = log_softmax_among(logits, is_target, temperature)
    return at_target(relative, is_target), relative


def log_softmax_among(logits: Tensor, left_out: Tensor, temperature: float) -> Tensor:
    """log softmax(logits / T) over the classes that are not `left_out`, bool [B, K], at least one per sample: [B, K].

    The classes that are left out hold a finite number: their distance to the others' log-sum-exp.
    """
    scaled = upcast(logits) / temperature
    return scaled - scaled.masked_fill(left_out, -torch.inf).logsumexp(dim=1, keepdim=True)


def at_target(values: Tensor, is_target: Tensor) -> Tensor:
    """Each sample's value of its target, [B, K] to [B].

    A masked sum, not a gather: the gradient of gather scatters with atomics on CUDA, this one is deterministic.
    """
    return (values * is_target).sum(dim=1)


def two_way(log_odds: Tensor) -> Tensor:
    """(log p_y, log(1 − p_y)) from the log odds: [B] to [B, 2], exact at both ends."""
    return F.logsigmoid(torch.stack((log_odds, -log_odds), dim=1))


def kl(p_teacher: Tensor, log_teacher: Tensor, log_student: Tensor) -> Tensor:
    """KL(teacher ‖ student) along the last dimension: [B, K] to [B]."""
    return (p_teacher * (log_teacher - log_student)).sum(dim=1)


def kl_among(logits_student: Tensor, logits_teacher: Tensor, left_out: Tensor, temperature: float) -> Tensor:
    """KL between the softmaxes at T over the classes that are not `left_out`, bool [B, K]: [B].

    A sample whose classes are all left out gives 0.
    """
    # If no class remains, none is masked, to keep the logarithms finite; all weights are 0 nevertheless.
    masked = left_out & ~left_out.all(dim=1, keepdim=True)
    log_student = log_softmax_among(logits_student, masked, temperature)
    log_teacher = log_softmax_among(logits_teacher.detach(), masked, temperature)
    return kl(weights_among(log_teacher, left_out), log_teacher, log_student)


def weights_among(log_probabilities: Tensor, left_out: Tensor) -> Tensor:
    """Probabilities from their logarithms, 0 for the classes that are left out: [B, K].

    −inf in the exponent makes such a weight exactly 0, so its product with a finite factor is 0, too.
    """
    return log_probabilities.masked_fill(left_out, -torch.inf).exp()

"""Losses on logits at the levels of a class and of a batch, as pure tensor functions. B samples, K classes.

Jin, Wang and Lin, "Multi-Level Logit Distillation", CVPR 2023, equations 5 to 8. Gradients reach the student's logits
only. Q(z) is the [B, K] matrix of softmax(z / T).
"""

import torch.nn.functional as F
from torch import Tensor


def class_correlation(logits_student: Tensor, logits_teacher: Tensor, temperature: float) -> Tensor:
    """Squared distance of the class-by-class products Q(t)ᵀQ(t) and Q(s)ᵀQ(s), over K (scalar)."""
    student, teacher = _probabilities(logits_student, logits_teacher, temperature)
    return (teacher.T @ teacher - student.T @ student).square().sum() / student.shape[1]


def batch_correlation(logits_student: Tensor, logits_teacher: Tensor, temperature: float) -> Tensor:
    """Squared distance of the sample-by-sample products Q(t)Q(t)ᵀ and Q(s)Q(s)ᵀ, over B (scalar)."""
    student, teacher = _probabilities(logits_student, logits_teacher, temperature)
    return (teacher @ teacher.T - student @ student.T).square().sum() / student.shape[0]


def _probabilities(logits_student: Tensor, logits_teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    return F.softmax(logits_student / temperature, dim=1), F.softmax(logits_teacher.detach() / temperature, dim=1)

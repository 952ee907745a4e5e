"""CRLD: Zhang, Liu, Cai and Ma, "Cross-View Consistency Regularisation for Knowledge Distillation", ACM MM 2024.

arXiv:2412.16493.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from edkd import losses
from edkd.distillers.base import Batch, Distiller, Outcome, logits_of, strong_of
from edkd.models.base import Prediction

Probability = Annotated[float, Field(ge=0, le=1)]


class CRLD(Distiller):
    """ce_weight·(CE_w + CE_S) + within_weight·mean(m_w·(k(t_w,s_w) + k(t_S,s_S))) + cross_weight·mean(m_S·(…)).

    The last bracket is k(t_w, s_S) + k(t_S, s_w); w is the weak view and S the strong one, k(t, s) = T²·KL of a sample,
    m_w = [max softmax(t_w) ≥ weak_threshold] and m_S = [max softmax(t_S) ≥ strong_threshold] at temperature 1. Means
    are over the batch, not over the samples that a mask keeps.

    mask_by: in the published code the mask follows the term ("term"): both terms within a view use the weak view's
    confidence, both terms across views the strong view's. "teacher_view" masks each term by its teacher's view.
    """

    needs_strong_view: ClassVar[bool] = True
    loss_names: ClassVar[tuple[str, ...]] = ("ce", "within", "cross")

    def __init__(
        self,
        *,
        ce_weight: NonNegativeFloat,
        within_weight: NonNegativeFloat,
        cross_weight: NonNegativeFloat,
        temperature: PositiveFloat,
        weak_threshold: Probability,
        strong_threshold: Probability,
        mask_by: Literal["term", "teacher_view"],
    ) -> None:
        super().__init__()
        self.ce_weight = ce_weight
        self.within_weight = within_weight
        self.cross_weight = cross_weight
        self.temperature = temperature
        self.weak_threshold = weak_threshold
        self.strong_threshold = strong_threshold
        self.by_teacher = mask_by == "teacher_view"

    def forward(self, student: Prediction, teacher: Prediction | None, batch: Batch) -> Outcome:
        """Losses: `ce`, `within`, `cross`. Metrics: `train/kept_weak`, `train/kept_strong`, fractions of the batch."""
        strong = strong_of(batch)
        s_w, s_s, t_w, t_s = student.logits, strong.student.logits, logits_of(teacher), strong.teacher.logits
        ce = losses.cross_entropy(s_w, batch.target) + losses.cross_entropy(s_s, batch.target)
        m_w = (t_w.softmax(1).amax(1) >= self.weak_threshold).to(s_w.dtype)
        m_s = (t_s.softmax(1).amax(1) >= self.strong_threshold).to(s_w.dtype)
        ww, ss, ws, sw = (
            losses.kd_per_sample(s, t, self.temperature) for t, s in ((t_w, s_w), (t_s, s_s), (t_w, s_s), (t_s, s_w))
        )
        within = m_w * ww + (m_s if self.by_teacher else m_w) * ss
        cross = (m_w if self.by_teacher else m_s) * ws + m_s * sw
        return Outcome(
            {
                "ce": self.ce_weight * ce,
                "within": self.within_weight * within.mean(),
                "cross": self.cross_weight * cross.mean(),
            },
            {"train/kept_weak": m_w.mean(), "train/kept_strong": m_s.mean()},
        )

"""WTTM: Zheng and Yang, "Knowledge Distillation Based on Transformed Teacher Matching", ICLR 2024, arXiv:2402.11148."""

from torch import Tensor

from edkd import losses
from edkd.distillers.ttm import TTM


class WTTM(TTM):
    """ce_weight·CE + kd_weight·U·KL(g ‖ p(s)), TTM whose samples are weighed by U, the sum of p(t)^exponent.

    See `losses.wttm`.
    """

    def match(self, logits_student: Tensor, logits_teacher: Tensor) -> Tensor:
        """The distillation loss of logits [B, K], without its weight."""
        return losses.wttm(logits_student, logits_teacher, self.exponent)

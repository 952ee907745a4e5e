"""Correlation congruence: Peng et al., ICCV 2019, arXiv:1904.01802, as the CRD benchmark ran it."""

from typing import ClassVar

from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from edkd import losses
from edkd.distillers.base import Batch, Distiller, Outcome, Spec
from edkd.models.base import Prediction


class Embedding(nn.Module):
    """A linear layer: [B, width] to [B, feat_dim]."""

    def __init__(self, width: int, feat_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, feat_dim)

    def forward(self, pooled_feat: Tensor) -> Tensor:
        """Embed."""
        embedded: Tensor = self.linear(pooled_feat)
        return embedded


class CC(Distiller):
    """ce_weight·CE + feat_weight·mean over neighbours in the batch of Σ_c E_ic·E_(i+1)c.

    E_i is the absolute difference of the two networks' embeddings of `pooled_feat`, `feat_dim` wide, both trained. The
    loss depends on the order of the batch. The paper compares kernels of all pairs of samples instead.
    """

    needs_feats: ClassVar[bool] = True

    def __init__(self, *, ce_weight: NonNegativeFloat, feat_weight: NonNegativeFloat, feat_dim: PositiveInt) -> None:
        super().__init__()
        self.ce_weight = ce_weight
        self.feat_weight = feat_weight
        self.feat_dim = feat_dim

    def setup(self, spec: Spec) -> None:
        """Make the embeddings."""
        assert spec.teacher is not None
        self.embed_s = Embedding(spec.student.pooled_feat, self.feat_dim)
        self.embed_t = Embedding(spec.teacher.pooled_feat, self.feat_dim)

    def forward(self, student: Prediction, teacher: Prediction | None, batch: Batch) -> Outcome:
        """Losses: `ce`, `kd`."""
        assert student.pooled_feat is not None and teacher is not None and teacher.pooled_feat is not None
        ce = losses.cross_entropy(student.logits, batch.target)
        cc = losses.cc(self.embed_s(student.pooled_feat), self.embed_t(teacher.pooled_feat.detach()))
        return Outcome({"ce": self.ce_weight * ce, "kd": self.feat_weight * cc}, {})

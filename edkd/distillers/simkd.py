"""The reused teacher classifier: Chen et al., CVPR 2022, arXiv:2203.14001."""

from typing import ClassVar

import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor, nn

from edkd import losses
from edkd.distillers.base import Batch, Distiller, Outcome, Spec
from edkd.errors import EdkdError
from edkd.models.base import Prediction


class SimKD(Distiller):
    """feat_weight·MSE(projected last map of the student, last map of the teacher), without a cross-entropy.

    The larger of the two last maps is pooled to the smaller's size. The projector has three convolutions (1x1, 3x3,
    1x1, without biases), each with batch norm and ReLU, C_t / factor wide inside. Evaluation uses the logits of
    the teacher's classifier, kept here as it is, on the projected map's mean over the image; the student's own
    classifier is not trained.

    The last map is the one whose mean is `pooled_feat`. The authors take the last stage's map, which for mobilenetv2
    and shufflenetv2 comes before a last 1x1 convolution.
    """

    needs_feats: ClassVar[bool] = True
    loss_names: ClassVar[tuple[str, ...]] = ("kd",)
    classifier_weight: Tensor  # [K, C_t], the teacher's
    classifier_bias: Tensor  # [K]

    def __init__(self, *, feat_weight: NonNegativeFloat, factor: PositiveInt) -> None:
        super().__init__()
        self.feat_weight = feat_weight
        self.factor = factor

    def setup(self, spec: Spec) -> None:
        """Make the projector and keep the teacher's classifier."""
        assert spec.teacher is not None and spec.classifier is not None
        (width, height, _), (goal, goal_height, _) = spec.student.last_map, spec.teacher.last_map
        inner = goal // self.factor
        if inner < 1:
            raise EdkdError(
                f"distiller.factor is {self.factor}, but the teacher's last map, {spec.teacher.last_map}, has {goal} "
                f"channels: factor must be {goal} or less (see conf/distiller/simkd.yaml)"
            )
        self.size = min(height, goal_height)
        if height % self.size or goal_height % self.size:
            raise EdkdError(
                f"SimKD pools the larger of the two last maps by a whole stride, and the student's is {height} high, "
                f"the teacher's {goal_height}: it works for images of which one height divides the other, such as 32x32"
            )
        self.transfer = nn.Sequential(
            nn.Conv2d(width, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, inner, 3, padding=1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, goal, 1, bias=False),
            nn.BatchNorm2d(goal),
            nn.ReLU(),
        )
        self.register_buffer("classifier_weight", spec.classifier.weight.clone())
        self.register_buffer("classifier_bias", spec.classifier.bias.clone())

    def forward(self, student: Prediction, teacher: Prediction | None, batch: Batch) -> Outcome:
        """Losses: `kd`."""
        assert teacher is not None and teacher.last_map is not None
        projected = self._project(student)
        hint = losses.hint(projected, losses.pool(teacher.last_map, self.size))
        return Outcome({"kd": self.feat_weight * hint}, {}, self._classify(projected.detach()))

    def predict(self, student: Prediction) -> Prediction:
        """The student's prediction with the logits of the teacher's classifier."""
        return student._replace(logits=self._classify(self._project(student)))

    def _project(self, student: Prediction) -> Tensor:
        """The projected last map, [B, C_t, size, size]."""
        assert student.last_map is not None
        projected: Tensor = self.transfer(losses.pool(student.last_map, self.size))
        return projected

    def _classify(self, projected: Tensor) -> Tensor:
        """The logits of the teacher's classifier, [B, K], on the mean of the projected map."""
        return F.linear(projected.mean(dim=(2, 3)), self.classifier_weight, self.classifier_bias)

"""MLKD: Jin, Wang and Lin, "Multi-Level Logit Distillation", CVPR 2023."""

from typing import ClassVar, Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from edkd import losses
from edkd.distillers.base import Batch, Distiller, Outcome, logits_of, strong_of
from edkd.models.base import Prediction

_FURTHER = (3.0, 5.0, 2.0, 6.0)
_WEAK_ONLY = (2.0, 6.0)
Masking = Literal["published", "per_sample"]


class MLKDOneView(Distiller):
    """ce_weight·CE + kd_weight·(a·Σ kd_T + b·Σ class_T + a·Σ batch_T), sums over the temperatures T, 3, 5, 2 and 6.

    kd_T is T²·mean KL; a is the fraction of samples whose confidence max softmax(t) is at most the median of the
    batch, b the fraction of classes whose summed softmax(t) is at most the median, t the teacher's logits. In the
    published code the masks multiply values that are averaged already, so only the fractions act. This is the default.
    `masking="per_sample"` averages kd_T over the samples that the mask keeps, weighed by their fraction.

    standardise: the kd terms use standardised logits, as in logit standardisation's version of MLKD (Sun et al., CVPR
    2024, arXiv:2403.01427).
    """

    loss_names: ClassVar[tuple[str, ...]] = ("ce", "kd", "class", "batch")

    def __init__(
        self,
        *,
        ce_weight: NonNegativeFloat,
        kd_weight: NonNegativeFloat,
        temperature: PositiveFloat,
        masking: Masking,
        standardise: bool,
    ) -> None:
        super().__init__()
        self.ce_weight = ce_weight
        self.kd_weight = kd_weight
        self.temperatures = (temperature, *_FURTHER)
        self.masking = masking
        self.standardise = standardise

    def forward(self, student: Prediction, teacher: Prediction | None, batch: Batch) -> Outcome:
        """Losses: `ce`, `kd`, `class`, `batch`."""
        ce = losses.cross_entropy(student.logits, batch.target)
        logits = student.logits, logits_of(teacher)
        return self.outcome(ce, self.terms(self.per_sample(*logits), *logits))

    def per_sample(self, student: Tensor, teacher: Tensor) -> Tensor:
        """T²·KL of each sample at each temperature, [temperatures, B]."""
        if self.standardise:
            student, teacher = losses.standardise(student), losses.standardise(teacher)
        return torch.stack([losses.kd_per_sample(student, teacher, each) for each in self.temperatures])

    def terms(self, kd: Tensor, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        """The sums over the temperatures `kd`, of `kd` [temperatures, B], `class` and `batch`, weighed by the masks."""
        probabilities = teacher.softmax(1)
        mask = _at_most_median(probabilities.amax(1))
        samples, classes = mask.mean(), _at_most_median(probabilities.sum(0)).mean()
        by_class = [losses.class_correlation(student, teacher, each) for each in self.temperatures]
        by_batch = [losses.batch_correlation(student, teacher, each) for each in self.temperatures]
        return {
            "kd": (mask * kd).mean(1).sum() if self.masking == "per_sample" else samples * kd.mean(1).sum(),
            "class": classes * torch.stack(by_class).sum(),
            "batch": samples * torch.stack(by_batch).sum(),
        }

    def outcome(self, ce: Tensor, terms: dict[str, Tensor]) -> Outcome:
        """The cross-entropy and the terms with their weights."""
        return Outcome({"ce": self.ce_weight * ce, **{name: self.kd_weight * term for name, term in terms.items()}}, {})


class MLKD(MLKDOneView):
    """ce_weight·(CE_w + CE_S) + kd_weight·(the one-view bracket on the weak view w + Σ kd_T on the strong view S).

    In the published code the strong sum takes the weak view at the temperatures 2 and 6, and the class and batch terms
    of the strong view reach no loss; this is the default. `strong_temperatures="all"` uses the strong view at all five.
    """

    needs_strong_view: ClassVar[bool] = True

    def __init__(
        self,
        *,
        ce_weight: NonNegativeFloat,
        kd_weight: NonNegativeFloat,
        temperature: PositiveFloat,
        masking: Masking,
        strong_temperatures: Literal["published", "all"],
        standardise: bool,
    ) -> None:
        super().__init__(
            ce_weight=ce_weight,
            kd_weight=kd_weight,
            temperature=temperature,
            masking=masking,
            standardise=standardise,
        )
        self.weak_only = _WEAK_ONLY if strong_temperatures == "published" else ()

    def forward(self, student: Prediction, teacher: Prediction | None, batch: Batch) -> Outcome:
        """Losses: `ce`, `kd`, `class`, `batch`."""
        weak, taught, strong = student.logits, logits_of(teacher), strong_of(batch)
        ce = losses.cross_entropy(weak, batch.target) + losses.cross_entropy(strong.student.logits, batch.target)
        on_weak, on_strong = self.per_sample(weak, taught), self.per_sample(*(each.logits for each in strong))
        further = [
            (on_weak if temperature in self.weak_only and i else on_strong)[i].mean()
            for i, temperature in enumerate(self.temperatures)
        ]
        terms = self.terms(on_weak, weak, taught)
        return self.outcome(ce, terms | {"kd": terms["kd"] + torch.stack(further).sum()})


def _at_most_median(values: Tensor) -> Tensor:
    """1 where a value is at most the (lower) median of all, else 0."""
    return (values <= values.median()).to(values.dtype)

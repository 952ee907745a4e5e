"""What half precision changes in what a teacher says, and in the students that learn from it."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from edkd.config import Settings
from edkd.data.batches import DeviceData
from edkd.data.views import epoch_views, n_views
from edkd.inputs import Inputs, device_data, new_progress, teacher_inputs
from edkd.models.base import Prediction
from edkd.teaching import TEACHER_BATCH, OnlineTeacher, Precision, TeacherSource
from edkd.trainer import Splits, fit

TEMPERATURE = 4.0


class Difference(NamedTuple):
    """How far logits [N, K] are from those of the same teacher computed and stored in fp32."""

    logit_max: float
    logit_mean: float
    softmax_max: float  # of class probabilities at TEMPERATURE
    kl: float  # mean over images of KL(fp32 || other) at TEMPERATURE, in nats
    same_top1: float  # percent of images


class Rounded:
    """A teacher whose logits went through a narrower type, as storing them does."""

    def __init__(self, teacher: OnlineTeacher, dtype: torch.dtype) -> None:
        self.teacher, self.dtype = teacher, dtype

    def begin_epoch(self, views: Tensor) -> None:
        """Nothing to prepare."""

    def __call__(self, images: Tensor, index: Tensor, view: Tensor) -> Prediction:
        """See `teaching.TeacherSource`."""
        return Prediction(self.teacher(images, index, view).logits.to(self.dtype).float())


def report(given: Settings, seeds: Sequence[int]) -> Iterator[str]:
    """Lines: differences over the training set as the first epoch of seed 0 sees it; then, for `seeds`, students.

    The students of `given` (its method, schedule and student) compute in fp32 throughout; only their teacher changes.
    """
    given = replace(given, engine=replace(given.engine, precision="fp32"))
    inputs = teacher_inputs(given)
    splits = device_data(inputs.arrays, given, inputs.device)
    ways = _ways(inputs)
    logits = {name: _logits(teacher, splits.train, inputs.device) for name, teacher in ways.items()}
    exact = logits["fp32"]
    yield (
        f"{given.teacher.name} of {given.dataset.key}: {len(exact):,} training images in the views of epoch 1 of "
        f"seed 0; fp32 logits from {exact.min():.2f} to {exact.max():.2f}"
    )
    yield f"| teacher | max Δ logit | mean Δ logit | max Δ softmax (T={TEMPERATURE:g}) | mean KL (nats) | same top-1 |"
    yield "|---|--:|--:|--:|--:|--:|"
    for name in list(ways)[1:]:
        far = difference(exact, logits[name])
        yield (
            f"| {name} | {far.logit_max:.2g} | {far.logit_mean:.2g} | {far.softmax_max:.2g} | {far.kl:.2g} | "
            f"{far.same_top1:.2f} % |"
        )
    if seeds:
        yield from _students(given, inputs, splits, ways, seeds)


def difference(exact: Tensor, other: Tensor) -> Difference:
    """Compare logits, both float32 [N, K]."""
    first, second = (F.log_softmax(each.double() / TEMPERATURE, dim=1) for each in (exact, other))
    gap = (exact.double() - other.double()).abs()
    return Difference(
        logit_max=gap.max().item(),
        logit_mean=gap.mean().item(),
        softmax_max=(first.exp() - second.exp()).abs().max().item(),
        kl=F.kl_div(second, first, reduction="batchmean", log_target=True).item(),
        same_top1=100 * (exact.argmax(1) == other.argmax(1)).double().mean().item(),
    )


def _ways(inputs: Inputs) -> dict[str, TeacherSource]:
    assert inputs.teacher is not None
    fp32, bf16 = (
        OnlineTeacher(inputs.teacher, want_feats=False, precision=Precision(name, inputs.device))
        for name in ("fp32", "bf16")
    )
    return {
        "fp32": fp32,
        "computed in fp32, stored in fp16": Rounded(fp32, torch.float16),
        "computed in fp32, stored in bf16": Rounded(fp32, torch.bfloat16),
        "computed and stored in bf16": bf16,
    }


def _logits(teacher: TeacherSource, data: DeviceData, device: torch.device) -> Tensor:
    views = torch.from_numpy(epoch_views(0, 1, len(data), n_views(data.padding, data.flip)))
    parts = []
    for index in torch.arange(len(data)).split(TEACHER_BATCH):
        where, view = index.to(device), views[index].to(device)
        parts.append(teacher(data.augmented(where, view), where, view).logits.cpu())
    return torch.cat(parts)


def _students(
    given: Settings, inputs: Inputs, splits: Splits, ways: dict[str, TeacherSource], seeds: Sequence[int]
) -> Iterator[str]:
    yield (
        f"{given.method} students {given.student.name}, {given.schedule.epochs} epochs, all else in fp32, "
        f"seeds {', '.join(map(str, seeds))}: top-1 after the last epoch"
    )
    yield "| teacher | top-1 (%) | minus fp32, by seed | n |"
    yield "|---|--:|--:|--:|"
    base: list[float] = []
    for name, teacher in ways.items():
        found = [_train(replace(given, seed=seed), inputs, splits, teacher) for seed in seeds]
        base = base or found
        paired = _spread([one - other for one, other in zip(found, base, strict=True)]) if name != "fp32" else ""
        yield f"| {name} | {_spread(found)} | {paired} | {len(seeds)} |"


def _train(given: Settings, inputs: Inputs, splits: Splits, teacher: TeacherSource) -> float:
    progress = new_progress(given, inputs.arrays.num_classes, inputs.device)
    top1: list[float] = []

    def on_epoch(record: dict[str, Any], improved: bool) -> None:
        top1.append(record["metrics"]["test/top1"])

    fit(
        progress,
        teacher,
        splits,
        given.schedule,
        seed=given.seed,
        precision=Precision("fp32", inputs.device),
        capture=given.engine.capture,
        on_epoch=on_epoch,
    )
    return top1[-1]


def _spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation."""
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{deviation}"

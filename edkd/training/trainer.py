"""Training one student: fit, train_epoch, evaluate. Knows no method by name, and nothing of files, Hydra or MLflow.

Everything that an epoch draws is a pure function of (seed, epoch), so an epoch can be repeated or resumed exactly; what
changes between epochs (learning rate, epoch number) reaches the step as a tensor, and metrics stay on the device until
the epoch is over.
"""

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edkd.config.schema import Schedule
from edkd.data.base import EvaluationData, TrainData
from edkd.errors import EdkdError
from edkd.teachers.source import Precision, TeacherSource
from edkd.training.state import TrainState
from edkd.training.step import Meter, Step

EVALUATION_BATCH = {"cpu": 100, "cuda": 1000}  # images; on a CPU larger batches are slower and take gigabytes


def _stream(seed: int, epoch: int) -> int:
    """A torch seed for what networks and methods draw by themselves in an epoch; epoch 0: initial weights."""
    return seed * 1_000_003 + epoch


@contextlib.contextmanager
def seeded(seed: int, epoch: int, device: torch.device) -> Any:
    """Torch's random numbers inside depend on (seed, epoch) alone; the state outside is left as it was."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(_stream(seed, epoch))
        yield


def make_step(
    state: TrainState,
    teacher: TeacherSource | None,
    data: TrainData,
    schedule: Schedule,
    *,
    capture: bool,
) -> Step:
    """The training step of a run, which serves all its epochs."""
    return Step(
        state.trainable,
        state.optimizer,
        teacher,
        data,
        batch_size=schedule.batch_size,
        capture=capture,
    )


def train_epoch(
    state: TrainState,
    step: Step,
    schedule: Schedule,
    *,
    seed: int,
    on_step: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """Train epoch `state.epoch + 1` and return its metrics (`train/…`, `lr`).

    What the epoch draws depends on (seed, epoch) only.
    `on_step(steps done, steps)` is called after each step. Raises EdkdError if a loss is not finite.
    """
    epoch = state.epoch + 1
    planned = step.data.begin(seed, epoch, schedule.batch_size)
    if step.teacher is not None:
        step.teacher.begin_epoch(planned.views)
    step.begin(epoch)
    for group in state.optimizer.param_groups:
        group["lr"].fill_(schedule.rate(epoch))
    state.trainable.train()
    steps = len(planned.counts)
    with seeded(seed, epoch, step.device):
        for number, count in enumerate(planned.counts, 1):
            step(count)
            if on_step is not None:
                on_step(number, steps)
    metrics = step.meter.read(len(step.data))
    if not math.isfinite(metrics["train/loss"]):
        # Once the weights are spoilt, every loss is: the first one tells. None, if only their sum is too large.
        first, guilty = step.first_unsound(steps)
        where = f"epoch {epoch}, step {first}" if guilty else f"epoch {epoch}"
        named = ", ".join(f"train/loss_{name}" for name in guilty) or "train/loss"
        raise EdkdError(
            f"{where}: {named} is not finite: training diverged; "
            f"lower schedule.lr (now {schedule.lr}) or look at the method's weights"
        )
    return {**metrics, "lr": schedule.rate(epoch)}


def evaluate(network: nn.Module, data: EvaluationData, precision: Precision) -> dict[str, float]:
    """Accuracies and cross-entropy of a network over a whole split, see `measure`."""
    network.eval()

    def predict(images: Tensor) -> Tensor:
        with precision.autocast():
            logits: Tensor = network(images, want_feats=False).logits
        return logits

    return measure(predict, data, precision.device)


@torch.inference_mode()
def all_logits(network: nn.Module, data: EvaluationData, precision: Precision) -> Tensor:
    """A network's logits of a whole split, float32 [N, K]."""
    network.eval()
    with precision.autocast():
        batches = data.batches(EVALUATION_BATCH[precision.device.type])
        return torch.cat([network(images, want_feats=False).logits.float() for images, _ in batches])


@torch.inference_mode()
def measure(
    predict: Callable[[Tensor], Tensor], data: EvaluationData, device: torch.device, taught: Tensor | None = None
) -> dict[str, float]:
    """Accuracies in percent and cross-entropy of predicted logits over a whole split: {"loss", "top1", "top5"}.

    With fewer than five classes, top5 counts all of them. With the teacher's logits of the split, `taught` [N, K], also
    how near the student is to its teacher: "agreement", the percentage of images to which both give the same class, and
    "kl_teacher", the mean KL(softmax teacher ‖ softmax student) in nats; and its calibration, "ece", see `Calibration`.
    """
    meter, done = Meter(device), 0
    calibration = Calibration(device)
    for images, target in data.batches(EVALUATION_BATCH[device.type]):
        logits = predict(images).float()
        top = logits.topk(min(5, logits.shape[1]), dim=1).indices == target[:, None]
        means, hits = {"loss": F.cross_entropy(logits, target)}, {"top1": top[:, 0], "top5": top.any(1)}
        if taught is not None:
            teacher = taught[done : done + len(target)]
            log_student, log_teacher = logits.log_softmax(1), teacher.log_softmax(1)
            means["kl_teacher"] = F.kl_div(log_student, log_teacher, log_target=True, reduction="batchmean")
            hits["agreement"] = logits.argmax(1) == teacher.argmax(1)
            calibration.add(log_student.amax(1).exp(), top[:, 0])
        meter.add(len(target), means, hits)
        done += len(target)
    return {**meter.read(len(data)), **({} if taught is None else {"ece": calibration.read()})}


class Calibration:
    """Expected calibration error: the mean distance of confidence and accuracy over bins of confidence, in percent.

    Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks", ICML 2017, arXiv:1706.04599, equation
    3, with 15 bins of equal width; confidence is the largest softmax output.
    """

    BINS = 15

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(self.BINS, dtype=torch.float64, device=device)
        self.images = 0

    def add(self, confidence: Tensor, hit: Tensor) -> None:
        """Add images by their confidence in [0, 1] (float32 [B]) and whether they were classified right (bool [B])."""
        bins = (confidence * self.BINS).ceil().long().sub(1).clamp(0, self.BINS - 1)
        self.sums += F.one_hot(bins, self.BINS).double().T @ (confidence.double() - hit.double())  # in a fixed order
        self.images += len(hit)

    def read(self) -> float:
        """The error of all images so far."""
        return 100 * self.sums.abs().sum().item() / self.images


@dataclass(frozen=True)
class Splits:
    """The data of a run on its device. The validation part, where there is one, chooses the best epoch."""

    train: TrainData
    validation: EvaluationData | None
    test: EvaluationData
    taught: Tensor | None = None  # float32 [N, K], the teacher's logits of the test split


def fit(
    state: TrainState,
    teacher: TeacherSource | None,
    data: Splits,
    schedule: Schedule,
    *,
    seed: int,
    capture: bool,
    on_epoch: Callable[[dict[str, Any], bool], None],
    on_step: Callable[[int, int], None] | None = None,
) -> None:
    """Train from `state.epoch` to the end of the schedule. `capture`: see `Step`.

    After each epoch `on_epoch(record, improved)` gets the journal's epoch record and whether this is the best epoch so
    far (by validation accuracy where a part is held out, by test accuracy otherwise; the first of equals).
    """
    step = make_step(state, teacher, data.train, schedule, capture=capture)
    device = state.trainable.precision.device
    while state.epoch < schedule.epochs:
        began = time.monotonic()
        metrics = train_epoch(state, step, schedule, seed=seed, on_step=on_step)
        trained = time.monotonic()
        state.trainable.eval()
        test = measure(state.trainable.predict, data.test, device, data.taught)
        if not math.isfinite(test["loss"]):
            raise EdkdError(f"epoch {state.epoch + 1}: test/loss is {test['loss']}: training diverged")
        metrics |= {f"test/{name}": value for name, value in test.items()}
        chooser, by = test, "test"
        if data.validation is not None:
            chooser, by = measure(state.trainable.predict, data.validation, device), "validation"
            metrics |= {f"val/{name}": value for name, value in chooser.items()}
        evaluated = time.monotonic()
        state.epoch += 1
        improved = state.best is None or chooser["top1"] > state.best["chosen_at"]
        if improved:
            found = {name: test[name] for name in ("loss", "top1", "top5")}
            state.best = {"epoch": state.epoch, **found, "by": by, "chosen_at": chooser["top1"]}
        record = {
            "event": "epoch",
            "epoch": state.epoch,
            "metrics": metrics,
            "seconds": {"train": trained - began, "test": evaluated - trained},
            "images_per_second": len(data.train) / (trained - began),
        }
        if by_class := step.class_meter.read():
            record["by_class"] = by_class
        on_epoch(record, improved)

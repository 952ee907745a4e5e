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
from torch import nn

from edkd.config.schema import Schedule
from edkd.data.resident import DeviceData
from edkd.data.views import epoch_order, epoch_views, n_views
from edkd.distillers.base import Distiller
from edkd.errors import EdkdError
from edkd.teachers.source import Precision, TeacherSource
from edkd.training.step import Meter, Step

EVALUATION_BATCH = {"cpu": 100, "cuda": 1000}  # images; on a CPU larger batches are slower and take gigabytes


@dataclass
class Progress:
    """What `fit` changes: all that a checkpoint must hold."""

    student: nn.Module
    distiller: Distiller
    optimizer: torch.optim.Optimizer
    epoch: int = 0  # epochs done
    best: dict[str, Any] | None = None

    def state(self) -> dict[str, Any]:
        """Tensors and plain values, loadable with `weights_only=True`."""
        return {
            "epoch": self.epoch,
            "best": self.best,
            "student": self.student.state_dict(),
            "distiller": self.distiller.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        self.student.load_state_dict(state["student"])
        self.distiller.load_state_dict(state["distiller"])
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:
            # The saved rate was loaded on the CPU; a saved buffer may have another memory layout than its parameter
            # has now, and fused SGD walks both in the order in which they lie in memory.
            group["lr"] = group["lr"].to(group["params"][0].device)
            for parameter in group["params"]:
                memory = self.optimizer.state.get(parameter, {})  # none without momentum
                if memory.get("momentum_buffer") is not None:
                    memory["momentum_buffer"] = torch.empty_like(parameter).copy_(memory["momentum_buffer"])
        self.epoch = state["epoch"]
        self.best = state["best"]


def make_optimizer(student: nn.Module, distiller: Distiller, schedule: Schedule, device: torch.device) -> Any:
    """SGD over the student's and the distiller's parameters, with the learning rate as a tensor on the device."""
    parameters = [*student.parameters(), *distiller.parameters()]
    return torch.optim.SGD(
        parameters,
        lr=torch.tensor(schedule.lr, dtype=torch.float32, device=device),
        momentum=schedule.momentum,
        weight_decay=schedule.weight_decay,
        fused=True,
    )


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
    progress: Progress,
    teacher: TeacherSource | None,
    data: DeviceData,
    schedule: Schedule,
    *,
    precision: Precision,
    capture: bool,
) -> Step:
    """The training step of a run, which serves all its epochs."""
    return Step(
        progress.student,
        progress.distiller,
        progress.optimizer,
        teacher,
        data,
        batch_size=schedule.batch_size,
        precision=precision,
        capture=capture,
    )


def train_epoch(
    progress: Progress,
    step: Step,
    schedule: Schedule,
    *,
    seed: int,
    on_step: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """Train epoch `progress.epoch + 1` and return its metrics (`train/…`, `lr`).

    The epoch's permutation and every image's view depend on (seed, epoch) only; the last, smaller batch is kept.
    `on_step(steps done, steps)` is called after each step. Raises EdkdError if a loss is not finite.
    """
    epoch, data, device = progress.epoch + 1, step.data, step.precision.device
    count = len(data)
    order = torch.from_numpy(epoch_order(seed, epoch, count)).to(device)
    by_image = torch.from_numpy(epoch_views(seed, epoch, count, n_views(data.padding, data.flip))).to(device)
    if step.teacher is not None:
        step.teacher.begin_epoch(by_image)
    step.begin(order, by_image[order], epoch)
    for group in progress.optimizer.param_groups:
        group["lr"].fill_(schedule.rate(epoch))
    progress.student.train()
    progress.distiller.train()
    steps = math.ceil(count / schedule.batch_size)
    with seeded(seed, epoch, device):
        for number in range(steps):
            step(min(schedule.batch_size, count - number * schedule.batch_size))
            if on_step is not None:
                on_step(number + 1, steps)
    metrics = step.meter.read(count)
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


@torch.inference_mode()
def evaluate(network: nn.Module, data: DeviceData, precision: Precision) -> dict[str, float]:
    """Accuracies in percent and cross-entropy of a network over a whole split: {"loss", "top1", "top5"}.

    With fewer than five classes, top5 counts all of them.
    """
    network.eval()
    meter = Meter(precision.device)
    size = EVALUATION_BATCH[precision.device.type]
    for start in range(0, len(data), size):
        index = torch.arange(start, min(start + size, len(data)), device=precision.device)
        target = data.targets(index)
        with precision.autocast():
            logits = network(data.plain(index), want_feats=False).logits.float()
        top = logits.topk(min(5, logits.shape[1]), dim=1).indices == target[:, None]
        meter.add(len(index), {"loss": F.cross_entropy(logits, target)}, {"top1": top[:, 0], "top5": top.any(1)})
    return meter.read(len(data))


@dataclass(frozen=True)
class Splits:
    """The data of a run on its device. The validation part, where there is one, chooses the best epoch."""

    train: DeviceData
    validation: DeviceData | None
    test: DeviceData


def fit(
    progress: Progress,
    teacher: TeacherSource | None,
    data: Splits,
    schedule: Schedule,
    *,
    seed: int,
    precision: Precision,
    capture: bool,
    on_epoch: Callable[[dict[str, Any], bool], None],
    on_step: Callable[[int, int], None] | None = None,
) -> None:
    """Train from `progress.epoch` to the end of the schedule. `capture`: see `Step`.

    After each epoch `on_epoch(record, improved)` gets the journal's epoch record and whether this is the best epoch so
    far (by validation accuracy where a part is held out, by test accuracy otherwise; the first of equals).
    """
    step = make_step(progress, teacher, data.train, schedule, precision=precision, capture=capture)
    while progress.epoch < schedule.epochs:
        began = time.monotonic()
        metrics = train_epoch(progress, step, schedule, seed=seed, on_step=on_step)
        trained = time.monotonic()
        test = evaluate(progress.student, data.test, precision)
        if not math.isfinite(test["loss"]):
            raise EdkdError(f"epoch {progress.epoch + 1}: test/loss is {test['loss']}: training diverged")
        metrics |= {f"test/{name}": value for name, value in test.items()}
        chooser, by = test, "test"
        if data.validation is not None:
            chooser, by = evaluate(progress.student, data.validation, precision), "validation"
            metrics |= {f"val/{name}": value for name, value in chooser.items()}
        evaluated = time.monotonic()
        progress.epoch += 1
        improved = progress.best is None or chooser["top1"] > progress.best["chosen_at"]
        if improved:
            progress.best = {"epoch": progress.epoch, **test, "by": by, "chosen_at": chooser["top1"]}
        record = {
            "event": "epoch",
            "epoch": progress.epoch,
            "metrics": metrics,
            "seconds": {"train": trained - began, "test": evaluated - trained},
            "images_per_second": len(data.train) / (trained - began),
        }
        on_epoch(record, improved)

"""Training one student: its state, train_epoch, fit. Knows no method by name, and nothing of files, Hydra or MLflow.

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
from torch import Tensor, nn

from edkd.config.schema import Schedule
from edkd.data.base import EvaluationData, TrainData
from edkd.distillers.base import Distiller
from edkd.errors import EdkdError
from edkd.teachers.source import TeacherSource
from edkd.training import distributed
from edkd.training.evaluation import measure
from edkd.training.step import Step, Trainable

_BETWEEN_RANKS = 1 << 53  # larger than any number that seed and epoch give


@contextlib.contextmanager
def seeded(seed: int, epoch: int, device: torch.device, rank: int = 0) -> Any:
    """Torch's random numbers inside depend on (seed, epoch, rank) alone; the state outside is left as it was.

    Networks and methods draw from these numbers in an epoch; epoch 0 is for the initial weights.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed * 1_000_003 + epoch + rank * _BETWEEN_RANKS)
        yield


Within = dict[str, Any]
"""The progress of an epoch: its "steps" and "seconds", and each process's metrics and random state ("processes")."""
OnStep = Callable[[int, int, Callable[[], Within]], None]
"""Called after a step with the number of steps done, that of the epoch, and a function that returns its progress."""


@dataclass
class TrainState:
    """All that a checkpoint must hold."""

    trainable: Trainable
    optimizer: torch.optim.Optimizer
    epoch: int = 0  # epochs done
    best: dict[str, Any] | None = None
    within: Within | None = None  # progress of the next epoch, if a checkpoint was made during it

    @property
    def student(self) -> nn.Module:
        """The network that is trained."""
        return self.trainable.student

    @property
    def distiller(self) -> Distiller:
        """The method that trains it."""
        return self.trainable.distiller

    def state(self) -> dict[str, Any]:
        """Tensors and plain values, loadable with `weights_only=True`."""
        return {
            "epoch": self.epoch,
            "best": self.best,
            **({} if self.within is None else {"within": self.within}),
            "model": self.trainable.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        self.trainable.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:
            # The saved rate was loaded on the CPU; a saved buffer may have another memory layout than its parameter
            # has now, and fused SGD walks both in the order in which they lie in memory.
            group["lr"] = group["lr"].to(group["params"][0].device)
            for parameter in group["params"]:
                memory = self.optimizer.state.get(parameter, {})  # none without momentum
                for name, held in memory.items():
                    if isinstance(held, Tensor) and held.shape == parameter.shape:
                        memory[name] = torch.empty_like(parameter).copy_(held)
        self.epoch = state["epoch"]
        self.best, self.within = state["best"], state.get("within")


def train_epoch(
    state: TrainState,
    step: Step,
    schedule: Schedule,
    *,
    seed: int,
    on_step: OnStep | None = None,
) -> dict[str, float]:
    """Train epoch `state.epoch + 1`, or the rest of it (`state.within`), and return its metrics (`train/…`, `lr`).

    What the epoch draws depends on (seed, epoch) only. Raises EdkdError if a loss is not finite.
    """
    epoch, rank, before, state.within = state.epoch + 1, distributed.rank(), state.within, None
    done, began = (0, time.monotonic()) if before is None else (before["steps"], time.monotonic() - before["seconds"])
    planned = step.data.begin(seed, epoch, schedule.batch_size, rank, distributed.size(), done)
    if step.teacher is not None:
        step.teacher.begin_epoch(planned.views)
    step.begin(epoch)
    for group in state.optimizer.param_groups:
        group["lr"].fill_(schedule.rate(epoch))
    state.trainable.train()
    steps = len(planned.counts)

    def within() -> Within:
        own = {"measured": step.state(), "random": _random_state(step.device)}
        return {"steps": done, "seconds": time.monotonic() - began, "processes": distributed.gathered(own)}

    with seeded(seed, epoch, step.device, rank):
        if before is not None:
            step.restore(before["processes"][rank]["measured"])
            _set_random_state(before["processes"][rank]["random"], step.device)
        for count, whole in zip(planned.counts[done:], planned.whole[done:], strict=True):
            step(count, whole)
            done += 1
            if on_step is not None:
                on_step(done, steps, within)
    step.skipped = distributed.total(step.data.skipped, step.device)
    metrics = step.meter.read(len(step.data) - step.skipped)
    if not math.isfinite(metrics["train/loss"]):
        # Once a loss is not finite, no later one is: name the first. There is none if only the sum overflows.
        first, guilty = step.first_unsound(steps)
        where = f"epoch {epoch}, step {first}" if guilty else f"epoch {epoch}"
        named = ", ".join(f"train/loss_{name}" for name in guilty) or "train/loss"
        raise EdkdError(
            f"{where}: {named} {'are' if len(guilty) > 1 else 'is'} not finite: training diverged; "
            f"lower schedule.lr (now {schedule.lr}) or look at the method's weights"
        )
    return {**metrics, "lr": schedule.rate(epoch)}


def _random_state(device: torch.device) -> list[Tensor]:
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _set_random_state(state: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if device.type == "cuda" and len(state) > 1:  # it has one entry if the run began on a CPU
        torch.cuda.set_rng_state(state[1], device)


@dataclass(frozen=True)
class Splits:
    """The data of a run on its device. The validation part, where there is one, chooses the best epoch."""

    train: TrainData
    validation: EvaluationData | None
    test: EvaluationData
    teacher_logits: Tensor | None = None  # float32 [N, K], the teacher's logits of the test split


def fit(
    state: TrainState,
    teacher: TeacherSource | None,
    data: Splits,
    schedule: Schedule,
    *,
    seed: int,
    capture: bool,
    on_epoch: Callable[[dict[str, Any], bool], None],
    on_step: OnStep | None = None,
) -> None:
    """Train from `state.epoch`, or from within the epoch after it, to the end of the schedule. `capture`: see `Step`.

    After each epoch `on_epoch(record, improved)` gets the journal's epoch record and whether this is the best epoch so
    far (by validation accuracy where a part is held out, by test accuracy otherwise; the first of equals).
    """
    capture = capture and distributed.size() == 1  # communication between processes is not recorded
    step = Step(state.trainable, state.optimizer, teacher, data.train, batch_size=schedule.batch_size, capture=capture)
    device = state.trainable.precision.device
    while state.epoch < schedule.epochs:
        began = time.monotonic() - (0.0 if state.within is None else state.within["seconds"])
        metrics = train_epoch(state, step, schedule, seed=seed, on_step=on_step)
        trained = time.monotonic()
        state.trainable.eval()
        distributed.share_buffers(state.trainable)
        test = measure(state.trainable.predict, data.test, device, data.teacher_logits)
        test_skipped = distributed.total(data.test.skipped, device)
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
        if step.skipped:
            record["skipped"] = step.skipped
        if test_skipped:
            record["test_skipped"] = test_skipped
        on_epoch(record, improved)

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
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edkd.data.batches import DeviceData
from edkd.data.views import epoch_order, epoch_views, n_views
from edkd.distillers.base import Batch, Distiller
from edkd.errors import EdkdError
from edkd.models.base import Prediction

EVALUATION_BATCH = {"cpu": 100, "cuda": 1000}  # images; on a CPU larger batches are slower and take gigabytes

TEACHER_BATCH = 64  # images


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train: SGD with step-wise decay (the recipe is in conf/schedule)."""

    epochs: int
    batch_size: int
    lr: float
    momentum: float
    weight_decay: float
    milestones: list[int]
    gamma: float
    warmup_epochs: int

    def __post_init__(self) -> None:
        positive = {"epochs": self.epochs, "batch_size": self.batch_size, "lr": self.lr, "gamma": self.gamma}
        for name, value in positive.items():
            if not value > 0 or math.isinf(value):
                raise ValueError(f"{name} must be above 0, not {value}")
        for name, value in {"momentum": self.momentum, "weight_decay": self.weight_decay}.items():
            if not value >= 0:
                raise ValueError(f"{name} must be 0 or more, not {value}")
        if self.warmup_epochs < 0:
            raise ValueError(f"warmup_epochs must be 0 or more, not {self.warmup_epochs}")

    def rate(self, epoch: int) -> float:
        """Learning rate of an epoch (from 1): `milestones: [150]` makes epoch 151 the first at the lower rate."""
        return self.lr * self.gamma ** sum(epoch > milestone for milestone in self.milestones)


class TeacherSource(Protocol):
    """Gives the frozen teacher's prediction for a batch; whether it computes or remembers is its own affair."""

    def begin_epoch(self, views: Tensor) -> None:
        """Prepare for an epoch in which training image i is seen as `views[i]`, int64 [N]."""

    def __call__(self, images: Tensor, index: Tensor, view: Tensor) -> Prediction:
        """Predict for `images` [B, 3, H, W], which are `view` [B] of training images `index` [B]."""


@dataclass(frozen=True)
class Precision:
    """Compute precision of networks; losses, weights and optimiser state are fp32 whatever it is."""

    name: str
    device: torch.device

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The context that forward passes run in."""
        if self.name == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()


class OnlineTeacher:
    """The teacher network, run on every batch: eval mode, no gradient."""

    def __init__(self, network: nn.Module, *, want_feats: bool, precision: Precision) -> None:
        self.network = network.eval().requires_grad_(False)
        self.want_feats = want_feats
        self.precision = precision

    def begin_epoch(self, views: Tensor) -> None:
        """Nothing to prepare."""

    def __call__(self, images: Tensor, index: Tensor, view: Tensor) -> Prediction:
        """Predict for a batch of images [B, 3, H, W]."""
        return in_fp32(self.raw(images))

    def raw(self, images: Tensor) -> Prediction:
        """The same in the precision in which the network computes.

        The network sees batches of one size, the last one filled up: kernels are chosen by the size of a batch, and
        an image's logits are the same bits whatever is around it only among batches of one size.
        """
        parts = [self._fixed(images[start : start + TEACHER_BATCH]) for start in range(0, len(images), TEACHER_BATCH)]
        if len(parts) == 1:
            return parts[0]
        pooled = None if parts[0].pooled_feat is None else torch.cat([part.pooled_feat for part in parts])  # type: ignore[misc]
        return Prediction(
            torch.cat([part.logits for part in parts]),
            tuple(torch.cat(each) for each in zip(*(part.feats for part in parts), strict=True)),
            tuple(torch.cat(each) for each in zip(*(part.preact_feats for part in parts), strict=True)),
            pooled,
        )

    def _fixed(self, images: Tensor) -> Prediction:
        count = len(images)
        if count < TEACHER_BATCH:
            images = images[torch.arange(TEACHER_BATCH, device=images.device) % count]
        with torch.no_grad(), self.precision.autocast():
            made: Prediction = self.network(images, want_feats=self.want_feats)
        if count == TEACHER_BATCH:
            return made
        feats, preact = (tuple(feat[:count] for feat in each) for each in (made.feats, made.preact_feats))
        pooled = None if made.pooled_feat is None else made.pooled_feat[:count]
        return Prediction(made.logits[:count], feats, preact, pooled)


def in_fp32(prediction: Prediction) -> Prediction:
    """A prediction made under autocast as the methods get it: losses and their own modules are fp32."""
    return Prediction(
        logits=prediction.logits.float(),
        feats=tuple(feat.float() for feat in prediction.feats),
        preact_feats=tuple(feat.float() for feat in prediction.preact_feats),
        pooled_feat=None if prediction.pooled_feat is None else prediction.pooled_feat.float(),
    )


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
                memory = self.optimizer.state[parameter]
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


class Meter:
    """Sums of per-image means, kept on the device in float64 until `read`."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.sums: dict[str, Tensor] = {}
        self.images = 0

    def add(self, count: int, values: dict[str, Tensor]) -> None:
        """Add a batch of `count` images with these means (0-dim tensors)."""
        for name, value in values.items():
            if name not in self.sums:
                self.sums[name] = torch.zeros((), dtype=torch.float64, device=self.device)
            self.sums[name].add_(value.detach(), alpha=count)
        self.images += count

    def read(self) -> dict[str, float]:
        """Means over all images; the only synchronisation with the device."""
        stacked = torch.stack(list(self.sums.values())) / self.images
        return dict(zip(self.sums, stacked.tolist(), strict=True))


def train_epoch(
    progress: Progress,
    teacher: TeacherSource | None,
    data: DeviceData,
    schedule: Schedule,
    *,
    seed: int,
    precision: Precision,
    on_step: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """Train epoch `progress.epoch + 1` and return its metrics (`train/…`, `lr`).

    The epoch's permutation and every image's view depend on (seed, epoch) only; the last, smaller batch is kept.
    `on_step(steps done, steps)` is called after each step. Raises EdkdError if a loss is not finite.
    """
    epoch = progress.epoch + 1
    device, count = precision.device, len(data)
    order = torch.from_numpy(epoch_order(seed, epoch, count)).to(device)
    by_image = torch.from_numpy(epoch_views(seed, epoch, count, n_views(data.padding, data.flip))).to(device)
    if teacher is not None:
        teacher.begin_epoch(by_image)
    views = by_image[order]
    epoch_tensor = torch.tensor(float(epoch), device=device)
    for group in progress.optimizer.param_groups:
        group["lr"].fill_(schedule.rate(epoch))
    student, distiller, optimizer = progress.student.train(), progress.distiller.train(), progress.optimizer
    meter, steps = Meter(device), math.ceil(count / schedule.batch_size)
    sound, sound_steps = torch.tensor(True, device=device), torch.tensor(0, device=device)  # become one per loss
    with seeded(seed, epoch, device):
        for step in range(steps):
            part = slice(step * schedule.batch_size, (step + 1) * schedule.batch_size)
            index, view = order[part], views[part]
            images, target = data.augmented(index, view), data.targets(index)
            try:
                with precision.autocast():
                    prediction = in_fp32(student(images, want_feats=distiller.needs_feats))
            except ValueError as error:
                if len(index) > 1:
                    raise
                raise EdkdError(
                    f"the last batch of {count} images has one alone, which batch norm cannot take here: "
                    f"change schedule.batch_size (now {schedule.batch_size})"
                ) from error
            taught = teacher(images, index, view) if teacher is not None else None
            outcome = distiller(prediction, taught, Batch(index=index, target=target, epoch=epoch_tensor))
            losses = torch.stack(list(outcome.losses.values()))
            loss = losses.sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            hits = (prediction.logits.detach().argmax(1) == target).float().mean() * 100
            sound = sound & losses.detach().isfinite()
            sound_steps = sound_steps + sound
            parts = {f"train/loss_{name}": value for name, value in outcome.losses.items()}
            meter.add(len(index), {"train/loss": loss, **parts, "train/top1": hits, **outcome.metrics})
            if on_step is not None:
                on_step(step + 1, steps)
    metrics = meter.read()
    if not math.isfinite(metrics["train/loss"]):
        # Once the weights are spoilt, every loss is: the first one tells. None, if only their sum is too large.
        counts = sound_steps.tolist()
        first = min(counts)
        guilty = [f"train/loss_{name}" for name, n in zip(outcome.losses, counts, strict=True) if n == first < steps]
        where = f"epoch {epoch}, step {first + 1}" if guilty else f"epoch {epoch}"
        raise EdkdError(
            f"{where}: {', '.join(guilty) or 'train/loss'} is not finite: training diverged; "
            f"lower schedule.lr (now {schedule.lr}) or look at the method's weights"
        )
    return {**metrics, "lr": schedule.rate(epoch)}


@torch.inference_mode()
def evaluate(network: nn.Module, data: DeviceData, precision: Precision) -> dict[str, float]:
    """Accuracies in percent and cross-entropy of a network over a whole split: {"top1", "top5", "loss"}.

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
        meter.add(
            len(index),
            {
                "top1": top[:, 0].float().mean() * 100,
                "top5": top.any(1).float().mean() * 100,
                "loss": F.cross_entropy(logits, target),
            },
        )
    return meter.read()


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
    on_epoch: Callable[[dict[str, Any], bool], None],
    on_step: Callable[[int, int], None] | None = None,
) -> None:
    """Train from `progress.epoch` to the end of the schedule.

    After each epoch `on_epoch(record, improved)` gets the journal's epoch record and whether this is the best epoch so
    far (by validation accuracy where a part is held out, by test accuracy otherwise; the first of equals).
    """
    while progress.epoch < schedule.epochs:
        began = time.monotonic()
        metrics = train_epoch(progress, teacher, data.train, schedule, seed=seed, precision=precision, on_step=on_step)
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

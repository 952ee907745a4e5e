"""The plain loop: distillation as a careful reader of the papers writes it, the yardstick of the benchmark.

PIL images through torchvision's transforms in the workers of a DataLoader, the teacher's forward pass in every step,
fp32 with torch's own defaults, the losses as the papers state them, and the running averages that a progress line
shows. It shares with the rest of the project the networks and nothing else.
"""

import functools
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from edkd.data import _torchvision
from edkd.data.arrays import Split
from edkd.errors import EdkdError

Loss = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""(student's logits [B, K], teacher's logits [B, K], target [B], epoch from 1) -> scalar."""

MOST_WORKERS = 8
PREFETCHED = 2  # batches a worker keeps ready: DataLoader's own default


class Images(Dataset[tuple[Tensor, int]]):
    """Images in memory, each made a PIL image and transformed when asked for, as torchvision's CIFAR100 does."""

    def __init__(self, split: Split, transform: Callable[[Any], Tensor]) -> None:
        self.images: npt.NDArray[np.uint8] = split.images
        self.labels: list[int] = split.labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


class Feed:
    """Shuffled, augmented batches (images [B, 3, H, W], target [B]) from persistent workers, epoch after epoch."""

    def __init__(
        self,
        split: Split,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        padding: int,
        flip: bool,
        batch_size: int,
        workers: int,
        device: torch.device,
    ) -> None:
        transforms = _torchvision.load().transforms
        steps = [transforms.RandomCrop(split.images.shape[1], padding=padding)]
        steps += [transforms.RandomHorizontalFlip()] if flip else []
        steps += [transforms.ToTensor(), transforms.Normalize(mean, std)]
        self.loader = DataLoader(
            Images(split, transforms.Compose(steps)),
            batch_size=batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
            # Linux's own way, which a process that was spawned itself would not take by itself.
            multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        )
        self.batches: Iterator[tuple[Tensor, Tensor]] = itertools.chain.from_iterable(itertools.repeat(self.loader))
        self.ready = PREFETCHED * workers  # batches that the workers make while nobody asks for one

    @property
    def workers(self) -> list[int]:
        """The ids of the worker processes that run."""
        running = getattr(self.loader, "_iterator", None)
        return [process.pid for process in getattr(running, "_workers", ())]


class Average:
    """A running average, as progress lines show it."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def update(self, value: float, count: int) -> None:
        """Add the mean `value` of `count` images."""
        self.total += value * count
        self.count += count

    @property
    def mean(self) -> float:
        """The average so far."""
        return self.total / self.count


def accuracy(logits: Tensor, target: Tensor, top: Sequence[int]) -> list[Tensor]:
    """Percent of the images [B] whose target is among the k highest logits [B, K], for each k of `top`."""
    most = min(max(top), logits.shape[1])
    hits = logits.topk(most, dim=1).indices == target[:, None]
    return [hits[:, :k].any(1).float().mean() * 100 for k in top]


class PlainLoop:
    """Trains `student` after `teacher`, both on `device` already, with `batches` from the CPU."""

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        loss: Loss,
        batches: Iterator[tuple[Tensor, Tensor]],
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
        device: torch.device,
    ) -> None:
        self.teacher, self.student, self.loss, self.batches, self.device = teacher, student, loss, batches, device
        self.optimizer = torch.optim.SGD(student.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)

    def train(self, steps: int, epoch: int) -> dict[str, float]:
        """Train for some steps of epoch `epoch` (from 1); returns the running averages `loss`, `top1` and `top5`."""
        self.teacher.eval()
        self.student.train()
        averages = {name: Average() for name in ("loss", "top1", "top5")}
        for images, target in itertools.islice(self.batches, steps):
            images = images.to(self.device, non_blocking=True)
            target = target.to(self.device, non_blocking=True)
            with torch.no_grad():
                logits_teacher = self.teacher(images, want_feats=False).logits
            logits = self.student(images, want_feats=False).logits
            loss = self.loss(logits, logits_teacher, target, epoch)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            top1, top5 = accuracy(logits.detach(), target, (1, 5))
            for name, value in {"loss": loss, "top1": top1, "top5": top5}.items():
                averages[name].update(value.item(), len(target))
        return {name: average.mean for name, average in averages.items()}


def loss_of(distiller: Mapping[str, Any]) -> Loss:
    """The loss that a distiller's configuration describes (see conf/distiller). Raises EdkdError for another method."""
    name = str(distiller["_target_"]).rpartition(".")[2]
    values = {key: value for key, value in distiller.items() if key != "_target_"}
    if name not in LOSSES:
        raise EdkdError(f"the benchmark has no plain loop for {name}; --methods takes {', '.join(LOSSES).lower()}")
    return functools.partial(LOSSES[name], **values)


def kd(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    epoch: int,
    *,
    ce_weight: float,
    kd_weight: float,
    temperature: float,
) -> Tensor:
    """Hinton, Vinyals and Dean 2015: cross-entropy, and T² KL between the softened distributions."""
    soft = F.kl_div(
        F.log_softmax(student / temperature, dim=1), F.softmax(teacher / temperature, dim=1), reduction="batchmean"
    )
    return ce_weight * F.cross_entropy(student, target) + kd_weight * temperature**2 * soft


def dkd(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    epoch: int,
    *,
    ce_weight: float,
    alpha: float,
    beta: float,
    temperature: float,
    warmup_epochs: int,
) -> Tensor:
    """Zhao et al. 2022, equation 7: target and non-target parts of KD, weighted on their own."""
    tckd, nckd, _ = _decoupled(student, teacher, target, temperature)
    ramp = min(epoch / warmup_epochs, 1.0) if warmup_epochs else 1.0
    return ce_weight * F.cross_entropy(student, target) + ramp * (alpha * tckd + beta * nckd.mean())


def edkd(
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    epoch: int,
    *,
    ce_weight: float,
    alpha: float,
    beta: float,
    temperature: float,
    warmup_epochs: int,
    weighting: str,
) -> Tensor:
    """DKD with beta_i = beta exp(−(1 − c_i)), c_i = max(p, 1 − p) of the teacher's probability p for the target."""
    tckd, nckd, p_teacher = _decoupled(student, teacher, target, temperature)
    confidence = torch.maximum(p_teacher, 1 - p_teacher)
    beta_i = beta * torch.exp(confidence - 1)
    non_target = (beta_i * nckd).mean() if weighting == "sample" else beta_i.mean() * nckd.mean()
    ramp = min(epoch / warmup_epochs, 1.0) if warmup_epochs else 1.0
    return ce_weight * F.cross_entropy(student, target) + ramp * (alpha * tckd + non_target)


LOSSES: dict[str, Callable[..., Tensor]] = {"KD": kd, "DKD": dkd, "EDKD": edkd}


def _decoupled(student: Tensor, teacher: Tensor, target: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """TCKD (scalar), NCKD [B], both times T², and the teacher's probability of the target [B]."""
    student, teacher = student / temperature, teacher / temperature
    column = target.unsqueeze(1)
    p_student = F.softmax(student, dim=1).gather(1, column)
    p_teacher = F.softmax(teacher, dim=1).gather(1, column)
    two_way_student = torch.cat([p_student, 1 - p_student], dim=1)
    two_way_teacher = torch.cat([p_teacher, 1 - p_teacher], dim=1)
    tckd = F.kl_div(two_way_student.log(), two_way_teacher, reduction="batchmean")
    others = torch.ones_like(student).scatter_(1, column, 0.0)
    # A large negative logit takes the target out of the softmax.
    log_student = F.log_softmax(student - 1000 * (1 - others), dim=1)
    q_teacher = F.softmax(teacher - 1000 * (1 - others), dim=1)
    nckd = F.kl_div(log_student, q_teacher, reduction="none").sum(dim=1)
    return temperature**2 * tckd, temperature**2 * nckd, p_teacher.squeeze(1)

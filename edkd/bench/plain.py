"""The plain loop: distillation as a careful reader of the papers writes it, the yardstick of the benchmark.

PIL images through torchvision's transforms in the workers of a DataLoader, the teacher's forward pass in every step,
fp32 with torch's own defaults, the losses as the papers state them, and the running averages that a progress line
shows. It shares the networks and the configuration with the rest of the project and nothing else.
"""

import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from edkd.config import schema
from edkd.data import _torchvision
from edkd.data.arrays import Split


class Images(Dataset[Any]):
    """Images in memory, each made a PIL image and transformed when asked for, as torchvision's CIFAR100 does."""

    def __init__(self, split: Split, transform: Callable[[Any], Tensor]) -> None:
        self.images, self.labels, self.transform = split.images, split.labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def loader(
    split: Split, data: schema.Dataset, *, batch_size: int, workers: int, device: torch.device
) -> DataLoader[Any]:
    """Shuffled, augmented (images [B, 3, H, W], target [B]) on the CPU, from workers that live as long as it."""
    transforms = _torchvision.load().transforms
    flips = [transforms.RandomHorizontalFlip()] if data.flip else []
    steps = [transforms.RandomCrop(split.images.shape[1], padding=data.padding), *flips, transforms.ToTensor()]
    return DataLoader(
        Images(split, transforms.Compose([*steps, transforms.Normalize(data.mean, data.std)])),
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
        # Linux's usual method; a process that was itself spawned would spawn its workers by default.
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
    )


def train(
    teacher: nn.Module,
    student: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[Tensor, Tensor, Tensor, int], Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    epoch: int,
    device: torch.device,
) -> dict[str, float]:
    """Train with these batches of epoch `epoch` (from 1); returns the averages `loss`, `top1` and `top5`."""
    totals, count = {"loss": 0.0, "top1": 0.0, "top5": 0.0}, 0
    teacher.eval()
    student.train()
    for images, target in batches:
        images = images.to(device, non_blocking=True)
        target = target.to(device, non_blocking=True)
        with torch.no_grad():
            logits_teacher = teacher(images, want_feats=False).logits
        logits = student(images, want_feats=False).logits
        loss = loss_of(logits, logits_teacher, target, epoch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        hits = logits.detach().topk(min(5, logits.shape[1]), dim=1).indices == target[:, None]
        totals["loss"] += loss.item() * len(target)
        totals["top1"] += hits[:, 0].sum().item() * 100
        totals["top5"] += hits.any(1).sum().item() * 100
        count += len(target)
    return {name: total / count for name, total in totals.items()}


def kd(student: Tensor, teacher: Tensor, target: Tensor, epoch: int, cfg: Mapping[str, Any]) -> Tensor:
    """Hinton, Vinyals and Dean 2015: cross-entropy, and T² KL between the softened distributions."""
    t = cfg["temperature"]
    soft = F.kl_div(F.log_softmax(student / t, dim=1), F.softmax(teacher / t, dim=1), reduction="batchmean")
    return cfg["ce_weight"] * F.cross_entropy(student, target) + cfg["kd_weight"] * t**2 * soft


def dkd(student: Tensor, teacher: Tensor, target: Tensor, epoch: int, cfg: Mapping[str, Any]) -> Tensor:
    """Zhao et al. 2022, equation 7: target and non-target parts of KD, each with its own weight."""
    tckd, nckd, _ = _decoupled(student, teacher, target, cfg["temperature"])
    distilled = cfg["alpha"] * tckd + cfg["beta"] * nckd.mean()
    return cfg["ce_weight"] * F.cross_entropy(student, target) + _warmup(epoch, cfg) * distilled


def edkd(student: Tensor, teacher: Tensor, target: Tensor, epoch: int, cfg: Mapping[str, Any]) -> Tensor:
    """DKD with beta_i = beta exp(−(1 − c_i)), c_i = max(p, 1 − p) of the teacher's probability p for the target."""
    tckd, nckd, p_teacher = _decoupled(student, teacher, target, cfg["temperature"])
    beta_i = cfg["beta"] * torch.exp(torch.maximum(p_teacher, 1 - p_teacher) - 1)
    non_target = (beta_i * nckd).mean() if cfg["weighting"] == "sample" else beta_i.mean() * nckd.mean()
    distilled = cfg["alpha"] * tckd + non_target
    return cfg["ce_weight"] * F.cross_entropy(student, target) + _warmup(epoch, cfg) * distilled


LOSSES = {"kd": kd, "dkd": dkd, "edkd": edkd}
"""(student's logits [B, K], teacher's logits [B, K], target [B], epoch from 1, see conf/distiller) -> scalar."""


def _warmup(epoch: int, cfg: Mapping[str, Any]) -> float:
    return min(epoch / cfg["warmup_epochs"], 1.0) if cfg["warmup_epochs"] else 1.0


def _decoupled(student: Tensor, teacher: Tensor, target: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """TCKD (scalar), NCKD [B], both times T², and the teacher's probability of the target [B]."""
    student, teacher = student / temperature, teacher / temperature
    column = target.unsqueeze(1)
    p_student = F.softmax(student, dim=1).gather(1, column)
    p_teacher = F.softmax(teacher, dim=1).gather(1, column)
    two_way_student = torch.cat([p_student, 1 - p_student], dim=1)
    two_way_teacher = torch.cat([p_teacher, 1 - p_teacher], dim=1)
    tckd = F.kl_div(two_way_student.log(), two_way_teacher, reduction="batchmean")
    # A large negative logit takes the target out of the softmax.
    masked = torch.zeros_like(student).scatter_(1, column, 1000.0)
    log_student = F.log_softmax(student - masked, dim=1)
    q_teacher = F.softmax(teacher - masked, dim=1)
    nckd = F.kl_div(log_student, q_teacher, reduction="none").sum(dim=1)
    return temperature**2 * tckd, temperature**2 * nckd, p_teacher.squeeze(1)

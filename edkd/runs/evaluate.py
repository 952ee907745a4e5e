"""Measure a network on the test set in every respect, for `edkd evaluate` and for imported teachers."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from edkd.config.instantiate import build
from edkd.config.schema import Settings
from edkd.console import counting
from edkd.errors import EdkdError
from edkd.models.fit import closest
from edkd.rundir import checkpoint
from edkd.runs.inputs import device_data, find_teacher, load_arrays, load_teacher, teacher_folder
from edkd.runs.method import load_method
from edkd.teachers import store
from edkd.teachers.source import Precision
from edkd.training.device import pick_device, set_up, to_device
from edkd.training.evaluation import Calibration, Counted, all_logits, evaluate, measure
from edkd.training.step import Trainable


class OfClass(NamedTuple):
    """Accuracy on the test images of one class."""

    name: str
    images: int
    top1: float  # percent; NaN for a class without images


@dataclass(frozen=True)
class Evaluation:
    """A network's predictions of the test set, measured."""

    where: str  # origin of the weights: a file or a stored teacher
    overall: dict[str, float]  # see `edkd.training.evaluation.measure`, and "ece"
    classes: list[OfClass]
    images: int  # measured: without those that dataset.broken=skip left out
    seconds: float  # duration of the network's passes, without the teacher's


def evaluate_network(cfg: Settings, file: Path | None, *, with_teacher: bool = False) -> Evaluation:
    """Measure `cfg.student` on the test set, with the weights in `file` or those of the stored teacher.

    A student that ends in modules of its method is measured with them. `with_teacher` also measures how near it is to
    the stored `cfg.teacher`. Raises EdkdError for weights that are missing, damaged or of another network.
    """
    set_up(cfg.engine)
    where, verified = str(file), None
    if file is None:
        entry = store.find(teacher_folder(cfg), cfg.dataset.key, cfg.student.name)
        if entry is None:
            raise EdkdError(
                f"no teacher {cfg.student.name} of {cfg.dataset.key} in {teacher_folder(cfg)} "
                f"{store.there(cfg.dataset.key, cfg.student.name, teacher_folder(cfg))}; -c FILE names a checkpoint"
            )
        where, file, verified = f"teacher {entry.id}", entry.path, store.verify(entry)
    weights = checkpoint.load_weights(file, verified)
    arrays, _ = load_arrays(cfg)
    device = pick_device(cfg.engine.device)
    network = build(cfg.student.model, "student.model", num_classes=arrays.num_classes)
    try:
        checkpoint.load_into(network, weights, where)
    except EdkdError as error:
        raise EdkdError(f"{error}; {closest(weights)}") from error
    method = load_method(cfg, file, network, arrays)
    network = to_device(network, cfg.engine, device)
    data, precision = device_data(arrays, cfg, device).test, Precision(cfg.engine.precision, device)
    teacher_logits = None
    if with_teacher:
        teacher = load_teacher(cfg, find_teacher(cfg), arrays.num_classes, device)
        with counting(cfg.teacher.name, len(data)) as update:
            teacher_logits = all_logits(teacher, Counted(data, update), Precision("fp32", device))
    found = _Found(arrays.num_classes, device)
    began = time.monotonic()
    with counting(cfg.student.name, len(data)) as update:
        counted = Counted(data, update)
        if method is None:
            overall = evaluate(network, counted, precision, teacher_logits, found.add)
        else:
            whole = Trainable(network, method.to(device), precision).eval()
            overall = measure(whole.predict, counted, device, teacher_logits, found.add)
    seconds = time.monotonic() - began
    overall["ece"] = found.calibration.read()
    classes = found.by_class(arrays.classes)
    return Evaluation(where, overall, classes, sum(each.images for each in classes), seconds)


class _Found:
    """Sums over the batches beside the means: calibration, and hits by class."""

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self.calibration = Calibration(device)
        self.hits = torch.zeros(num_classes, 2, dtype=torch.int64, device=device)  # [K, 2]: correct predictions, images

    def add(self, logits: Tensor, target: Tensor) -> None:
        hit = logits.topk(1, dim=1).indices[:, 0] == target
        self.calibration.add(logits.log_softmax(1).amax(1).exp(), hit)
        own = F.one_hot(target, len(self.hits))
        self.hits += torch.stack([(own * hit[:, None]).sum(0), own.sum(0)], 1)

    def by_class(self, names: tuple[str, ...]) -> list[OfClass]:
        right, images = self.hits.T.tolist()
        return [
            OfClass(name, count, 100 * hits / count if count else float("nan"))
            for name, hits, count in zip(names, right, images, strict=True)
        ]

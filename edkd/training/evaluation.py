"""What a network predicts for a whole split: accuracies, cross-entropy, nearness to its teacher, calibration."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edkd.data.base import EvaluationData
from edkd.errors import EdkdError
from edkd.teachers.source import Precision
from edkd.training import distributed
from edkd.training.meters import Meter

OnBatch = Callable[[Tensor, Tensor], None]  # called with the logits, float32 [B, K], and the labels of a batch

EVALUATION_BATCH = {"cpu": 100, "cuda": 1000}  # images; on a CPU larger batches are slower and take gigabytes


def evaluate(
    network: nn.Module,
    data: EvaluationData,
    precision: Precision,
    teacher_logits: Tensor | None = None,
    on_batch: OnBatch | None = None,
) -> dict[str, float]:
    """Accuracies and cross-entropy of a network over a whole split, see `measure`."""
    network.eval()

    def predict(images: Tensor) -> Tensor:
        with precision.autocast():
            logits: Tensor = network(images, want_feats=False).logits
        return logits

    return measure(predict, data, precision.device, teacher_logits, on_batch)


@torch.inference_mode()
def all_logits(network: nn.Module, data: EvaluationData, precision: Precision) -> Tensor:
    """A network's logits of a whole split, float32 [N, K]."""
    network.eval()
    with precision.autocast():
        batches = data.batches(EVALUATION_BATCH[precision.device.type])
        return torch.cat([network(images, want_feats=False).logits.float() for images, _ in batches])


class Counted:
    """Evaluation data that report the number of images evaluated so far."""

    def __init__(self, data: EvaluationData, update: Callable[[int], None]) -> None:
        self.data, self.update = data, update

    def __len__(self) -> int:
        return len(self.data)

    @property
    def skipped(self) -> int:
        """The number of images that could not be read."""
        return self.data.skipped

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All batches, each counted when the next one is asked for."""
        done = 0
        for images, target in self.data.batches(size):
            yield images, target
            done += len(target)
            self.update(done)


_OTHER_IMAGES = "the teacher was evaluated on {} images of this split, and now {} can be read: start the run again"


@torch.inference_mode()
def measure(
    predict: Callable[[Tensor], Tensor],
    data: EvaluationData,
    device: torch.device,
    teacher_logits: Tensor | None = None,
    on_batch: OnBatch | None = None,
) -> dict[str, float]:
    """Accuracies in percent and cross-entropy of predicted logits over a whole split: {"loss", "top1", "top5"}.

    With fewer than five classes, top5 counts all of them. `teacher_logits` [N, K] add the
    nearness to the teacher: "agreement", the percentage of images to which both give the same class, and "kl_teacher",
    the mean KL(softmax teacher ‖ softmax student) in nats; and the student's calibration error, "ece" (`Calibration`).
    Raises EdkdError if other images could be read for the teacher than now, of which only the number is known.
    """
    meter, done = Meter(device), 0
    calibration = Calibration(device)
    for images, target in data.batches(EVALUATION_BATCH[device.type]):
        logits = predict(images).float()
        top = logits.topk(min(5, logits.shape[1]), dim=1).indices == target[:, None]
        means, hits = {"loss": F.cross_entropy(logits, target)}, {"top1": top[:, 0], "top5": top.any(1)}
        if teacher_logits is not None:
            teacher = teacher_logits[done : done + len(target)]
            if len(teacher) < len(target):
                raise EdkdError(_OTHER_IMAGES.format(len(teacher_logits), "more"))
            log_student, log_teacher = logits.log_softmax(1), teacher.log_softmax(1)
            means["kl_teacher"] = F.kl_div(log_student, log_teacher, log_target=True, reduction="batchmean")
            hits["agreement"] = logits.argmax(1) == teacher.argmax(1)
            calibration.add(log_student.amax(1).exp(), top[:, 0])
        if on_batch is not None:
            on_batch(logits, target)
        meter.add(len(target), means, hits)
        done += len(target)
    if teacher_logits is not None and done < len(teacher_logits):
        raise EdkdError(_OTHER_IMAGES.format(len(teacher_logits), done))
    measured = meter.read(distributed.total(done, device))
    return measured if teacher_logits is None else {**measured, "ece": calibration.read()}


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
        summed = distributed.add(self.sums.clone())
        return 100 * summed.abs().sum().item() / distributed.total(self.images, summed.device)

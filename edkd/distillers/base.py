"""What a distillation method is: a loss, perhaps with a memory, over the student's and the teacher's predictions."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from edkd import losses
from edkd.models.base import Classifier, Prediction


class StrongView(NamedTuple):
    """Both networks' predictions of a strong view of the images of a batch."""

    student: Prediction
    teacher: Prediction


@dataclass(frozen=True, slots=True)
class Batch:
    """What a method may know of the current step besides the two predictions."""

    index: Tensor
    """int64 [B], each sample's position in the training set."""
    target: Tensor
    """int64 [B], the class labels."""
    epoch: Tensor
    """float32, 0-dim, on the device; epochs count from 1. A tensor, so that one captured graph serves every epoch."""
    strong: StrongView | None = None
    """The networks' predictions of a second, strongly distorted view, for methods that declare `needs_strong_view`."""


class Shapes(NamedTuple):
    """The shapes of a network's features at the image size of a run, without the batch dimension.

    A network without features, such as a transformer, has zeros; a method that declares `needs_feats` is given no such
    network.
    """

    feats: tuple[tuple[int, int, int], ...]
    """(C, H, W) of each entry of `Prediction.feats`."""
    preact_feats: tuple[tuple[int, int, int], ...]
    """(C, H, W) of each entry of `Prediction.preact_feats`."""
    pooled_feat: int
    """The width of `Prediction.pooled_feat`."""
    last_map: tuple[int, int, int]
    """(C, H, W) of `Prediction.last_map`."""


@dataclass(frozen=True)
class Spec:
    """What a method may know of its run when it makes its own modules and memory."""

    student: Shapes
    teacher: Shapes | None
    num_classes: int
    train_images: int
    classifier: Classifier | None = None
    """The frozen teacher's classifier; None without a teacher, and for one without features."""
    teacher_norms: tuple[tuple[Tensor, Tensor], ...] = ()
    """Weight and bias, each [C], of the batch norm before each of the teacher's `preact_feats[1:]`; empty where its
    family has none."""


class Outcome(NamedTuple):
    """What one step of a method yields."""

    losses: dict[str, Tensor]
    """Named scalars, each as it enters the sum that is minimised."""
    metrics: dict[str, Tensor]
    """Named 0-dim tensors without gradient, averaged over an epoch and logged under their names."""
    logits: Tensor | None = None
    """[B, K] without gradient: what `predict` gives for the batch, for `train/top1`; None: the student's own logits."""
    by_class: dict[str, Tensor] | None = None
    """Named [B] tensors without gradient, averaged over the images of each class and an epoch, for the journal."""


class Distiller(nn.Module, ABC):
    """A distillation method.

    It is constructed from hyper-parameters alone, which costs nothing, and makes its own modules and memory in `setup`;
    they are optimised, saved and resumed together with the student. It never calls a network and never moves a tensor.
    `forward` stays on the device: no `.item()`, no branch on a tensor's value, and a memory is changed in place.
    """

    needs_teacher: ClassVar[bool] = True
    """Whether `forward` is given the teacher's prediction; None is passed otherwise."""
    needs_feats: ClassVar[bool] = False
    """Whether both predictions carry features; only logits otherwise."""
    needs_strong_view: ClassVar[bool] = False
    """Whether `batch.strong` is filled in: the student then makes a second forward pass in every step."""
    loss_names: ClassVar[tuple[str, ...]] = ("ce", "kd")
    """The names of the losses of `forward`, for optimisers that do not descend their sum."""
    needs_losses_apart: ClassVar[bool] = False
    """Whether the method needs an optimiser that has a separate momentum for each of its losses."""

    def __init__(self) -> None:
        # Narrower than nn.Module's (*args, **kwargs): the signature is what configuration is validated against.
        super().__init__()

    def setup(self, spec: Spec) -> None:
        """Make the method's own modules and memory; called once, when a run is put together.

        Random draws here depend on the run's seed alone; the caller moves the method to the device.
        """

    def predict(self, student: Prediction) -> Prediction:
        """The prediction to evaluate: by default the student's, unchanged.

        If a method overrides this, its modules are part of the network: weights files hold them beside the student.
        """
        return student

    @abstractmethod
    def forward(self, student: Prediction, teacher: Prediction | None, batch: Batch) -> Outcome:
        """Compute the losses of one batch."""


def logits_of(teacher: Prediction | None) -> Tensor:
    """The teacher's logits, [B, K].

    Raises:
        TypeError: there is no teacher, although the method declares that it needs one.
    """
    if teacher is None:
        raise TypeError("this distiller needs the teacher's prediction, got None")
    return teacher.logits


def strong_of(batch: Batch) -> StrongView:
    """The predictions of the strong view.

    Raises:
        TypeError: there are none, although the method declares that it needs them.
    """
    if batch.strong is None:
        raise TypeError("this distiller needs the predictions of a strong view, got None")
    return batch.strong


def both_logits(student: Prediction, teacher: Prediction | None, standardise: bool) -> tuple[Tensor, Tensor]:
    """The logits that a distillation loss compares, the student's and the teacher's, [B, K]; standardised or raw."""
    raw = student.logits, logits_of(teacher)
    return (losses.standardise(raw[0]), losses.standardise(raw[1])) if standardise else raw


def warmup_weight(epoch: Tensor, warmup_epochs: int) -> Tensor:
    """min(epoch / warmup_epochs, 1), 0-dim on the device; 1 throughout when `warmup_epochs` is 0."""
    if warmup_epochs == 0:
        return torch.ones_like(epoch)
    return (epoch / warmup_epochs).clamp(max=1)

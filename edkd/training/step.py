"""Student and method as one module, and its training step. On a GPU the whole step becomes one CUDA graph.

A step reads everything that changes from tensors that stay where they are: the data's position in the epoch, the
learning rate, the epoch's number, the teacher's logits. So it can be recorded once and replayed to the end of the run,
without any Python between two steps.
"""

import logging
import traceback
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from edkd.data.base import TrainData
from edkd.distillers.base import Batch, Distiller, Outcome, StrongView
from edkd.errors import EdkdError
from edkd.models.base import Prediction
from edkd.teachers.source import Precision, TeacherSource, in_fp32
from edkd.training import distributed
from edkd.training.demands import Held, Unsaved, check_outcome
from edkd.training.meters import ClassMeter, Meter

LOG = logging.getLogger("edkd")
EAGER_FIRST = 3  # steps before a recording: libraries choose algorithms, the optimiser makes its buffers


class Trainable(nn.Module):
    """The student and its method as one module: one `state_dict`, one list of parameters, one thing to wrap."""

    def __init__(self, student: nn.Module, distiller: Distiller, precision: Precision) -> None:
        super().__init__()
        self.student, self.distiller, self.precision = student, distiller, precision

    def forward(
        self,
        images: Tensor,
        teacher: Prediction | None,
        batch: Batch,
        strong: tuple[Tensor, Prediction] | None = None,
    ) -> tuple[Outcome, Tensor]:
        """The losses of a batch of images [B, 3, H, W], and the logits [B, K] that `predict` gives in this pass.

        strong: a strong view of the images, and the teacher's prediction for it.
        """
        with self.precision.autocast():
            prediction = in_fp32(self.student(images, want_feats=self.distiller.needs_feats))
            if strong is not None:
                second = in_fp32(self.student(strong[0], want_feats=self.distiller.needs_feats))
                batch = replace(batch, strong=StrongView(second, strong[1]))
        outcome = self.distiller(prediction, teacher, batch)
        # If the method returns something else, the step raises the error.
        own = outcome.logits if isinstance(outcome, Outcome) else None
        return outcome, prediction.logits.detach() if own is None else own

    @property
    def ends_in_method(self) -> bool:
        """Whether what is evaluated comes from modules of the method."""
        return type(self.distiller).predict is not Distiller.predict

    def predict(self, images: Tensor) -> Tensor:
        """The logits [B, K] that are evaluated: the student's, or those that the method makes of its features."""
        with self.precision.autocast():
            prediction = in_fp32(self.student(images, want_feats=self.ends_in_method))
        return self.distiller.predict(prediction).logits


class Step:
    """Trains on the next batch of an epoch: `begin` an epoch, then call it once for each batch.

    capture: record a CUDA graph of the step after a few steps, and replay that from then on. If a method or a network
    does something that a graph cannot hold (a read-back, a branch on a value, a buffer that is replaced), one warning
    is logged and steps run one by one. Without a GPU nothing is recorded.
    """

    def __init__(
        self,
        trainable: Trainable,
        optimizer: Any,
        teacher: TeacherSource | None,
        data: TrainData,
        *,
        batch_size: int,
        capture: bool,
    ) -> None:
        self.device = device = trainable.precision.device
        self.trainable, self.optimizer, self.teacher, self.data = trainable, optimizer, teacher, data
        self.batch_size = batch_size
        self.capture = capture and device.type == "cuda" and data.on_device
        self.meter = Meter(device)
        self.class_meter = ClassMeter()
        self.loss_names: list[str] = []
        self.epoch = torch.zeros((), device=device)
        self.skipped = 0  # images of the last epoch that were left out, in all processes together
        self.share = 1.0  # this process's fraction of a batch's images, the weight of its gradient in the sum
        self.sound: Tensor | None = None  # [losses]: whether each was finite so far
        self.sound_steps: Tensor | None = None  # [losses]: for how many steps
        self.eager_steps: dict[int, int] = {}
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}  # by batch size: the last batch is smaller
        self.stream = torch.cuda.Stream(device) if self.capture else None

    def begin(self, epoch: int) -> None:
        """Begin an epoch, after `data.begin`."""
        self.epoch.fill_(float(epoch))
        self.meter.reset()
        self.class_meter.reset()
        if self.sound is not None and self.sound_steps is not None:
            self.sound.fill_(True)
            self.sound_steps.zero_()

    def state(self) -> dict[str, Any]:
        """What the epoch has measured so far in this process: tensors on the CPU, and plain values."""
        tensors = {"sound": self.sound, "sound_steps": self.sound_steps, "by_class": self.class_meter.sums}
        return {
            "sums": {name: total.cpu() for name, total in self.meter.sums.items()},
            "class_names": self.class_meter.names,
            "loss_names": self.loss_names,
            "skipped": self.data.skipped,
            **{name: None if each is None else each.cpu() for name, each in tensors.items()},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state()`, in an epoch that was begun."""
        given = {
            name: None if state[name] is None else state[name].to(self.device) for name in ("sound", "sound_steps")
        }
        self.sound, self.sound_steps, self.loss_names = given["sound"], given["sound_steps"], state["loss_names"]
        self.meter.sums = {name: total.to(self.device) for name, total in state["sums"].items()}
        self.class_meter.names = state["class_names"]
        self.class_meter.sums = None if state["by_class"] is None else state["by_class"].to(self.device)
        self.data.skipped = state["skipped"]

    def __call__(self, count: int, whole: int | None = None) -> None:
        """Train on the next `count` images of the epoch, from a batch of `whole` in all processes together."""
        self.share = 1.0 if whole is None else count / whole
        if self.sound is None:
            unsaved = Unsaved(self.trainable, self.optimizer)
            self._run(count)
            unsaved.check()
            if distributed.size() > 1:
                distributed.check_memory(self.trainable.distiller)
        else:
            self._run(count)

    def _run(self, count: int) -> None:
        if self.capture and count not in self.graphs and self.eager_steps.get(count, 0) >= EAGER_FIRST:
            self._record(count)
        if count in self.graphs:
            self.graphs[count].replay()
            return
        if self.stream is None:
            self._train(count)
        else:  # a graph cannot be recorded on the stream that is current here, nor follow work left on it
            here = torch.cuda.current_stream(self.device)
            self.stream.wait_stream(here)
            with torch.cuda.stream(self.stream):
                self._train(count)
            here.wait_stream(self.stream)
        self.eager_steps[count] = self.eager_steps.get(count, 0) + 1

    def _record(self, count: int) -> None:
        graph = torch.cuda.CUDAGraph()
        here = torch.cuda.current_stream(self.device) if self.stream is not None else None
        held = Held(self.trainable, self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)
        try:
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                self._train(count)
        except Exception as error:  # code of a method may fail here and work without a graph
            if here is not None:
                torch.cuda.set_stream(here)  # the recording's stream stays current if its end fails
            held.restore()
            self._give_up(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
            return
        replaced = held.restore()
        if replaced:  # replays would always read the tensor of the recording
            self._give_up(f"{replaced[0]} is replaced in every step, and a graph needs it changed in place")
            return
        self.graphs[count] = graph

    def _give_up(self, reason: str) -> None:
        self.capture = False
        self.optimizer.zero_grad(set_to_none=True)
        LOG.warning("no CUDA graph, steps run one by one: %s", reason)

    def _train(self, count: int) -> None:
        given = self.data.next(count)
        count = len(given.target)  # fewer, where images could not be read
        teacher = self.teacher(given.images, given.index) if self.teacher is not None else None
        try:
            batch = Batch(index=given.index, target=given.target, epoch=self.epoch)
            strong = None
            if given.strong is not None:
                assert self.teacher is not None
                strong = given.strong, self.teacher.uncached(given.strong)
            outcome, logits = self.trainable(given.images, teacher, batch, strong)
        except ValueError as error:
            if count > 1 or not str(error).startswith("Expected more than 1 value per channel"):
                raise
            raise EdkdError(
                f"the last batch of {len(self.data)} images has one alone, which batch norm cannot take here: "
                f"change schedule.batch_size (now {self.batch_size})"
            ) from error
        except (AttributeError, TypeError, IndexError) as error:
            method = self.trainable.distiller
            if method.needs_feats or not (isinstance(error, IndexError) or "NoneType" in str(error)):
                raise
            where = traceback.extract_tb(error.__traceback__)[-1]
            raise EdkdError(
                f"{type(method).__name__}: {error} ({where.filename}:{where.lineno}); if that is of a prediction: it "
                "has logits alone unless the class of the method declares needs_feats = True, and there is no "
                "teacher's with needs_teacher = False"
            ) from error
        if self.sound is None:
            check_outcome(outcome, self.trainable.distiller, count)
        losses = torch.stack([loss.detach() for loss in outcome.losses.values()])
        loss = self._minimise(outcome.losses)
        hits = logits.argmax(1) == given.target
        if self.sound is None or self.sound_steps is None:
            self.loss_names = list(outcome.losses)
            self.sound = torch.ones_like(losses, dtype=torch.bool)
            self.sound_steps = torch.zeros_like(losses, dtype=torch.int64)
        self.sound.logical_and_(losses.isfinite())
        self.sound_steps.add_(self.sound)
        parts = {f"train/loss_{name}": value for name, value in outcome.losses.items()}
        self.meter.add(count, {"train/loss": loss, **parts, **outcome.metrics}, {"train/top1": hits})
        if outcome.by_class is not None:
            self.class_meter.add(given.target, logits.shape[1], outcome.by_class)

    def _minimise(self, named: dict[str, Tensor]) -> Tensor:
        """Take one step down the losses; returns their sum."""
        if self.share == 1.0:
            return self.optimizer.minimise(named)
        # Losses are means over a process's part; this weight makes the summed gradient that of the whole batch.
        summed: Tensor = self.optimizer.minimise({name: self.share * loss for name, loss in named.items()})
        return summed / self.share

    def first_unsound(self, steps: int) -> tuple[int, list[str]]:
        """The first step of the epoch at which a loss was not finite, from 1, and which losses; (0, []) for none."""
        assert self.sound_steps is not None
        counts = distributed.least(self.sound_steps).tolist()
        first = min(counts)
        guilty = [name for name, n in zip(self.loss_names, counts, strict=True) if n == first < steps]
        return (first + 1, guilty) if guilty else (0, [])

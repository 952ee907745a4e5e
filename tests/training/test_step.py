"""The step: what it reads stays in place, a recording replays it bit for bit, and what cannot be recorded runs."""

import contextlib
import logging
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from edkd import models
from edkd.data.arrays import Split
from edkd.data.resident import ResidentData
from edkd.distillers.base import Batch, Distiller, Outcome
from edkd.distillers.dkd import DKD
from edkd.distillers.edkd import EDKD
from edkd.distillers.kd import KD
from edkd.distillers.vanilla import Vanilla
from edkd.errors import EdkdError
from edkd.models.base import Prediction
from edkd.teachers.source import OnlineTeacher, Precision
from edkd.training.optimizers import SGD
from edkd.training.step import Step
from edkd.training.trainer import Schedule, TrainState, seeded, train_epoch
from tests.training.test_trainer import make_state, stepping

CPU = torch.device("cpu")
CUDA = pytest.param(torch.device("cuda"), marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))
SCHEDULE = Schedule(
    epochs=6, batch_size=16, lr=0.05, momentum=0.9, weight_decay=5e-4, milestones=[2], gamma=0.1, warmup_epochs=2
)
METHODS: dict[str, Any] = {
    "vanilla": Vanilla,
    "kd": lambda: KD(ce_weight=0.1, kd_weight=0.9, temperature=4.0),
    "dkd": lambda: DKD(ce_weight=1.0, alpha=1.0, beta=2.0, temperature=4.0, warmup_epochs=4),
    "edkd": lambda: EDKD(ce_weight=1.0, alpha=1.0, beta=2.0, temperature=4.0, warmup_epochs=4, weighting="batch"),
}


def images(device: torch.device, count: int = 88) -> ResidentData:
    stream = np.random.default_rng(0)
    split = Split(stream.integers(0, 255, (count, 8, 8, 3)).astype(np.uint8), np.arange(count, dtype=np.int64) % 5)
    return ResidentData(split, mean=[0.4] * 3, std=[0.3] * 3, padding=1, flip=True, device=device, channels_last=True)


def started(method: Distiller, device: torch.device, *, capture: bool, name: str = "fp32") -> tuple[TrainState, Step]:
    precision = Precision(name, device)
    with seeded(1, 0, device):
        student = models.resnet8(num_classes=5).to(device=device, memory_format=torch.channels_last)
        network = models.resnet8(num_classes=5).to(device=device, memory_format=torch.channels_last)
    method = method.to(device)
    progress = make_state(student, method, SCHEDULE, precision)
    teacher = OnlineTeacher(network, want_feats=False, precision=precision) if method.needs_teacher else None
    return progress, stepping(progress, teacher, images(device), capture=capture)


def train(progress: TrainState, step: Step, epochs: int) -> list[dict[str, float]]:
    told = []
    for _ in range(epochs):
        told.append(train_epoch(progress, step, SCHEDULE, seed=0))
        progress.epoch += 1
    return told


def addresses(progress: TrainState, step: Step) -> list[int]:
    """Where everything lies that a recording reads or writes."""
    assert step.sound is not None and step.sound_steps is not None
    data = step.data
    assert isinstance(data, ResidentData)
    memory = [entry["momentum_buffer"] for entry in progress.optimizer.state.values()]
    inputs = [data.order, data.views, data.position, step.epoch, step.sound, step.sound_steps]
    rates = [group["lr"] for group in progress.optimizer.param_groups]
    tensors = [*progress.student.parameters(), *memory, *inputs, *rates, *step.meter.sums.values()]
    assert step.class_meter.sums is not None
    tensors += [step.class_meter.sums]
    return [tensor.data_ptr() for tensor in tensors]


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_nothing_that_a_recording_holds_moves_between_epochs(device: torch.device) -> None:
    progress, step = started(METHODS["edkd"](), device, capture=False)
    train(progress, step, 1)
    before = addresses(progress, step)
    train(progress, step, 2)
    assert addresses(progress, step) == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", METHODS)
def test_a_recorded_step_gives_the_bits_of_an_eager_one(method: str, precision: str) -> None:
    """Five epochs: the whole batches are recorded in the first, the last and smaller one in the fourth."""
    results = []
    for capture in (False, True):
        progress, step = started(METHODS[method](), torch.device("cuda"), capture=capture, name=precision)
        told = train(progress, step, 5)
        assert sorted(step.graphs) == ([8, 16] if capture else [])
        results.append((told, step.class_meter.read(), progress.state()))
    (eager, by_class, weights), (recorded, same_by_class, same_weights) = results
    assert recorded == eager
    assert same_by_class == by_class
    for name, value in weights["model"].items():
        assert torch.equal(value, same_weights["model"][name]), name


class AllRight(Distiller):
    """A method that predicts each image's class from modules of its own."""

    needs_teacher = False

    def forward(self, student: Prediction, teacher: Prediction | None, batch: Batch) -> Outcome:
        ce = torch.nn.functional.cross_entropy(student.logits, batch.target)
        return Outcome({"ce": ce}, {}, torch.nn.functional.one_hot(batch.target, 5).float())


def test_training_accuracy_is_that_of_what_the_method_predicts() -> None:
    (metrics,) = train(*started(AllRight(), CPU, capture=False), 1)
    assert metrics["train/top1"] == 100


class ReadsBack(Distiller):
    """A method that waits for the device in every step."""

    needs_teacher = False

    def forward(self, student: Prediction, teacher: Prediction | None, batch: Batch) -> Outcome:
        loss = torch.nn.functional.cross_entropy(student.logits, batch.target)
        return Outcome({"ce": loss * (1.0 if float(loss.detach()) > 0 else 2.0)}, {})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_what_cannot_be_recorded_runs_step_by_step_on_cuda(caplog: pytest.LogCaptureFixture) -> None:
    expected = train(*started(ReadsBack(), torch.device("cuda"), capture=False), epochs=3)
    with caplog.at_level(logging.WARNING, logger="edkd"):
        assert train(*started(ReadsBack(), torch.device("cuda"), capture=True), epochs=3) == expected
    assert len(caplog.records) == 1


class Remembers(Distiller):
    """A method whose memory is a buffer that it changes in place, or replaces."""

    needs_teacher = False
    center: Tensor

    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place
        self.register_buffer("center", torch.zeros(5))

    def forward(self, student: Prediction, teacher: Prediction | None, batch: Batch) -> Outcome:
        mean = student.logits.detach().mean(0)
        if self.in_place:
            self.center.lerp_(mean, 0.1)
        else:
            self.center = self.center.lerp(mean, 0.1)
        loss = torch.nn.functional.cross_entropy(student.logits - self.center, batch.target)
        return Outcome({"ce": loss}, {"mine/center": self.center.norm()})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("in_place", [True, False])
def test_a_memory_is_kept_recorded_or_not(in_place: bool, caplog: pytest.LogCaptureFixture) -> None:
    expected = train(*started(Remembers(in_place=in_place), torch.device("cuda"), capture=False), epochs=5)
    progress, step = started(Remembers(in_place=in_place), torch.device("cuda"), capture=True)
    with caplog.at_level(logging.WARNING, logger="edkd"):
        assert train(progress, step, 5) == expected
    assert sorted(step.graphs) == ([8, 16] if in_place else [])
    assert ("Remembers.center is replaced in every step" in caplog.text) != in_place


def _replace_buffer(progress: TrainState) -> None:
    progress.distiller.center = torch.full((5,), 7.0)


def _replace_momentum(progress: TrainState) -> None:
    for state in progress.optimizer.state.values():
        state["momentum_buffer"] = torch.full_like(state["momentum_buffer"], 7.0)


def _count_in_optimizer(progress: TrainState) -> None:
    for group in progress.optimizer.param_groups:
        group["momentum"] += 0.05


@pytest.mark.parametrize(
    ("replace", "name"),
    [
        (_replace_buffer, "Remembers.center"),
        (_replace_momentum, "SGD.momentum_buffer"),
        (_count_in_optimizer, "SGD.momentum"),
    ],
)
def test_a_memory_that_is_replaced_is_not_recorded(
    replace: Callable[[TrainState], None], name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With a recording that runs the Python code upon copies, as one on a GPU computes nothing."""
    expected = train(*started(Remembers(in_place=False), CPU, capture=False), epochs=3)
    progress, step = started(Remembers(in_place=False), CPU, capture=True)
    step.capture = True
    recorded: list[int] = []

    def forward(count: int) -> None:
        recorded.append(count)
        replace(progress)

    whole = step._train
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: None)
    monkeypatch.setattr(torch.cuda, "graph", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(step, "_record", lambda count: _record_by(step, forward, whole, count))
    with caplog.at_level(logging.WARNING, logger="edkd"):
        assert train(progress, step, 3) == expected
    assert recorded == [16] and not step.graphs and not step.capture
    assert [record.getMessage() for record in caplog.records] == [
        f"no CUDA graph, steps run one by one: {name} is replaced in every step, and a graph needs it changed in place"
    ]


def _record_by(step: Step, forward: Any, whole: Any, count: int) -> None:
    step._train = forward
    try:
        Step._record(step, count)
    finally:
        step._train = whole


def test_a_failed_recording_is_told_once_and_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a GPU the recording fails for want of one, which is a failure like any other."""

    def refuse(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nCompile with `TORCH_USE_CUDA_DSA`")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: None)
    monkeypatch.setattr(torch.cuda, "graph", refuse)
    expected = train(*started(METHODS["dkd"](), CPU, capture=False), epochs=3)
    progress, step = started(METHODS["dkd"](), CPU, capture=True)
    assert not step.capture, "there is nothing to record without a GPU"
    step.capture = True
    with caplog.at_level(logging.WARNING, logger="edkd"):
        assert train(progress, step, 3) == expected
    assert [record.getMessage() for record in caplog.records] == [
        "no CUDA graph, steps run one by one: RuntimeError: operation not permitted when stream is capturing "
        "Compile with `TORCH_USE_CUDA_DSA`"
    ]


def test_recordings_are_made_by_batch_size_after_some_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a graph that repeats the Python code, recorded steps must be the same steps: none lost, none done twice."""
    holder: list[Step] = []

    class Graph:
        count = 0

        def replay(self) -> None:
            holder[0]._train(self.count)

    class Recording:
        def __init__(self, graph: Graph, **options: Any) -> None:
            self.graph = graph

        def __enter__(self) -> None:
            monkeypatch.setattr(holder[0], "_train", self.note)

        def __exit__(self, *error: Any) -> None:
            monkeypatch.setattr(holder[0], "_train", Step._train.__get__(holder[0]))

        def note(self, count: int) -> None:
            self.graph.count = count

    expected = train(*started(METHODS["edkd"](), CPU, capture=False), epochs=5)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", Recording)
    progress, step = started(METHODS["edkd"](), CPU, capture=True)
    holder.append(step)
    step.capture = True
    assert train(progress, step, 5) == expected
    assert {count: graph.count for count, graph in step.graphs.items()} == {8: 8, 16: 16}  # type: ignore[attr-defined]


def test_the_meter_begins_again_in_the_same_tensors() -> None:
    progress, step = started(Vanilla(), CPU, capture=False)
    first, second = train(progress, step, 2)
    alone, fresh = started(Vanilla(), CPU, capture=False)
    train_epoch(alone, fresh, SCHEDULE, seed=0)
    alone.epoch, fresh = 1, stepping(alone, None, images(CPU))
    assert train_epoch(alone, fresh, SCHEDULE, seed=0) == second
    assert first != second


def test_views_follow_the_order() -> None:
    """Image i is seen in the view that belongs to it, wherever it stands in the epoch."""
    data, seen = images(CPU), set()

    class Spy:
        def begin_epoch(self, views: Tensor) -> None:
            self.views = views.clone()

        def __call__(self, images: Tensor, index: Tensor) -> Prediction:
            assert torch.equal(images, data.augmented(index, self.views[index]))
            seen.update(index.tolist())
            return Prediction(torch.zeros(len(index), 5))

    progress, _ = started(METHODS["kd"](), CPU, capture=False)
    train_epoch(progress, stepping(progress, Spy(), data), SCHEDULE, seed=0)
    assert seen == set(range(88))


class Greedy(Distiller):
    """A method that does not say that it needs features."""

    def forward(self, student: Prediction, teacher: Prediction | None, batch: Batch) -> Outcome:
        return Outcome({"ce": student.pooled_feat.sum()}, {})


def test_a_method_that_does_not_declare_its_need_of_features_is_told() -> None:
    progress, step = started(Greedy(), CPU, capture=False)
    with pytest.raises(
        EdkdError, match="^Greedy: 'NoneType' object has no attribute 'sum' .*test_step.py:.* declares needs_feats"
    ):
        train_epoch(progress, step, SCHEDULE, seed=0)


class Forgetful(Distiller):
    """A method that keeps something in a wrong place, or in the right one."""

    needs_teacher = False

    def __init__(self, place: str) -> None:
        super().__init__()
        self.place = place
        self.table = torch.ones(5)  # a constant may be a plain tensor
        self.seen = torch.zeros(5)
        self.queue: deque[Tensor] = deque(maxlen=2)
        self.steps, self.parts = 0, dict[str, torch.nn.Module]()
        self.register_buffer("memory", torch.zeros(5))
        self.register_buffer("passing", torch.zeros(5), persistent=False)
        self.state = torch.zeros(5)
        self.levels = {"low": [torch.zeros(5)], "high": [torch.zeros(5)]}

    def forward(self, student: Prediction, teacher: Prediction | None, batch: Batch) -> Outcome:
        mean = student.logits.detach().mean(0) * self.table
        match self.place:
            case "module":
                self.scale = getattr(self, "scale", None) or torch.nn.Linear(5, 5)
            case "new buffer":
                self.register_buffer("average", mean)
            case "replaced":
                self.seen = mean
            case "in place":
                self.seen += mean
            case "queue":
                self.queue.append(mean)
            case "counter":
                self.steps += 1
            case "module in a dict":
                self.parts["scale"] = torch.nn.Linear(5, 5)
            case "named as an optimiser's state":
                self.state += mean
            case "temporary buffer":
                self.passing += mean
            case "container in a container":
                self.levels["high"][0] += mean
            case "buffer":
                self.memory += mean
        return Outcome({"ce": torch.nn.functional.cross_entropy(student.logits, batch.target)}, {})


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("module", "the parameter distiller.scale.weight was made in the first training step"),
        ("new buffer", "the buffer distiller.average was made in the first training step"),
        ("replaced", r"a training step changes distiller\.seen \(Tensor\), which no checkpoint holds"),
        ("in place", r"a training step changes distiller\.seen \(Tensor\), which no checkpoint holds"),
        ("queue", r"a training step changes distiller\.queue \(Tensor\), which no checkpoint holds"),
        ("counter", r"a training step changes distiller\.steps \(int\), which no checkpoint holds"),
        ("module in a dict", r"a training step changes distiller\.parts \(Linear\), which no checkpoint holds"),
        ("named as an optimiser's state", r"a training step changes distiller\.state \(Tensor\), which no checkpoint"),
        ("temporary buffer", r"a training step changes distiller\.passing \(Tensor\), which no checkpoint holds"),
        (
            "container in a container",
            r"a training step changes distiller\.levels \(Tensor\), which no checkpoint holds",
        ),
        ("buffer", ""),
    ],
)
def test_what_a_method_keeps_where_no_checkpoint_finds_it_is_refused(place: str, message: str) -> None:
    progress, step = started(Forgetful(place), CPU, capture=False)
    with pytest.raises(EdkdError, match=message) if message else contextlib.nullcontext():
        train(progress, step, 1)


class Looking(SGD):
    """An optimiser that counts its steps in a plain attribute, or in its state."""

    def __init__(self, params: Any, *, place: str, **options: Any) -> None:
        super().__init__(params, **options)
        self.place, self.steps = place, 0

    def minimise(self, losses: Mapping[str, Tensor]) -> Tensor:
        if self.place == "attribute":
            self.steps += 1
        else:
            for group in self.param_groups:
                self.state[group["params"][0]].setdefault("steps", torch.zeros(())).add_(1)
        return super().minimise(losses)


@pytest.mark.parametrize("place", ["attribute", "state"])
def test_what_an_optimiser_keeps_where_no_checkpoint_finds_it_is_refused(place: str) -> None:
    progress, step = started(Vanilla(), CPU, capture=False)
    groups = progress.optimizer.param_groups
    step.optimizer = Looking(
        [parameter for group in groups for parameter in group["params"]],
        place=place, lr=groups[0]["lr"], momentum=0.9, weight_decay=0.0,
    )  # fmt: skip
    told = pytest.raises(EdkdError, match=r"^a training step changes optimizer\.steps \(int\)")
    with told if place == "attribute" else contextlib.nullcontext():
        train(progress, step, 1)

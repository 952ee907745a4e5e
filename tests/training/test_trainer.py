"""The loop: exact means, and exact repetition."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edkd import models
from edkd.data.arrays import Split
from edkd.data.resident import ResidentData
from edkd.data.views import epoch_order, epoch_views, n_views
from edkd.distillers import Batch, Distiller, Outcome
from edkd.distillers.dkd import DKD
from edkd.distillers.edkd import EDKD
from edkd.distillers.kd import KD
from edkd.distillers.vanilla import Vanilla
from edkd.errors import EdkdError
from edkd.models.base import Prediction
from edkd.rundir import checkpoint
from edkd.teachers.source import OnlineTeacher, Precision
from edkd.training import evaluation, trainer
from edkd.training.evaluation import evaluate, measure
from edkd.training.meters import ClassMeter
from edkd.training.optimizers import SGD
from edkd.training.step import Step, Trainable
from edkd.training.trainer import Schedule, Splits, TrainState, fit, seeded, train_epoch

CPU = torch.device("cpu")
FP32, BF16 = Precision("fp32", CPU), Precision("bf16", CPU)
CLASSES = 6
SCHEDULE = Schedule(
    epochs=3, batch_size=16, lr=0.05, momentum=0.9, weight_decay=5e-4, milestones=[2], gamma=0.1, warmup_epochs=2
)


def images(count: int, *, seed: int = 0, classes: int = CLASSES, padding: int = 1) -> ResidentData:
    """Noise with a trace of its label, so that there is something to learn."""
    stream = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int64) % classes
    pixels = stream.integers(0, 200, (count, 8, 8, 3)) + 9 * labels[:, None, None, None]
    split = Split(pixels.astype(np.uint8), labels)
    return ResidentData(
        split, mean=[0.4] * 3, std=[0.3] * 3, padding=padding, flip=False, device=CPU, channels_last=False
    )


def splits(*, validation: bool = False) -> Splits:
    return Splits(images(40), images(18, seed=1, padding=0) if validation else None, images(24, seed=2, padding=0))


def progress(distiller: Distiller | None = None, *, seed: int = 0, student: nn.Module | None = None) -> TrainState:
    if student is None:
        with seeded(seed, 0, CPU):
            student = models.resnet8(num_classes=CLASSES)
    distiller = distiller or Vanilla()
    return make_state(student, distiller, SCHEDULE)


def make_state(student: nn.Module, distiller: Distiller, schedule: Schedule, precision: Precision = FP32) -> TrainState:
    trainable = Trainable(student, distiller, precision)
    lr = torch.tensor(schedule.lr, device=precision.device)
    optimizer = SGD(trainable.parameters(), lr=lr, momentum=schedule.momentum, weight_decay=schedule.weight_decay)
    return TrainState(trainable, optimizer)


def stepping(made: TrainState, source: Any, data: ResidentData, *, capture: bool = False) -> Step:
    return Step(made.trainable, made.optimizer, source, data, batch_size=SCHEDULE.batch_size, capture=capture)


def teacher(*, want_feats: bool = False, precision: Precision = FP32) -> OnlineTeacher:
    with seeded(99, 0, CPU):
        return OnlineTeacher(models.resnet8(num_classes=CLASSES), want_feats=want_feats, precision=precision)


def dkd() -> Distiller:
    return DKD(ce_weight=1.0, alpha=1.0, beta=2.0, temperature=4.0, warmup_epochs=2)


def edkd() -> Distiller:
    return EDKD(ce_weight=1.0, alpha=1.0, beta=2.0, temperature=4.0, warmup_epochs=2, weighting="batch")


def trained(made: TrainState, source: Any = None, **options: Any) -> list[tuple[dict[str, Any], bool]]:
    """Fit to the end; what `on_epoch` was told."""
    told: list[tuple[dict[str, Any], bool]] = []
    arguments: dict[str, Any] = {"data": splits(), "schedule": SCHEDULE, "seed": 0, "capture": False, **options}
    made.trainable.precision = arguments.pop("precision", FP32)
    fit(made, source, on_epoch=lambda record, improved: told.append((record, improved)), **arguments)
    return told


def same(left: Any, right: Any) -> bool:
    """Whether two nested states are equal bit for bit."""
    if isinstance(left, Tensor):
        return isinstance(right, Tensor) and left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


# --- schedule ---


def test_the_rate_falls_after_its_milestones() -> None:
    recipe = Schedule(240, 64, 0.05, 0.9, 5e-4, [150, 180, 210], 0.1, 20)
    expected = {1: 0.05, 150: 0.05, 151: 5e-3, 180: 5e-3, 181: 5e-4, 210: 5e-4, 211: 5e-5, 240: 5e-5}
    assert {epoch: recipe.rate(epoch) for epoch in expected} == pytest.approx(expected, rel=1e-12)


def test_the_rate_of_the_epoch_reaches_the_optimiser_as_the_same_tensor() -> None:
    made = progress()
    tensor = made.optimizer.param_groups[0]["lr"]
    rates = [record["metrics"]["lr"] for record, _ in trained(made)]
    assert rates == pytest.approx([0.05, 0.05, 0.005])
    assert made.optimizer.param_groups[0]["lr"] is tensor
    assert tensor.item() == pytest.approx(0.005)


# --- what an epoch reports ---


class Recorder(Distiller):
    """Cross-entropy that remembers each batch it saw."""

    needs_teacher = False

    def __init__(self) -> None:
        super().__init__()
        self.record = SimpleNamespace(seen=[], values=[])  # an object, for a container would be refused as state

    def forward(self, student: Prediction, teacher: Prediction | None, batch: Batch) -> Outcome:
        ce = F.cross_entropy(student.logits, batch.target)
        penalty = student.logits.square().mean() * 0.01
        self.record.seen.append((batch.index.clone(), batch.target.clone(), batch.epoch.item()))
        hits = (student.logits.argmax(1) == batch.target).sum().item()
        self.record.values.append((len(batch.index), ce.item(), hits))
        return Outcome({"ce": ce, "penalty": penalty}, {"mine/norm": student.logits.detach().norm()})


def test_metrics_are_means_over_images_with_the_smaller_last_batch() -> None:
    made = progress(Recorder())
    metrics = train_epoch(made, stepping(made, None, images(40)), SCHEDULE, seed=0)
    values = made.distiller.record.values
    assert [count for count, _, _ in values] == [16, 16, 8]
    assert metrics["train/loss_ce"] == pytest.approx(sum(n * ce for n, ce, _ in values) / 40, rel=1e-12)
    assert metrics["train/top1"] == sum(hits for _, _, hits in values) * 100 / 40
    assert metrics["train/loss"] == pytest.approx(metrics["train/loss_ce"] + metrics["train/loss_penalty"], rel=1e-6)
    assert set(metrics) == {"train/loss", "train/loss_ce", "train/loss_penalty", "train/top1", "mine/norm", "lr"}


def test_an_epoch_visits_every_image_once_in_the_order_and_view_of_seed_and_epoch() -> None:
    made, data, used = progress(Recorder()), images(40), []
    augmented = data.augmented
    data.augmented = lambda index, view: used.append(view.clone()) or augmented(index, view)
    made.epoch = 4
    train_epoch(made, stepping(made, None, data), SCHEDULE, seed=3)
    index = torch.cat([index for index, _, _ in made.distiller.record.seen])
    assert torch.equal(index, torch.from_numpy(epoch_order(3, 5, 40)))
    assert torch.equal(torch.cat(used), torch.from_numpy(epoch_views(3, 5, 40, n_views(1, False)))[index])
    assert torch.equal(torch.cat([target for _, target, _ in made.distiller.record.seen]), data.targets(index))
    assert {epoch for _, _, epoch in made.distiller.record.seen} == {5.0}


def test_steps_are_counted() -> None:
    told: list[tuple[int, int]] = []
    made = progress()
    train_epoch(made, stepping(made, None, images(40)), SCHEDULE, seed=0, on_step=lambda *step: told.append(step[:2]))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_the_record_of_an_epoch() -> None:
    told = trained(progress(edkd()), teacher(), data=splits(validation=True))
    assert [record["epoch"] for record, _ in told] == [1, 2, 3]
    for record, _ in told:
        assert record["event"] == "epoch"
        assert set(record["metrics"]) == {
            *("train/loss", "train/loss_ce", "train/loss_kd", "train/top1", "edkd/beta_mean", "edkd/confidence_mean"),
            *("lr", "test/top1", "test/top5", "test/loss", "val/top1", "val/top5", "val/loss"),
        }
        assert all(type(value) is float for value in record["metrics"].values())
        assert set(record["seconds"]) == {"train", "test"}
        assert record["images_per_second"] > 0


def test_values_by_class_are_means_over_the_images_of_each_class() -> None:
    told = trained(progress(edkd()), teacher())
    for record, _ in told:
        assert {name: len(values) for name, values in record["by_class"].items()} == {
            "beta": CLASSES,
            "confidence": CLASSES,
        }
        for name, values in record["by_class"].items():  # classes are equally many here
            mean = record["metrics"][f"edkd/{name}_mean"]
            assert sum(values) / CLASSES == pytest.approx(mean, abs=0.5 * 10**-ClassMeter.DECIMALS)
    assert "by_class" not in trained(progress(dkd()), teacher())[0][0]


def test_a_class_is_averaged_over_its_own_images() -> None:
    meter = ClassMeter()
    meter.add(torch.tensor([0, 2, 2]), 3, {"one": torch.tensor([1.0, 2.0, 3.0])})
    meter.add(torch.tensor([0]), 3, {"one": torch.tensor([4.0])})
    assert meter.read() == {"one": pytest.approx([2.5, math.nan, 2.5], nan_ok=True)}
    meter.reset()
    meter.add(torch.tensor([1]), 3, {"one": torch.tensor([7.0])})
    assert meter.read() == {"one": pytest.approx([math.nan, 7.0, math.nan], nan_ok=True)}


# --- evaluation ---


class Fixed(nn.Module):
    """A network that gives prepared logits, one row for each image in turn."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.rows, self.done = logits, 0

    def forward(self, x: Tensor, want_feats: bool = True) -> Prediction:
        assert not want_feats
        assert not self.training
        self.done += len(x)
        return Prediction(self.rows[self.done - len(x) : self.done])


def test_evaluation_in_percent_over_all_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(evaluation.EVALUATION_BATCH, "cpu", 4)
    logits = torch.randn(10, 6, generator=torch.Generator().manual_seed(0))
    target = torch.arange(10) % 6
    logits[torch.arange(0, 10, 3), target[::3]] += 5
    place = (logits.argsort(1, descending=True) == target[:, None]).float().argmax(1)
    found = evaluate(Fixed(logits), images(10, padding=0), FP32)
    assert found["top1"] == pytest.approx((place == 0).sum().item() * 10)
    assert found["top5"] == pytest.approx((place < 5).sum().item() * 10)
    assert found["loss"] == pytest.approx(F.cross_entropy(logits, target).item(), rel=1e-6)
    assert 0 < found["top1"] < found["top5"] < 100


def test_equally_many_hits_are_the_same_percentage_in_every_digit() -> None:
    target = torch.arange(359) % 6
    found = set()
    for seed in range(5):  # 65 hits, spread over the batches of 100 in different ways
        hit = torch.randperm(359, generator=torch.Generator().manual_seed(seed))[:65]
        logits = F.one_hot((target + 1) % 6, 6).float()
        logits[hit] = F.one_hot(target[hit], 6).float()
        found.add(evaluate(Fixed(logits), images(359, padding=0), FP32)["top1"])
    assert found == {6500 / 359}


def test_how_near_a_student_is_to_its_teacher_and_how_calibrated() -> None:
    data, stream = images(250, padding=0), np.random.default_rng(3)  # more than two batches
    student, taught = (torch.from_numpy(stream.normal(0, 3, (250, CLASSES))).float() for _ in range(2))
    rows = iter(student.split(100))
    found = measure(lambda batch: next(rows), data, CPU, taught)
    p, q = (each.double().softmax(1).numpy() for each in (taught, student))
    assert found["kl_teacher"] == pytest.approx((p * np.log(p / q)).sum(1).mean(), rel=1e-5)
    assert found["agreement"] == pytest.approx(100 * (p.argmax(1) == q.argmax(1)).mean())
    confidence, hit = q.max(1), q.argmax(1) == np.arange(250) % CLASSES
    bins = [(confidence > i / 15) & (confidence <= (i + 1) / 15) for i in range(15)]
    error = sum(abs(confidence[each].mean() - hit[each].mean()) * each.mean() for each in bins if each.any())
    assert found["ece"] == pytest.approx(100 * error, rel=1e-5)
    itself = measure(lambda batch: taught[: len(batch)], images(100, padding=0), CPU, taught[:100])
    assert (itself["agreement"], itself["kl_teacher"]) == (100, 0)
    assert set(measure(lambda batch: taught[: len(batch)], images(100, padding=0), CPU)) == {"loss", "top1", "top5"}


def test_top5_of_fewer_than_five_classes_counts_all() -> None:
    logits = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
    found = evaluate(Fixed(logits), images(9, classes=3, padding=0), FP32)
    assert found["top5"] == 100.0
    assert found["top1"] < 100.0


def test_evaluation_changes_no_weight_and_no_statistic() -> None:
    network = models.resnet8(num_classes=CLASSES).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert evaluate(network, images(20), FP32) == evaluate(network, images(20), FP32)
    assert same(network.state_dict(), before)


# --- repetition ---


@pytest.mark.parametrize("precision", [FP32, BF16], ids=["fp32", "bf16"])
def test_the_same_seed_gives_the_same_bits(precision: Precision) -> None:
    first, second = progress(edkd()), progress(edkd())
    told = [trained(each, teacher(precision=precision), precision=precision) for each in (first, second)]
    assert same(first.state(), second.state())
    assert [record["metrics"] for record, _ in told[0]] == [record["metrics"] for record, _ in told[1]]
    other = progress(edkd())
    trained(other, teacher(precision=precision), precision=precision, seed=1)
    assert not same(first.student.state_dict(), other.student.state_dict())


def test_the_methods_of_one_seed_share_initial_weights_order_and_views(monkeypatch: pytest.MonkeyPatch) -> None:
    made = {"vanilla": Vanilla(), "kd": KD(ce_weight=0.1, kd_weight=0.9, temperature=4.0), "dkd": dkd(), "edkd": edkd()}
    batches: dict[str, list[Tensor]] = {}
    weights: dict[str, dict[str, Tensor]] = {}
    original = ResidentData.augmented
    for name, distiller in made.items():
        seen = batches[name] = []

        def spying(self: ResidentData, index: Tensor, view: Tensor, seen: list[Tensor] = seen) -> Tensor:
            seen.append(original(self, index, view))
            return seen[-1]

        monkeypatch.setattr(ResidentData, "augmented", spying)
        run = progress(distiller, seed=5)
        weights[name] = {key: value.clone() for key, value in run.student.state_dict().items()}
        trained(run, teacher() if distiller.needs_teacher else None, seed=5)
    assert all(same(weights[name], weights["vanilla"]) for name in made)
    assert len(batches["vanilla"]) == 9
    assert all(same(batches[name], batches["vanilla"]) for name in made)
    assert not torch.equal(batches["vanilla"][0], batches["vanilla"][3])  # another epoch, another order


class Dropping(nn.Module):
    """A network that draws random numbers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(192, 20), nn.ReLU(), nn.Dropout(0.5), nn.Linear(20, CLASSES)
        )

    def forward(self, x: Tensor, want_feats: bool = True) -> Prediction:
        return Prediction(self.layers(x))


def dropping() -> TrainState:
    with seeded(0, 0, CPU):
        return progress(student=Dropping())


def test_an_epoch_repeats_bit_for_bit_even_if_the_network_draws() -> None:
    whole = dropping()
    trained(whole)
    torch.manual_seed(1234)  # whatever happened in between
    torch.rand(7)
    resumed = dropping()
    trained(resumed, schedule=Schedule(**vars(SCHEDULE) | {"epochs": 1}))
    torch.rand(3)
    again = dropping()
    again.restore(resumed.state())
    trained(again)
    assert same(again.state(), whole.state())


def test_a_resumed_run_without_momentum_has_the_same_state() -> None:
    schedule = Schedule(**vars(SCHEDULE) | {"momentum": 0.0})

    def made() -> TrainState:
        progressing = dropping()
        return make_state(progressing.student, progressing.distiller, schedule)

    whole, half, again = made(), made(), made()
    trained(whole, schedule=schedule)
    trained(half, schedule=Schedule(**vars(schedule) | {"epochs": 1}))
    again.restore(half.state())
    trained(again, schedule=schedule)
    assert again.state()["optimizer"]["state"].keys() == whole.state()["optimizer"]["state"].keys()
    assert same(again.state(), whole.state())


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_a_run_continues_with_another_memory_layout(layout: torch.memory_format) -> None:
    whole, half, again = progress(), progress(), progress()
    again.student.to(memory_format=layout)
    half.student.to(memory_format=torch.channels_last)
    trained(whole)
    trained(half, schedule=Schedule(**vars(SCHEDULE) | {"epochs": 1}))
    again.restore(half.state())
    trained(again)
    for name, weight in again.student.state_dict().items():
        torch.testing.assert_close(weight, whole.student.state_dict()[name], rtol=1e-4, atol=1e-5)


def test_a_random_state_of_a_cpu_is_no_hindrance_on_a_gpu() -> None:
    kept = trainer._random_state(torch.device("cpu"))
    trainer._set_random_state(kept, torch.device("cuda"))
    assert torch.equal(torch.get_rng_state(), kept[0])


def test_training_leaves_the_random_state_outside_as_it_was() -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    trained(dropping())
    assert torch.equal(torch.rand(1), expected)


# --- the best epoch ---


@pytest.mark.parametrize(
    ("test", "validation", "best", "by", "improved"),
    [
        ([10, 30, 20], [], (2, 30), "test", [True, True, False]),
        ([30, 30, 30], [], (1, 30), "test", [True, False, False]),
        ([10, 30, 20], [50, 40, 60], (3, 20), "validation", [True, False, True]),
        ([10, 30, 20], [60, 60, 40], (1, 10), "validation", [True, False, False]),
    ],
)
def test_which_epoch_is_best(
    monkeypatch: pytest.MonkeyPatch,
    test: list[float],
    validation: list[float],
    best: tuple[int, float],
    by: str,
    improved: list[bool],
) -> None:
    made, data = progress(), splits(validation=bool(validation))
    results = {id(data.test): iter(test), id(data.validation): iter(validation)}

    def found(predict: Any, split: ResidentData, device: torch.device, teacher_logits: Any = None) -> dict[str, float]:
        top1 = next(results[id(split)])
        return {"top1": top1, "top5": top1 + 1, "loss": 1.0}

    monkeypatch.setattr(trainer, "measure", found)
    told = trained(made, data=data)
    assert made.best is not None
    assert (made.best["epoch"], made.best["top1"], made.best["top5"]) == (*best, best[1] + 1)
    assert made.best["by"] == by
    assert [flag for _, flag in told] == improved


# --- divergence ---


class Spoilt(Distiller):
    """One of two losses stops being finite at a step of epoch 2."""

    needs_teacher = False
    steps: Tensor

    def __init__(self, values: dict[str, float]) -> None:
        super().__init__()
        self.values = values
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, student: Prediction, teacher: Prediction | None, batch: Batch) -> Outcome:
        self.steps += 1
        losses = {"ce": F.cross_entropy(student.logits, batch.target), "extra": student.logits.square().mean()}
        if self.steps == 5:  # of 3 steps an epoch
            losses |= {name: losses[name] * value for name, value in self.values.items()}
        return Outcome(losses, {})


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"extra": float("nan")}, "epoch 2, step 2: train/loss_extra is not finite"),
        ({"ce": float("inf")}, "epoch 2, step 2: train/loss_ce is not finite"),
        (
            {"ce": float("nan"), "extra": float("inf")},
            "epoch 2, step 2: train/loss_ce, train/loss_extra are not finite",
        ),
    ],
)
def test_a_loss_that_is_not_finite_stops_the_run(values: dict[str, float], named: str) -> None:
    made = progress(Spoilt(values))
    with pytest.raises(EdkdError) as caught:
        trained(made)
    assert str(caught.value).startswith(named)
    assert "schedule.lr (now 0.05)" in str(caught.value)
    assert made.epoch == 1


def test_losses_whose_sum_is_too_large() -> None:
    class Large(Distiller):
        needs_teacher = False

        def forward(self, student: Prediction, teacher: Prediction | None, batch: Batch) -> Outcome:
            part = student.logits.sum() * 0 + 3e38
            return Outcome({"one": part, "two": part}, {})

    with pytest.raises(EdkdError, match=r"^epoch 1: train/loss is not finite: training diverged"):
        trained(progress(Large()))


# --- precision ---


def test_bf16_computes_in_bf16_and_keeps_fp32_weights_and_losses() -> None:
    seen: dict[str, Any] = {}

    class Looking(Distiller):
        needs_feats = True

        def forward(self, student: Prediction, teacher: Prediction | None, batch: Batch) -> Outcome:
            assert teacher is not None
            assert student.pooled_feat is not None
            tensors = [student.logits, teacher.logits, student.pooled_feat, *student.feats, *teacher.preact_feats]
            seen["dtypes"] = {tensor.dtype for tensor in tensors}
            return Outcome({"ce": F.cross_entropy(student.logits, batch.target)}, {})

    made = progress(Looking())
    made.student.conv1.register_forward_hook(lambda *arguments: seen.update(inside=arguments[-1].dtype))
    (told, *_) = trained(made, teacher(want_feats=True, precision=BF16), precision=BF16)
    assert seen == {"inside": torch.bfloat16, "dtypes": {torch.float32}}
    assert {value.dtype for value in made.student.state_dict().values()} == {torch.float32, torch.int64}
    momenta = [state["momentum_buffer"] for state in made.optimizer.state.values()]
    assert len(momenta) == len(list(made.student.parameters()))
    assert {momentum.dtype for momentum in momenta} == {torch.float32}
    plain = trained(progress(Vanilla()))[0][0]["metrics"]["train/loss"]
    assert told[0]["metrics"]["train/loss"] == pytest.approx(plain, rel=0.02)
    assert told[0]["metrics"]["train/loss"] != plain


# --- a method with modules of its own ---


class Connector(Distiller):
    """Learns to map a student's feature map to the teacher's (as FitNet does)."""

    needs_feats = True

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Conv2d(16, 16, 1)
        self.norm = nn.BatchNorm2d(16)

    def forward(self, student: Prediction, teacher: Prediction | None, batch: Batch) -> Outcome:
        assert teacher is not None
        hint = F.mse_loss(self.norm(self.map(student.feats[1])), teacher.feats[1])
        return Outcome({"ce": F.cross_entropy(student.logits, batch.target), "hint": hint}, {})


def connecting() -> TrainState:
    with seeded(0, -1, CPU):
        return progress(Connector())


@pytest.mark.parametrize("precision", [FP32, BF16], ids=["fp32", "bf16"])
def test_a_methods_own_parameters_are_trained_saved_and_resumed(tmp_path: Path, precision: Precision) -> None:
    whole, source = connecting(), teacher(want_feats=True, precision=precision)
    before = {name: value.clone() for name, value in whole.distiller.state_dict().items()}
    told = trained(whole, source, precision=precision)
    after = whole.distiller.state_dict()
    assert all(not torch.equal(after[name], before[name]) for name in before if name != "map.bias")
    hints = [record["metrics"]["train/loss_hint"] for record, _ in told]
    assert hints[-1] < hints[0]

    part = connecting()
    trained(part, source, precision=precision, schedule=Schedule(**vars(SCHEDULE) | {"epochs": 1}))
    checkpoint.save(part.state(), tmp_path / "checkpoint.pt")
    loaded = checkpoint.load(tmp_path / "checkpoint.pt")
    assert loaded is not None
    resumed = connecting()
    resumed.restore(loaded[0])
    assert resumed.epoch == 1
    trained(resumed, source, precision=precision)
    assert same(resumed.state(), whole.state())


def test_the_teacher_is_frozen_and_stays_as_it_is() -> None:
    source = teacher()
    network = source.network.train()
    source = OnlineTeacher(network, want_feats=False, precision=FP32)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    trained(progress(dkd()), source)
    assert same(network.state_dict(), before)
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("needed", [False, True])
def test_features_are_computed_for_methods_that_need_them_alone(needed: bool) -> None:
    asked: set[bool] = set()

    class Asking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = models.resnet8(num_classes=CLASSES)

        def forward(self, x: Tensor, want_feats: bool = True) -> Prediction:
            if self.training:
                asked.add(want_feats)
            prediction: Prediction = self.network(x, want_feats=want_feats)
            return prediction

    distiller = Connector() if needed else dkd()
    trained(progress(distiller, student=Asking()), teacher(want_feats=needed))
    assert asked == {needed}

"""The benchmark: that it compares like with like, and says what it measured. No test looks at a time."""

import csv
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from edkd.bench import costs, floor, modes, plain, results, table, turns, workload
from edkd.bench.modes import WAYS, Ours, Plain
from edkd.bench.results import Timing
from edkd.bench.workload import Workload
from edkd.config import instantiate
from edkd.config.schema import Network, Settings
from edkd.data.views import epoch_order, epoch_views, n_views
from edkd.distillers.base import Batch
from edkd.errors import EdkdError
from edkd.models.base import Prediction
from tests.commandline import Ended, edkd, error

CPU = torch.device("cpu")
DATA = ["dataset.image_size=8", "dataset.train_per_class=20", "dataset.test_per_class=10", "engine.device=cpu"]
SMALL = ["--pairs=resnet8-resnet8", "--threads=1", "-d", "digits", *DATA]
STEPS = 2


def given(method: str, *overrides: str) -> Settings:
    (cell,) = workload.cells(["resnet8-resnet8"], [method])
    return workload.settings(cell, "digits", [*DATA, *overrides])


@pytest.fixture(autouse=True)
def _torch_as_it_was() -> Iterator[None]:
    deterministic = torch.are_deterministic_algorithms_enabled()
    cudnn = torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = cudnn


@pytest.fixture
def make_work(tmp_path: Path) -> Callable[[Settings], Workload]:
    """A workload of `STEPS` batches of digits; the plain loop reads its batches in this process."""

    def made(settings: Settings) -> Workload:
        arrays, _ = workload.read_data(settings, asked=False)
        data = settings.dataset
        feed = plain.Feed(
            arrays.train, mean=data.mean, std=data.std, padding=data.padding, flip=data.flip,
            batch_size=settings.schedule.batch_size, workers=0, device=CPU,
        )  # fmt: skip
        part = workload.cut(arrays, batch=settings.schedule.batch_size, steps=STEPS)
        return Workload(arrays, part, CPU, 1, STEPS, tmp_path, feed)

    return made


# ---- like with like


@pytest.mark.parametrize("epoch", [1, 7, 40])
@pytest.mark.parametrize("method", ["kd", "dkd", "edkd", "edkd distiller.weighting=sample"])
def test_the_plain_losses_are_ours(method: str, epoch: int) -> None:
    distiller = given(*method.split()).distiller
    stream = torch.Generator().manual_seed(epoch)
    student, teacher = (3 * torch.randn(64, 100, generator=stream) for _ in range(2))
    target = torch.randint(100, (64,), generator=stream)
    logits = [student.clone().requires_grad_(), student.clone().requires_grad_()]

    theirs = plain.loss_of(distiller)(logits[0], teacher, target, epoch)
    batch = Batch(torch.arange(64), target, torch.tensor(float(epoch)))
    outcome = instantiate.build(distiller, "distiller")(Prediction(logits[1]), Prediction(teacher), batch)
    ours = torch.stack(list(outcome.losses.values())).sum()

    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)
    theirs.backward()
    ours.backward()
    torch.testing.assert_close(logits[0].grad, logits[1].grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", workload.METHODS)
def test_the_plain_loop_takes_the_steps_of_ours(method: str, make_work: Callable[[Settings], Workload]) -> None:
    settings = given(method)
    settings = replace(settings, schedule=replace(settings.schedule, lr=0.05))
    work = make_work(settings)
    ours = Ours(WAYS["warm"], settings, work)
    ours.ready()
    measured = ours.run()

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        count, size = len(ours.data), settings.schedule.batch_size
        order = torch.from_numpy(epoch_order(settings.seed, 1, count))
        views = torch.from_numpy(epoch_views(settings.seed, 1, count, n_views(ours.data.padding, ours.data.flip)))
        for index in order.split(size):
            yield ours.data.augmented(index, views[index]).contiguous(), ours.data.targets(index)

    theirs = Plain(settings, work)
    theirs.loop.batches = batches()
    averages = theirs.run()

    assert averages["loss"] == pytest.approx(measured["train/loss"], rel=1e-5)
    assert averages["top1"] == pytest.approx(measured["train/top1"])
    pairs = zip(theirs.student.parameters(), ours.progress.student.parameters(), strict=True)
    for mine, other in pairs:
        torch.testing.assert_close(mine, other.contiguous(), rtol=1e-4, atol=1e-5)


def test_the_plain_loop_sees_the_views_of_ours(make_work: Callable[[Settings], Workload]) -> None:
    settings = given("kd")
    work = make_work(settings)
    assert work.feed is not None
    data = Ours(WAYS["online"], settings, work).data
    images = work.feed.loader.dataset
    every = torch.arange(n_views(data.padding, data.flip))
    for index in range(20):
        image, label = images[index]
        assert label == work.arrays.train.labels[index]
        known = data.augmented(torch.full_like(every, index), every)
        assert (known == image).flatten(1).all(1).any(), "no view of ours is this image"


@pytest.mark.parametrize(("mode", "expected"), [("online", STEPS), ("cold", STEPS), ("warm", 0), ("bf16", 0)])
def test_how_often_the_teacher_runs(mode: str, expected: int, make_work: Callable[[Settings], Workload]) -> None:
    settings = given("kd")
    ours = Ours(WAYS[mode], settings, make_work(settings))
    calls: list[int] = []
    ours.teacher.register_forward_hook(lambda *_: calls.append(1))
    ours.fill()
    for _ in range(2):
        calls.clear()
        ours.ready()
        ours.run()
        assert len(calls) == expected


@pytest.mark.parametrize("mode", ["online", "cold", "warm", "bf16"])
def test_repetitions_are_the_same(mode: str, make_work: Callable[[Settings], Workload]) -> None:
    settings = given("edkd")
    ours = Ours(WAYS[mode], settings, make_work(settings))
    ours.fill()
    found = []
    for _ in range(2):
        ours.ready()
        found.append(ours.run())
    assert found[0] == found[1]


def test_a_step_that_was_to_be_captured_and_is_not_is_no_timing(make_work: Callable[[Settings], Workload]) -> None:
    settings = given("kd")
    work = make_work(settings)  # on a CPU, where nothing is captured
    with pytest.raises(modes.NotCapturedError, match="captured step: no CUDA graph was recorded"):
        turns.Here("captured", settings, work)
    turns.Here("warm", settings, work)


def test_the_methods_of_a_pair_share_a_table(make_work: Callable[[Settings], Workload]) -> None:
    work = make_work(given("kd"))
    Ours(WAYS["warm"], given("kd"), work).fill()
    second = Ours(WAYS["warm"], given("edkd"), work)
    second.teacher.register_forward_hook(lambda *_: pytest.fail("the table is full"))
    second.fill()


# ---- arithmetic


def timing(mode: str, seconds: list[float], pair: str = "p", method: str = "kd", batch: int = 64) -> Timing:
    return Timing(pair, method, mode, batch, seconds)


def test_medians_and_ratios() -> None:
    base, warm, apart = timing("plain", [0.4, 0.8, 0.6]), timing("warm", [0.1, 0.1, 0.3]), timing("warm", [1.0], "q")
    both = timing("together-2", [0.2, 0.2, 0.2], batch=128)
    results.compare([base, warm, apart, both])
    assert warm.ratios == pytest.approx([4, 8, 2])
    assert warm.ratio == pytest.approx(4)
    assert base.ratio == 1
    assert apart.ratio is None
    assert both.ratio == pytest.approx(6)  # twice the images, a third of the time
    assert warm.ms == pytest.approx(100)
    assert warm.quartiles == pytest.approx((100, 200))
    assert apart.quartiles == (1000, 1000)
    assert both.images_per_second == pytest.approx(640)
    warm.floor_ms = 25
    assert warm.above_floor == pytest.approx(4)


def test_geometric_means() -> None:
    assert results.geometric_mean([1, 4, 16]) == pytest.approx(4)
    with pytest.raises(ValueError, match="above 0"):
        results.geometric_mean([])
    ratios = {("p", "kd"): 2.0, ("p", "dkd"): 8.0, ("q", "kd"): 3.0}
    assert results.by_pair(ratios) == pytest.approx({"p": 4, "q": 3})


def test_targets() -> None:
    times = {"p": {"plain": 1.0, "warm": 0.25, "bf16": 0.1, "cold": 0.9}}
    times["q"] = {"plain": 1.0, "warm": 0.1, "bf16": 0.2, "cold": 1.1}
    timings = [timing(mode, [took] * 3, pair) for pair, modes in times.items() for mode, took in modes.items()]
    results.compare(timings)
    found = {target.name: target for target in results.targets(timings, cuda=False)}
    assert found["plain loop / cache warm, fp32, geometric mean"].value == pytest.approx(40**0.5)
    assert found["plain loop / cache warm, fp32, worst pair (p)"].value == pytest.approx(4)
    assert found["plain loop / cache warm, better of fp32 and bf16, geometric mean"].value == pytest.approx(10)
    assert [target.met for target in found.values()] == [True, True, True, True, False]
    assert found["plain loop / cache cold, worst cell (q, kd)"].value == pytest.approx(1 / 1.1)
    timings[0].seconds.pop()
    assert {target.met for target in results.targets(timings, cuda=False)} == {None}, "too few to judge by"


def test_targets_of_a_gpu() -> None:
    timings = [
        timing("plain", [0.02] * 3, "resnet32x4-resnet8x4", "edkd"),
        timing("captured", [0.001] * 3, "resnet32x4-resnet8x4", "edkd"),
    ]
    results.compare(timings)
    speed, minutes = results.targets(timings, cuda=True)
    assert speed.value == pytest.approx(20) and speed.met
    assert minutes.value == pytest.approx(240 * 782 / 60_000) and not minutes.met


def test_the_floor_counts_the_students_operations() -> None:
    settings = given("kd", "student=vgg8")
    one = floor.operations(settings, batch=1, classes=100, size=32)
    assert one["product"] == 3 * 2 * 512 * 100  # forward, and backward to inputs and to weights
    assert one["convolution"] > one["product"]
    assert floor.operations(settings, batch=2, classes=100, size=32) == {name: 2 * n for name, n in one.items()}
    assert floor.milliseconds({"convolution": 3e9, "product": 1e9}, {"convolution": 1e9, "product": 2e9}) == 3500


# ---- what is written


def test_a_quick_run(tmp_path: Path) -> None:
    output = tmp_path / "bench"
    done = edkd("bench", *SMALL, "--quick", "--repetitions=2", f"--output={output}")
    assert done.code == 0, done
    measured, beside, text = map(Path, done.out.splitlines()[-3:])
    assert {path.name for path in output.iterdir()} == {measured.name, beside.name, text.name}
    with measured.open() as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    assert reader.fieldnames == [*table.COLUMNS, *table.ABOUT]
    assert [row["mode"] for row in rows] == ["plain", "online", "cold", "warm", "bf16"]
    for row in rows:
        assert (row["pair"], row["method"], row["threads"]) == ("resnet8-resnet8", "edkd", "1")
        assert 1 <= int(row["repetitions"]) <= 2
        assert 0 < float(row["ms_q1"]) <= float(row["ms_median"]) <= float(row["ms_q3"])
        assert float(row["images_per_second"]) == pytest.approx(64_000 / float(row["ms_median"]), rel=1e-2)
        assert float(row["ratio"]) > 0 and float(row["floor_ms"]) > 0
        assert row["torch"] == torch.__version__ and row["cpu"] and row["date"]
        assert row["data"] == "digits-8-20perclass-test10, 200 training images"
    if sys.platform == "linux":
        assert all(float(row["peak_mb"]) > 0 for row in rows)

    with beside.open() as file:
        names = {row["name"]: float(row["value"]) for row in csv.DictReader(file)}
    assert {"evaluation of resnet8", "tracking: journal", "tracking: sync", "tracking, share"} <= set(names)
    assert all(value > 0 for value in names.values())
    assert "| resnet8-resnet8 |" in text.read_text() and "geometric mean" in text.read_text()


def test_random_images_where_cifar100_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(workload, "LIKE_CIFAR100", {"train": 300, "test": 200, "classes": 100, "size": 32})
    (cell,) = workload.cells(["resnet32x4-resnet8x4"], ["dkd"])
    arrays, described = workload.read_data(workload.settings(cell, "cifar100", []), asked=False)
    assert described.startswith("random images")
    assert arrays.train.images.shape == (300, 32, 32, 3) and arrays.num_classes == 100
    with pytest.raises(EdkdError, match="CIFAR-100 not found"):
        workload.read_data(workload.settings(cell, "cifar100", ["dataset.root=there"]), asked=True)
    assert list(tmp_path.iterdir()) == []


def test_a_table_of_one_mode_has_no_ratios(tmp_path: Path) -> None:
    timings = [timing("warm", [0.1, 0.2], "p")]
    results.compare(timings)
    about = table.about(CPU, threads=1, described="nothing", steps=1)
    assert set(about) == set(table.ABOUT)
    table.show(timings, [], about, cuda=False)
    assert "| p |  |  |" in table.markdown(timings, [], about, cuda=False)
    assert table.row(timings[0])["ratio"] == ""


def bench(*arguments: str) -> Ended:
    return edkd("bench", *arguments)


def test_what_cannot_be_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert error(bench("--methods=fitnet")) == "--methods=fitnet: no such method; allowed: kd, dkd, edkd"
    assert error(bench("--pairs=vgg13")).startswith("--pairs=vgg13: a pair is TEACHER-STUDENT, such as resnet32x4-")
    assert error(bench("--pairs=vgg13-vgg9")).startswith("student=vgg9: no such option, did you mean vgg")
    assert error(bench(*SMALL, "--modes=fast")).startswith("--modes=fast: no such mode; allowed: plain, online, ")
    assert error(bench(*SMALL, "--modes=plain,captured")).startswith("--modes=captured needs a CUDA device; ")
    assert error(bench(*SMALL, "--steps=4")).startswith("--steps=4: allowed: 1 to 3, for 200 images in batches of 64")
    assert error(bench(*SMALL, "--steps=0")) == "--steps=0: must be above 0"
    assert error(bench(*SMALL, "--repetitions=-1")) == "--repetitions=-1: must be above 0"
    assert error(bench("--pairs=vgg13-vgg8", "dataset.root=nowhere")).startswith("CIFAR-100 not found: looked for ")
    assert error(bench(*SMALL, "engine.device=tpu")).startswith("engine.device=tpu: ")
    (tmp_path / "file").write_text("")
    assert error(bench(*SMALL, "--output=file/bench")).startswith("cannot write to file/bench: ")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# ---- beside the step


@pytest.mark.slow
def test_planning_and_status_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "RUNS", 20)
    assert costs.planning(tmp_path).value > 0
    assert costs.status(tmp_path).value > 0
    with pytest.raises(EdkdError, match="failed: "):
        costs._command("-c", "raise SystemExit('no')", says="yes")


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Callable[[], turns.Host]]:
    """Makes processes that hold a cut epoch of digits."""
    arrays, _ = workload.read_data(given("kd"), asked=False)
    part = workload.cut(arrays, batch=64, steps=1)
    made: list[turns.Host] = []

    def make() -> turns.Host:
        work = Workload(part, part, CPU, 1, 1, tmp_path / f"run-{len(made)}", feed=None)
        made.append(turns.Host(work, feed=None))
        return made[-1]

    yield make
    for host in made:
        host.close()
    assert not any(host.process.is_alive() for host in made)


@pytest.mark.slow
def test_runs_side_by_side(hosts: Callable[[], turns.Host], tmp_path: Path) -> None:
    pair = [hosts(), hosts()]
    for host in pair:
        host.ask("make", "warm", given("kd"))
    for host in pair:
        host.answer()
    assert turns.together(pair[:1], epochs=1) > 0
    assert turns.together(pair, epochs=2) > 0
    assert {path.name for path in tmp_path.iterdir()} == {"run-0", "run-1"}


@pytest.mark.slow
def test_a_process_that_fails_says_why(hosts: Callable[[], turns.Host]) -> None:
    host = hosts()
    broken = replace(given("kd"), student=Network("x", {"_target_": "edkd.models.x"}))
    with pytest.raises(EdkdError, match=r"^student.model._target_: cannot import edkd.models.x"):
        turns.Away(host, "warm", broken)
    host.process.kill()
    with pytest.raises(EdkdError, match="process of the benchmark (died|is gone)"):
        turns.Away(host, "warm", given("kd"))

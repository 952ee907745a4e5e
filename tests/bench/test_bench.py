"""The benchmark: that it compares like with like, and says what it measured. No test looks at a time."""

import csv
import dataclasses
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from edkd import CONF
from edkd.bench import contention, costs, main, method_costs, modes, plain, streaming, table, workload
from edkd.bench.modes import WAYS, Ours, Plain
from edkd.bench.table import Timing
from edkd.bench.workload import Workload
from edkd.config.instantiate import build
from edkd.config.schema import Network, Settings
from edkd.data.resident import ResidentData
from edkd.data.streaming import StreamedData
from edkd.data.views import epoch_order, epoch_views, n_views
from edkd.distillers.base import Batch
from edkd.errors import EdkdError
from edkd.models.base import Prediction
from tests.commandline import edkd, error

CPU = torch.device("cpu")
DATA = ["dataset.image_size=8", "dataset.train_per_class=20", "dataset.test_per_class=10", "engine.device=cpu"]
SMALL = ["--pairs=resnet8-resnet8", "--threads=1", "-d", "digits", *DATA]
STEPS = 2


def given(method: str, *overrides: str) -> Settings:
    return workload.settings("resnet8-resnet8", method, "digits", [*DATA, *overrides])


@pytest.fixture(autouse=True)
def _torch_as_it_was() -> Iterator[None]:
    deterministic = torch.are_deterministic_algorithms_enabled()
    cudnn = torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = cudnn


@pytest.fixture
def work(tmp_path: Path) -> Workload:
    """Two batches of digits; the plain loop reads its batches in this process."""
    arrays, _ = workload.read_data(given("kd"), required=False)
    return Workload(arrays, workload.cut(arrays, batch=64, steps=STEPS), CPU, 1, 0, STEPS, tmp_path)


# ---- like with like


@pytest.mark.parametrize("epoch", [1, 7, 40])
@pytest.mark.parametrize("method", ["kd", "dkd", "edkd", "edkd distiller.weighting=sample"])
def test_the_plain_losses_are_ours(method: str, epoch: int) -> None:
    distiller = given(*method.split()).distiller
    stream = torch.Generator().manual_seed(epoch)
    student, teacher = (3 * torch.randn(64, 100, generator=stream) for _ in range(2))
    target = torch.randint(100, (64,), generator=stream)
    logits = [student.clone().requires_grad_(), student.clone().requires_grad_()]

    theirs = plain.LOSSES[method.split()[0]](logits[0], teacher, target, epoch, distiller)
    batch = Batch(torch.arange(64), target, torch.tensor(float(epoch)))
    outcome = build(distiller, "distiller")(Prediction(logits[1]), Prediction(teacher), batch)
    ours = torch.stack(list(outcome.losses.values())).sum()

    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)
    theirs.backward()
    ours.backward()
    torch.testing.assert_close(logits[0].grad, logits[1].grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", workload.METHODS)
def test_the_plain_loop_takes_the_steps_of_ours(method: str, work: Workload) -> None:
    cfg = given(method)
    cfg = dataclasses.replace(cfg, schedule=dataclasses.replace(cfg.schedule, lr=0.05))
    ours = Ours(WAYS["warm"], cfg, work)
    ours.ready()
    measured = ours.run()
    data = ours.data
    assert isinstance(data, ResidentData)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.from_numpy(epoch_order(cfg.seed, 1, len(data)))
        views = torch.from_numpy(epoch_views(cfg.seed, 1, len(data), n_views(data.padding, data.flip)))
        for index in order.split(cfg.schedule.batch_size):
            yield data.augmented(index, views[index]).contiguous(), data.targets(index)

    theirs = Plain(cfg, work)
    theirs.ready()
    theirs.batches = batches()
    averages = theirs.run()

    assert averages["loss"] == pytest.approx(measured["train/loss"], rel=1e-5)
    assert averages["top1"] == pytest.approx(measured["train/top1"])
    for mine, other in zip(theirs.student.parameters(), ours.state.student.parameters(), strict=True):
        torch.testing.assert_close(mine, other.contiguous(), rtol=1e-4, atol=1e-5)


def test_the_plain_loop_sees_the_views_of_ours(work: Workload) -> None:
    images = Plain(given("kd"), work).loader.dataset
    data = Ours(WAYS["online"], given("kd"), work).data
    assert isinstance(data, ResidentData)
    every = torch.arange(n_views(data.padding, data.flip))
    for index in range(20):
        image, label = images[index]
        assert label == work.arrays.train.labels[index]
        known = data.augmented(torch.full_like(every, index), every)
        assert (known == image).flatten(1).all(1).any(), "no view of ours is this image"


@pytest.mark.parametrize(("mode", "expected"), [("online", STEPS), ("cold", STEPS), ("warm", 0), ("bf16", 0)])
def test_every_repetition_is_the_same(mode: str, expected: int, work: Workload) -> None:
    ours = Ours(WAYS[mode], given("edkd"), work)
    calls: list[int] = []
    ours.teacher.register_forward_hook(lambda *_: calls.append(1))
    found = []
    for _ in range(2):
        calls.clear()
        ours.ready()
        found.append(ours.run())
        assert len(calls) == expected, "the teacher's forward passes"
    assert found[0] == found[1]


def test_a_step_that_was_to_be_captured_and_is_not_is_no_timing(work: Workload) -> None:
    with pytest.raises(EdkdError, match="captured step: no CUDA graph was recorded"):
        modes.prepare("captured", given("kd"), work)  # on a CPU, where nothing is captured


def test_a_process_of_its_own(work: Workload) -> None:
    broken = dataclasses.replace(given("kd"), student=Network("x", {"_target_": "edkd.models.x"}))
    with main.process() as away:
        failed = away.submit(modes.prepare, "plain", broken, work)
        prepared = away.submit(modes.prepare, "plain", given("kd"), dataclasses.replace(work, workers=1))
        running = away.submit(modes.train, "plain", 2)
        with pytest.raises(EdkdError, match=r"^student.model._target_: cannot import edkd.models.x"):
            failed.result()
        assert sys.platform != "linux" or (prepared.result() or 0) > 0
        began, ended = running.result()
        assert ended > began


# ---- arithmetic


def timing(mode: str, seconds: list[float], pair: str = "p", method: str = "kd", batch: int = 64) -> Timing:
    return Timing(pair, method, mode, batch, seconds)


ABOUT = table.about(CPU, threads=1, data="nothing", steps=1)


def test_medians_quartiles_and_ratios() -> None:
    base, warm = timing("plain", [0.4, 0.8, 0.6]), timing("warm", [0.1, 0.1, 0.3])
    both = timing("together-2", [0.2, 0.2, 0.2], batch=128)
    table.compare([base, warm, both])
    assert (base.ratio, warm.ratio) == (1, pytest.approx(4))  # of 4, 8 and 2
    assert both.ratio == pytest.approx(6)  # twice the images, a third of the time
    assert both.images_per_second == pytest.approx(640)
    row = table.row(warm)
    assert [row[name] for name in ("ms_median", "ms_q1", "ms_q3", "ratio")] == ["100", "100", "200", "4"]
    assert table.row(timing("warm", [1.0]))["ms_q1"] == "1000"


def test_means_over_the_methods_of_a_pair_and_over_pairs() -> None:
    cells = [
        [timing("plain", [plain], pair, method), timing("warm", [warm], pair, method)]
        for pair, method, plain, warm in (
            ("p", "kd", 1.0, 0.5), ("p", "dkd", 4.0, 0.5), ("q", "kd", 1.0, 1.0), ("q", "dkd", 1.0, 1.0)
        )
    ]  # fmt: skip
    for cell in cells:
        table.compare(cell)
    lines = table.markdown([timing for cell in cells for timing in cell], [], ABOUT).splitlines()
    assert lines[4:7] == ["| p | 2000 | 4.0x |", "| q | 1000 | 1.0x |", "| geometric mean |  | **2.0x** |"]


def test_a_table_of_one_mode_has_no_ratios() -> None:
    timings = [timing("warm", [0.1, 0.2])]
    table.compare(timings)
    table.show(timings, [], ABOUT)
    assert "| p |  |  |" in table.markdown(timings, [], ABOUT)
    assert table.row(timings[0])["ratio"] == ""


# ---- what is written


def test_a_quick_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "process", lambda: ThreadPoolExecutor(1))  # it takes no seconds to start
    monkeypatch.setattr(main, "MOST_WORKERS", 0)
    monkeypatch.setattr(costs, "tracked", lambda *_: {"sync": 0.5})
    output = tmp_path / "bench"
    done = edkd("bench", *SMALL, "--quick", "--modes=plain,warm", "--repetitions=2", "--steps=1", f"--output={output}")
    assert done.code == 0, done
    measured, text = map(Path, done.out.splitlines()[-2:])
    assert {path.name for path in output.iterdir()} == {measured.name, text.name}
    with measured.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["mode"] for row in rows] == ["plain", "warm"]
    for row in rows:
        assert (row["pair"], row["method"], row["threads"]) == ("resnet8-resnet8", "edkd", "1")
        assert 0 < float(row["ms_q1"]) <= float(row["ms_median"]) <= float(row["ms_q3"])
        assert float(row["images_per_second"]) == pytest.approx(64_000 / float(row["ms_median"]), rel=1e-2)
        assert float(row["ratio"]) > 0
        assert row["torch"] == torch.__version__ and row["cpu"] and row["date"]
        assert row["data"] == "digits-8-20perclass-test10, 200 training images"
        assert sys.platform != "linux" or float(row["peak_mb"]) > 0
    for words in (
        "| resnet8-resnet8 |",
        "geometric mean",
        "- evaluation of resnet8: ",
        "- tracking: sync: 500 ms/epoch (to MLflow",
    ):
        assert words in text.read_text()


def test_random_images_where_cifar100_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(workload, "LIKE_CIFAR100", (300, 200))
    cfg = workload.settings("resnet32x4-resnet8x4", "dkd", "cifar100", [])
    arrays, described = workload.read_data(cfg, required=False)
    assert described.startswith("random images")
    assert arrays.train.images.shape == (300, 32, 32, 3) and arrays.num_classes == 100
    with pytest.raises(EdkdError, match="CIFAR-100 not found"):
        workload.read_data(cfg, required=True)
    assert list(tmp_path.iterdir()) == []


def test_images_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "IMAGES", 8)
    asked = ["--streaming", "--pairs=resnet8-resnet8", "--threads=1", "--steps=3", "--repetitions=2"]
    small = ["dataset.image_size=8", "dataset.workers=0", "schedule.batch_size=4", "engine.device=cpu"]
    done = edkd("bench", *asked, *small, f"--output={tmp_path}")
    assert done.code == 0, done
    measured, text = map(Path, done.out.splitlines()[-2:])
    assert {path.name for path in tmp_path.iterdir()} == {measured.name, text.name}
    assert measured.name.startswith("cpu-streaming-")
    with measured.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["mode"] for row in rows] == ["loader", "step", "both", "plain"]
    assert all(row["repetitions"] == "2" and float(row["ms_median"]) > 0 for row in rows)
    assert [bool(row["ratio"]) for row in rows] == [True, False, True, False]
    assert rows[0]["data"].startswith("8 files of ") and rows[0]["data"].endswith(" kB, cropped to 8x8")
    assert all(rows[0][name] for name in ("torchvision", "pillow", "cpu"))
    assert "| (c) / min(a, b) |" in text.read_text() and "| resnet8-resnet8 | kd |" in text.read_text()


def test_the_plain_loader_reads_what_ours_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "IMAGES", 8)
    cfg = workload.settings("resnet8-resnet8", "kd", "imagefolder", [*streaming.made_data(0), "dataset.image_size=8"])
    (cfg,) = streaming.with_images([cfg], tmp_path)
    arrays, _ = streaming.read(cfg)
    kb = [path.stat().st_size / 1000 for path in tmp_path.glob("train/*/*.jpg")]
    assert len(kb) == 8 and 25 < sum(kb) / 8 < 60
    epoch = streaming.cut(arrays, batch=4, steps=3)
    assert len(epoch.train) == 12
    batches = list(streaming.plain_loader(epoch, cfg, 4, CPU))
    ours = StreamedData(
        epoch.train, mean=cfg.dataset.mean, std=cfg.dataset.std, size=8, workers=0, augmentation="resized_crop",
        flip=True, broken="stop", device=CPU, channels_last=False,
    )  # fmt: skip
    counts = ours.begin(0, 1, 4).counts
    assert [images.shape for images, _ in batches] == [ours.next(count).images.shape for count in counts]
    low, high = ((value - torch.tensor(cfg.dataset.mean)) / torch.tensor(cfg.dataset.std) for value in (0.0, 1.0))
    seen = torch.cat([images for images, _ in batches])
    assert (seen.amin((0, 2, 3)) >= low - 1e-5).all() and (seen.amax((0, 2, 3)) <= high + 1e-5).all()
    assert sorted(torch.cat([target for _, target in batches]).unique().tolist()) == [0, 1, 2, 3]
    rotated: Any = streaming.plain_loader(dataclasses.replace(epoch, augmentation="rotation"), cfg, 4, CPU).dataset
    assert [type(each).__name__ for each in rotated.transform.transforms[1:3]] == [
        "Resize",
        "RandomRotation",
    ]  # of tiny_imagenet


def test_ratios_of_loader_and_step_are_taken_within_a_repetition() -> None:
    seconds = {"loader": [1.0, 2.0, 1.0], "step": [4.0, 1.0, 4.0], "both": [5.0, 4.0, 4.0], "plain": [2.0, 2.0, 3.0]}
    header, ((_, _, *cells),) = streaming.summary([timing(mode, each) for mode, each in seconds.items()])
    assert header[-3:] == ["(c) / min(a, b)", "(c) / (a) then (b)", "(a) / (d)"]
    assert cells == ["64", "16", "16", "32", "0.80", "1.00", "2.00"]


def test_processes_beside_one(tmp_path: Path) -> None:
    done = edkd("bench", "--devices=2", "--steps=1", "--repetitions=2", f"--output={tmp_path}", *SMALL)
    assert done.code == 0, done
    measured, text = map(Path, done.out.splitlines()[-2:])
    with measured.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["mode"] for row in rows] == ["processes-1", "processes-2"]
    assert all(row["method"] == "kd" and row["repetitions"] == "2" for row in rows)
    assert float(rows[1]["ratio"]) > 0
    assert "| 1 process x 1 threads | 2 processes x 1 threads | times as fast |" in text.read_text()


def test_threads_beside_others(tmp_path: Path) -> None:
    one = [each for each in SMALL if not each.startswith("--threads")]
    done = edkd("bench", "--contention", "--steps=1", "--repetitions=1", "--threads=2", f"--output={tmp_path}", *one)
    assert done.code == 0, done
    measured, text = map(Path, done.out.splitlines()[-2:])
    with measured.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["mode"] for row in rows] == [f"{way}-{load}" for load in (0, 1, 2) for way in contention.WAYS]
    assert [bool(row["ratio"]) for row in rows] == 3 * [False, True, True]
    assert "| loops beside | 1 run x 2 threads | OMP_WAIT_POLICY=passive | 2 runs x 1 thread |" in text.read_text()


def test_the_images_of_all_runs_count_beside_others(work: Workload) -> None:
    seconds = {"threads-0": [2.0, 4.0], "passive-0": [4.0, 8.0], "alone-0": [2.0, 4.0]}
    timings = [Timing("a-b", "kd", mode, 64, each, ratio=0.5) for mode, each in seconds.items()]
    _, (row,) = contention.summary(timings, work)
    assert row == ["a-b", "0", "21.33", "10.67 (0.50x)", "21.33 (0.50x)"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods=fitnet"], "--methods=fitnet: no such method; allowed: kd, dkd, edkd, all"),
        (["--pairs=vgg13"], "--pairs=vgg13: a pair is TEACHER-STUDENT, such as resnet32x4-"),
        (["--pairs=vgg13-vgg9"], "student=vgg9: no such option, did you mean vgg"),
        ([*SMALL, "--modes=fast"], "--modes=fast: no such mode on this device; allowed: plain, online, "),
        ([*SMALL, "--modes=plain,captured"], "--modes=captured: no such mode on this device; allowed: plain, "),
        ([*SMALL, "--steps=4"], "--steps=4: allowed: 1 to 3, for 200 images in batches of 64"),
        (["--streaming", "--methods=all"], "--methods=all: no such method; allowed: kd, dkd, edkd"),
        ([*SMALL, "--devices=1"], "--devices=1: must be 2 or more"),
        (["--streaming", "-d", "digits"], "--streaming reads images from files, and digits-16 is in memory"),
        (["--devices=2", "-d", "imagefolder", "dataset.name=x", "dataset.root=."], "no folder train; "),
        ([*SMALL, "--repetitions=-1"], "--repetitions=-1: must be above 0"),
        (["--pairs=vgg13-vgg8", "dataset.root=nowhere"], "CIFAR-100 not found: looked for "),
        ([*SMALL, "--output=file/bench"], "cannot write to file/bench: "),
    ],
)
def test_what_cannot_be_measured(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert error(edkd("bench", *arguments)).startswith(message)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_surrounds_the_steps_is_measured(work: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "EPOCHS", 4)
    monkeypatch.setattr(costs, "RUNS", 20)
    times = costs.tracked(given("kd"), work)
    assert set(times) == set(costs.TRACKED) and min(times.values()) > 0
    assert costs.planning(work.folder).value > 0


def test_every_method_in_turns_beside_kd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    methods = ["kd", "vanilla", "deepkd", "simkd"]  # no teacher, several momenta, features and another classifier
    monkeypatch.setattr(method_costs, "options", lambda: methods)
    asked = ["bench", "--methods=all", "--repetitions=3", f"--output={tmp_path}", "--steps=1", *SMALL]
    assert f"{tmp_path}/methods_cost.csv" in edkd(*asked).out
    with (tmp_path / "methods_cost.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == methods
    assert {row["pair"] for row in rows} == {"resnet8-resnet8"}
    assert [float(row["ratio"]) == 1 for row in rows] == [True, False, False, False]
    assert all(row["repetitions"] == "3" and float(row["ms_median"]) > 0 and row["cpu"] for row in rows)


def test_the_methods_of_the_costs_are_all_that_there_are() -> None:
    options = method_costs.options()
    assert options[0] == "kd"
    assert {*options} == {path.stem for path in (CONF / "distiller").iterdir()}

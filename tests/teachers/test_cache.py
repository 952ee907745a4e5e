"""The teacher cache: each (image, view) computed at most once, and a run with it is the run without it."""

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from edkd import models
from edkd.config.job import digest
from edkd.models.base import Prediction
from edkd.rundir import journal
from edkd.runs import teacher_source
from edkd.runs.run import execute
from edkd.runs.teacher_source import table_key
from edkd.teachers.cache import CachedTeacher, room_on, settle
from edkd.teachers.cache_file import Table
from edkd.teachers.source import TEACHER_BATCH, OnlineTeacher, Precision
from edkd.training import hardware

VIEWS, IMAGES, CLASSES = 6, 150, 10
CPU = torch.device("cpu")
CUDA = pytest.param(torch.device("cuda"), marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))


def table(folder: Path, *, dtype: torch.dtype = torch.float32) -> Table:
    return Table(folder / "t.logits", key={}, rows=IMAGES * VIEWS, classes=CLASSES, dtype=dtype)


class Answers:
    """Stands for the teacher: logits that name their image and view, and a record of what was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def __call__(self, index: Tensor, view: Tensor) -> Tensor:
        assert len(index) <= TEACHER_BATCH
        self.asked += list(zip(index.tolist(), view.tolist(), strict=True))
        return truth(index, view)


def uncached(images: torch.Tensor) -> Prediction:
    raise AssertionError("no image here is other than a view of a training image")


def truth(index: Tensor, view: Tensor) -> Tensor:
    exact = torch.sin((index.cpu() * 31 + view.cpu() * 7)[:, None] + torch.arange(CLASSES) * 0.7)
    return exact.to(index.device)


def source(
    folder: Path,
    compute: Any,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
    resident: bool = False,
) -> CachedTeacher:
    made = table(folder, dtype=dtype)
    kept = torch.zeros(made.rows, made.width, dtype=torch.int64, device=device) if resident else None
    return CachedTeacher(made, compute, uncached, views=VIEWS, device=device, resident=kept)


def logits_of(teacher: CachedTeacher, views: Tensor) -> Tensor:
    teacher.begin_epoch(views.to(teacher.device))
    index = torch.arange(IMAGES, device=teacher.device)
    return teacher(torch.empty(0), index).logits.cpu()


def views(seed: int) -> Tensor:
    return torch.randint(VIEWS, (IMAGES,), generator=torch.Generator().manual_seed(seed))


def right(seed: int) -> Tensor:
    return truth(torch.arange(IMAGES), views(seed))


@pytest.mark.parametrize("device", [CPU, CUDA])
@pytest.mark.parametrize("resident", [False, True])
def test_every_pair_is_computed_at_most_once(tmp_path: Path, resident: bool, device: torch.device) -> None:
    first, second = Answers(), Answers()
    for answers in (first, second):
        teacher = source(tmp_path, answers, resident=resident, device=device)
        places = set()
        for epoch in range(20):
            assert torch.equal(logits_of(teacher, views(epoch)), right(epoch))
            assert teacher.logits is not None
            places.add(teacher.logits.data_ptr())
        assert len(places) == 1, "a captured CUDA graph reads it"
    assert sorted(first.asked) == sorted({(i, int(v)) for e in range(20) for i, v in enumerate(views(e))})
    assert second.asked == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("resident", [False, True])
def test_half_precision_is_stored_as_it_is_computed(tmp_path: Path, dtype: torch.dtype, resident: bool) -> None:
    for _ in range(2):
        teacher = source(tmp_path, lambda i, v: truth(i, v).to(dtype), dtype=dtype, resident=resident)
        for seed in (0, 1, 0):
            assert torch.equal(logits_of(teacher, views(seed)), right(seed).to(dtype).float())


def test_what_is_resident_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = source(tmp_path, truth, resident=True)
    logits_of(teacher, views(0))
    logits_of(teacher, views(1))
    read: list[int] = []
    real = teacher.table.read
    monkeypatch.setattr(teacher.table, "read", lambda rows: read.extend(rows) or real(rows))
    assert torch.equal(logits_of(teacher, views(0)), right(0))
    assert read == []
    mixed = torch.where(torch.arange(IMAGES) < 100, views(1), views(2))
    logits_of(teacher, mixed)
    assert all(row // VIEWS >= 100 for row in read) and read


def test_a_table_is_resident_where_a_gpu_has_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = table(tmp_path)
    assert room_on(CPU, made) is None
    gpu, size, zeros = torch.device("cuda"), made.rows * made.width * 8, torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *shape, dtype, device: zeros(*shape, dtype=dtype))
    for free, fits in ((4 * size - 1, False), (4 * size, True)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 10 * free))
        assert (room_on(gpu, made) is not None) == fits

    def taken(*_: Any, **__: Any) -> None:
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(torch, "zeros", taken)
    assert room_on(gpu, made) is None


def test_what_another_process_wrote_meanwhile_is_not_computed_again(tmp_path: Path) -> None:
    other, answers = table(tmp_path), Answers()

    def compute(index: Tensor, view: Tensor) -> Tensor:
        everything = np.arange(IMAGES, dtype=np.int64) * VIEWS + views(0).numpy()
        other.write(everything, other.encode(right(0)))
        return answers(index, view)

    assert torch.equal(logits_of(source(tmp_path, compute), views(0)), right(0))
    assert len(answers.asked) == TEACHER_BATCH, "the first chunk alone"


def test_settling_answers_each_row_once(tmp_path: Path) -> None:
    made = table(tmp_path)
    teacher = CachedTeacher(made, truth, uncached, views=VIEWS, device=CPU)
    rows = np.arange(IMAGES * VIEWS, dtype=np.int64)
    there = rows % 3 == 0
    made.write(rows[there], teacher.answer(rows[there]))
    done = list(settle(made, rows, teacher.answer, on_error=pytest.fail))
    places = np.concatenate([part.places for part in done])
    assert sorted(places) == rows.tolist()
    assert sorted(np.concatenate([part.places for part in done if not part.computed])) == rows[there].tolist()
    words = torch.cat([part.words for part in done])
    assert torch.equal(made.decode(words), truth(torch.from_numpy(places // VIEWS), torch.from_numpy(places % VIEWS)))
    assert made.read(rows)[1].all()


@pytest.mark.parametrize("fault", ["disk full", "file gone and folder closed"])
@pytest.mark.parametrize("resident", [False, True])
def test_a_table_that_fails_is_said_once_and_costs_nothing_but_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: str, resident: bool
) -> None:
    answers = Answers()
    teacher = source(tmp_path / "store", answers, resident=resident)
    logits_of(teacher, views(5))
    if fault == "disk full":

        def pwrite(file: int, data: bytes, offset: int) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "pwrite", pwrite)
    else:
        (tmp_path / "store" / "t.logits").unlink()
        (tmp_path / "store" / "t.logits.lock").unlink()
        (tmp_path / "store").rmdir()
        (tmp_path / "store").write_text("not a folder")
    with caplog.at_level(logging.WARNING, "edkd.teachers.cache"):
        for seed in (0, 1, 0, 2):
            assert torch.equal(logits_of(teacher, views(seed)), right(seed))
    assert len(caplog.messages) == 1
    assert caplog.messages[0].endswith("; training goes on and computes what is missing")
    assert len(answers.asked) > len(set(answers.asked)) or resident, "what was not kept is computed again"


def test_the_key_names_all_that_changes_bits(make_job: Any) -> None:
    plain = make_job("kd", teacher_id="run:0")

    def name(*overrides: str, teacher: str = "t", data: str = "d", threads: int = 1) -> str:
        given = make_job("kd", *overrides, teacher_id="run:0").settings if overrides else plain.settings
        torch.set_num_threads(threads)
        key = table_key(given, teacher, data, CPU)
        torch.set_num_threads(1)
        return digest(key)

    others = [
        name(teacher="other"),
        name(data="other"),
        name(threads=2),
        name("dataset.mean=[0.3,0.3,0.3]"),
        name("dataset.std=[0.3,0.3,0.3]"),
        name("dataset.padding=2"),
        name("dataset.flip=true"),
        name("engine.precision=bf16"),
        name("engine.channels_last=false"),
        name("engine.deterministic=false"),
        name("engine.cpu_kernels=false"),
        name("teacher=resnet14"),
    ]
    assert len({name(), *others}) == 1 + len(others)
    same = [
        name("seed=1"),
        name("student=resnet14"),
        name("schedule.epochs=9"),
        name("distiller.temperature=2"),
        name("engine.threads=null"),
    ]
    assert {*same, name()} == {name()}


def test_the_key_names_the_computer_and_the_versions(make_job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given = make_job("kd", teacher_id="run:0").settings
    found = [digest(table_key(given, "t", "d", CPU))]
    for owner, name, value in (
        (hardware, "cpu_model", lambda: "another CPU"),
        (teacher_source, "__version__", "another version"),
        (torch, "__version__", "another torch"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, value)
            found.append(digest(table_key(given, "t", "d", CPU)))
    assert len(set(found)) == 4


def test_the_key_names_the_version_of_a_network_of_ones_own(
    make_job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "own_network_of_a_key.py"
    file.write_text("from edkd.models.resnet import resnet8\n\n\ndef net(**values):\n    return resnet8(**values)\n")
    monkeypatch.syspath_prepend(tmp_path)
    job = make_job("kd", f"teacher.model._target_={file.stem}.net", teacher_id="run:0")
    first = table_key(job.settings, "t", "d", CPU)
    file.write_text(file.read_text() + "\n")
    assert digest(table_key(job.settings, "t", "d", CPU)) != digest(first)


@pytest.mark.parametrize(
    "name", ["resnet8", "wrn_16_1", "vgg8", "mobilenetv2", "shufflenetv1", "shufflenetv2", "resnet18"]
)
def test_logits_do_not_depend_on_the_batch_around_them(name: str) -> None:
    torch.manual_seed(0)
    network = getattr(models, name)(num_classes=10).to(memory_format=torch.channels_last)
    teacher = OnlineTeacher(network, want_feats=False, precision=Precision("fp32", CPU))
    images = torch.randn(64, 3, 16, 16).to(memory_format=torch.channels_last)
    whole = teacher.raw(images).logits
    for size in (1, 2, 16, 29, 63):
        part = teacher.raw(images[64 - size :].contiguous(memory_format=torch.channels_last)).logits
        assert torch.equal(part, whole[64 - size :]), size
    more = torch.cat([images[40:], images, images[:7]]).contiguous(memory_format=torch.channels_last)
    assert torch.equal(teacher.raw(more).logits, torch.cat([whole[40:], whole, whole[:7]]))


def run_of(
    make_job: Any, method: str, *overrides: str, teacher_id: str
) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    job = make_job(method, *overrides, teacher_id=teacher_id)
    execute(job, sweep=None, show=False)
    weights = torch.load(job.directory / "last.pt", weights_only=True)["model"]
    metrics = [record["metrics"] for record in journal.epochs(job.directory).values()]
    for path in job.directory.iterdir():  # the next run of this configuration begins anew
        path.unlink()
    job.directory.rmdir()
    assert journal.state(job.directory).status == "new"
    return weights, metrics


@pytest.mark.parametrize(
    ("method", "precision"),
    [("edkd", "fp32"), ("edkd", "bf16"), ("mlkd", "fp32")],  # mlkd asks the network about strong views
)
def test_a_run_with_the_cache_is_the_run_without_it_bit_for_bit(
    make_job: Any, tmp_path: Path, method: str, precision: str
) -> None:
    teacher = make_job("vanilla", "schedule.batch_size=33")
    execute(teacher, sweep=None, show=False)
    runs = [
        run_of(
            make_job,
            method,
            "schedule.batch_size=33",
            f"engine.precision={precision}",
            f"engine.teacher_cache={cache}",
            teacher_id=f"run:{teacher.run}",
        )
        for cache in ("false", "true", "true")  # without, cold, warm
    ]
    (file,) = (tmp_path / "outputs" / "teachers").rglob("*.logits")
    assert file.stat().st_blocks > 0
    for weights, metrics in runs[1:]:
        assert all(torch.equal(weights[key], runs[0][0][key]) for key in runs[0][0])
        assert metrics == runs[0][1]


def test_a_table_above_the_limit_is_not_made(make_job: Any, tmp_path: Path) -> None:
    teacher = make_job("vanilla")
    execute(teacher, sweep=None, show=False)
    run_of(make_job, "edkd", "engine.teacher_cache_gb=0.00001", teacher_id=f"run:{teacher.run}")
    assert list((tmp_path / "outputs").rglob("*.logits")) == []

"""The teacher cache: exact, and unharmed by kills, twins, foreign files and full disks."""

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from edkd import journal, models
from edkd.run import execute
from edkd.teacher_cache import HEADER, CachedTeacher, Table
from edkd.trainer import OnlineTeacher, Precision

VIEWS, IMAGES, CLASSES = 6, 150, 10
CPU = torch.device("cpu")


def table(folder: Path, *, key: str = "a", dtype: torch.dtype = torch.float32) -> Table:
    return Table(folder / "t.logits", key={"teacher": key}, rows=IMAGES * VIEWS, classes=CLASSES, dtype=dtype)


class Answers:
    """Stands for the teacher: logits that name their image and view, and a record of what was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def __call__(self, index: Tensor, view: Tensor) -> Tensor:
        self.asked += list(zip(index.tolist(), view.tolist(), strict=True))
        return truth(index, view)


def truth(index: Tensor, view: Tensor) -> Tensor:
    return torch.sin((index * 31 + view * 7)[:, None] + torch.arange(CLASSES) * 0.7)


def logits_of(source: CachedTeacher, views: Tensor) -> Tensor:
    source.begin_epoch(views)
    return source(torch.empty(0), torch.arange(IMAGES), views).logits


def views(seed: int) -> Tensor:
    return torch.randint(VIEWS, (IMAGES,), generator=torch.Generator().manual_seed(seed))


def test_every_pair_is_computed_at_most_once(tmp_path: Path) -> None:
    first, second = Answers(), Answers()
    for answers in (first, second):
        source = CachedTeacher(table(tmp_path), answers, views=VIEWS, device=CPU)
        for epoch in range(20):
            assert torch.equal(logits_of(source, views(epoch)), truth(torch.arange(IMAGES), views(epoch)))
    assert sorted(first.asked) == sorted({(i, int(v)) for e in range(20) for i, v in enumerate(views(e))})
    assert second.asked == []


def test_what_another_process_wrote_meanwhile_is_not_computed_again(tmp_path: Path) -> None:
    source = CachedTeacher(table(tmp_path), Answers(), views=VIEWS, device=CPU)
    other, answers = table(tmp_path), Answers()

    def compute(index: Tensor, view: Tensor) -> Tensor:
        everything = np.arange(IMAGES, dtype=np.int64) * VIEWS + views(0).numpy()
        other.write(everything, truth(torch.arange(IMAGES), views(0)))
        return answers(index, view)

    source.compute = compute
    assert torch.equal(logits_of(source, views(0)), truth(torch.arange(IMAGES), views(0)))
    assert len(answers.asked) == 64, "the first chunk alone"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_entries_come_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    rows = np.array([0, 5, IMAGES * VIEWS - 1], dtype=np.int64)
    written = torch.randn(3, CLASSES).to(dtype)
    written[0, :4] = torch.tensor([float("inf"), -0.0, float("nan"), 1e-40]).to(dtype)
    table(tmp_path, dtype=dtype).write(rows, written)
    read, there = table(tmp_path, dtype=dtype).read(np.array([0, 1, 5, IMAGES * VIEWS - 1], dtype=np.int64))
    assert there.tolist() == [True, False, True, True]
    assert read[[0, 2, 3]].view(torch.uint8).equal(written.view(torch.uint8))


@pytest.mark.parametrize("byte", [0, 3, 17, 39])
def test_an_entry_that_is_not_wholly_there_does_not_count(tmp_path: Path, byte: int) -> None:
    made = table(tmp_path)
    made.write(np.arange(4, dtype=np.int64), torch.randn(4, CLASSES))
    offset = HEADER + 2 * made.entry.itemsize + made.entry.fields["logits"][1] + byte  # type: ignore[index]
    with made.path.open("r+b") as file:
        file.seek(offset)
        old = file.read(1)
        file.seek(offset)
        file.write(bytes([old[0] ^ 0x40]))
    assert made.read(np.arange(5, dtype=np.int64))[1].tolist() == [True, True, False, True, False]


def test_logits_of_zero_are_an_entry_and_a_hole_is_none(tmp_path: Path) -> None:
    made = table(tmp_path)
    made.write(np.array([7], dtype=np.int64), torch.zeros(1, CLASSES))
    assert made.read(np.array([7, 8], dtype=np.int64))[1].tolist() == [True, False]


@pytest.mark.parametrize("fault", ["truncated", "foreign", "other teacher", "empty"])
def test_a_file_that_is_not_ours_is_set_aside(tmp_path: Path, fault: str, caplog: pytest.LogCaptureFixture) -> None:
    made = table(tmp_path, key="b" if fault == "other teacher" else "a")
    made.write(np.array([0], dtype=np.int64), torch.randn(1, CLASSES))
    if fault == "truncated":
        os.truncate(made.path, made.path.stat().st_size - 1)
    elif fault in ("foreign", "empty"):
        made.path.write_bytes(b"" if fault == "empty" else os.urandom(made.path.stat().st_size))
    bad = made.path.read_bytes()
    with caplog.at_level(logging.WARNING, "edkd.teacher_cache"):
        anew = table(tmp_path)
    assert not anew.read(np.arange(10, dtype=np.int64))[1].any()
    (aside,) = tmp_path.glob("t.logits.set-aside-*")
    assert aside.read_bytes() == bad
    assert len(caplog.messages) == 1


def test_a_full_disk_is_said_once_and_costs_nothing_but_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    written = 0

    def pwrite(file: int, data: bytes, offset: int) -> int:
        nonlocal written
        written += 1
        if written > 10:
            raise OSError(28, "No space left on device")
        return real(file, data, offset)

    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", pwrite)
    answers = Answers()
    source = CachedTeacher(table(tmp_path), answers, views=VIEWS, device=CPU)
    with caplog.at_level(logging.WARNING, "edkd.teacher_cache"):
        for _ in range(3):
            assert torch.equal(logits_of(source, views(0)), truth(torch.arange(IMAGES), views(0)))
    assert [m for m in caplog.messages if "No space left" in m] == caplog.messages
    assert len(caplog.messages) == 1
    assert written == 11
    assert len(answers.asked) > IMAGES, "what was not kept is computed again"


WRITER = """
import sys, numpy as np, torch
from pathlib import Path
from edkd.teacher_cache import Table
sys.path.insert(0, sys.argv[2])
from test_teacher_cache import CLASSES, IMAGES, VIEWS, truth
table = Table(Path(sys.argv[1]), key={"teacher": "a"}, rows=IMAGES * VIEWS, classes=CLASSES, dtype=torch.float32)
print("ready", flush=True)
for round in range(200):
    for rows in np.random.default_rng(round).permutation(IMAGES * VIEWS).reshape(-1, 50):
        table.write(rows, truth(torch.from_numpy(rows // VIEWS), torch.from_numpy(rows % VIEWS)))
"""


def test_writers_that_are_killed_leave_only_whole_entries(tmp_path: Path) -> None:
    path = tmp_path / "t.logits"
    command = [sys.executable, "-c", WRITER, str(path), str(Path(__file__).parent)]
    writers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    rows = np.arange(IMAGES * VIEWS, dtype=np.int64)
    expected = truth(torch.from_numpy(rows // VIEWS), torch.from_numpy(rows % VIEWS))
    seen = 0
    for _ in range(200):
        logits, there = table(tmp_path).read(rows)
        assert torch.equal(logits[torch.from_numpy(there)], expected[torch.from_numpy(there)])
        seen = max(seen, int(there.sum()))
        if seen == len(rows):
            break
    for writer in writers:
        writer.kill()
        writer.communicate()
    logits, there = table(tmp_path).read(rows)
    assert torch.equal(logits[torch.from_numpy(there)], expected[torch.from_numpy(there)])
    assert there.sum() >= seen > 0


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


def run_of(make_job: Any, *overrides: str, teacher_id: str) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    job = make_job("edkd", *overrides, teacher_id=teacher_id)
    done = execute(job, sweep=None, show=False)
    weights = torch.load(job.directory / "last.pt", weights_only=True)["model"]
    metrics = [done.epochs[epoch]["metrics"] for epoch in sorted(done.epochs)]
    for path in job.directory.iterdir():  # the next run of this configuration begins anew
        path.unlink()
    job.directory.rmdir()
    assert journal.tail_state(job.directory).status == "new"
    return weights, metrics


def test_a_run_with_the_cache_is_the_run_without_it_bit_for_bit(make_job: Any, tmp_path: Path) -> None:
    teacher = make_job("vanilla", "schedule.batch_size=33")
    execute(teacher, sweep=None, show=False)
    runs = [
        run_of(make_job, "schedule.batch_size=33", f"engine.teacher_cache={cache}", teacher_id=f"run:{teacher.run}")
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
    run_of(make_job, "engine.teacher_cache_gb=0.00001", teacher_id=f"run:{teacher.run}")
    assert list((tmp_path / "outputs").rglob("*.logits")) == []

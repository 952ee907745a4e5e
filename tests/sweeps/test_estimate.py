"""How long a plan takes: from journals whose seconds are known here, and from a few real steps."""

import os
import platform
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from edkd.config.job import Job
from edkd.rundir import journal
from edkd.rundir.journal import RunState
from edkd.sweeps import progress
from edkd.sweeps.progress import Estimate
from tests.commandline import launch

HERE = f"cpu ({platform.machine()})"
GPU = "NVIDIA H100 80GB HBM3"


@pytest.fixture(autouse=True)
def as_before() -> Any:
    """Timing sets torch up as a run does."""
    before = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(before)


def ran(job: Job, *seconds: float, device: str = HERE, ended: bool = False) -> Job:
    """Leave the journal of a run whose epochs took so many seconds."""
    job.directory.mkdir(parents=True)
    book = journal.Journal(job.directory)
    config = {key: value for key, value in job.config.items() if key != "teacher" or job.settings.needs_teacher}
    book.append({"event": "start", "config": config, "tags": job.tags, "device": device})
    for number, each in enumerate(seconds, start=1):
        book.append({"event": "epoch", "epoch": number, "seconds": {"train": each - 1, "test": 1.0}})
    if ended:
        book.append({"event": "end", "last": {"epoch": len(seconds)}, "seconds": sum(seconds)})
    return job


def estimated(
    *jobs: Job, teachers: Sequence[Job] = (), states: dict[str, RunState] | None = None, **more: Any
) -> Estimate:
    new = {job.run: RunState(status="new") for job in [*jobs, *teachers]}
    given: dict[str, Any] = {"here": True, "parallel": 1, **more}
    return progress.estimate({"teachers": teachers, "students": jobs}, new | (states or {}), **given)


@pytest.fixture
def job(make_job: Any) -> Any:
    """`job(*overrides)`: a KD run of 10 epochs."""
    return lambda *overrides, method="kd": make_job(method, "schedule.epochs=10", *overrides, teacher_id="run:a")


# ---- recorded


def test_a_finished_run_tells_the_mean_of_its_epochs(job: Any) -> None:
    ran(job("seed=1"), 30.0, 10.0, ended=True)
    found = estimated(job("seed=2"), job("seed=3"))
    assert found.stages == {"students": [200.0, 200.0]}
    assert (found.sources, found.unknown, found.kinds) == ({HERE: 1}, 0, 1)


def test_an_unfinished_run_tells_its_last_epoch(job: Any) -> None:
    ran(job("seed=1"), 30.0, 10.0)
    assert estimated(job("seed=2")).stages == {"students": [100.0]}


def test_only_what_is_left_counts(job: Any) -> None:
    ran(job("seed=1"), 10.0)
    resumed, finished, elsewhere, failed = (job(f"seed={seed}") for seed in (2, 3, 4, 5))
    states = {
        resumed.run: RunState(status="interrupted", last_epoch={"epoch": 7}),
        finished.run: RunState(status="finished", last_epoch={"epoch": 10}),
        elsewhere.run: RunState(status="running", last_epoch={"epoch": 1}),
        failed.run: RunState(status="failed", last_epoch={"epoch": 9}),
    }
    found = estimated(resumed, finished, elsewhere, failed, states=states)
    assert found.stages == {"students": [30.0, 10.0]}


@pytest.mark.parametrize(
    "other",
    [
        "student=resnet14",
        "teacher=resnet14",
        "schedule.batch_size=32",
        "engine.precision=bf16",
        "engine.teacher_cache=false",
        "dataset.train_per_class=10",
        "engine.devices=2",
        "distiller=vanilla",
        "distiller=mlkd",
    ],
)
def test_another_kind_of_run_tells_nothing(job: Any, other: str) -> None:
    method = other.removeprefix("distiller=") if other.startswith("distiller=") else "kd"
    ran(job("seed=1", *([other] if method == "kd" else []), method=method), 10.0)
    assert estimated(job("seed=2")).unknown == 1


def test_the_middle_of_all_methods_tells(job: Any) -> None:
    ran(job("seed=1", method="dkd"), 10.0)
    assert estimated(job()).stages == {"students": [100.0]}
    ran(job("seed=2"), 20.0)
    ran(job("seed=1"), 80.0)
    assert estimated(job()).stages == {"students": [200.0]}


def test_only_the_device_at_hand_tells_about_runs_here(job: Any) -> None:
    ran(job("seed=1"), 2.0, device=GPU)
    assert estimated(job()).unknown == 1
    assert estimated(job("engine.device=cuda:7")).unknown == 1  # which is not there


def test_where_runs_are_queued_gpus_tell_first(job: Any) -> None:
    ran(job("seed=1"), 10.0)
    ran(job("seed=2"), 12.0)
    assert estimated(job(), here=False).sources == {HERE: 1}
    ran(job("seed=3"), 2.0, device=GPU)
    found = estimated(job(), here=False)
    assert (found.stages, found.sources) == ({"students": [20.0]}, {GPU: 1})


def test_stages_are_told_apart(job: Any) -> None:
    teacher = job(method="vanilla")
    ran(job("seed=1", method="vanilla"), 7.0)
    found = estimated(job(), teachers=[teacher])
    assert (found.stages, found.kinds, found.unknown) == ({"teachers": [70.0]}, 2, 1)


@pytest.mark.parametrize("damage", ["", "no json\n{}\n", '{"event": "start", "config": {}}\n{"event": "epoch"}\n'])
def test_damaged_and_foreign_journals_are_passed_over(job: Any, damage: str) -> None:
    before = job("seed=1")
    before.directory.mkdir(parents=True)
    (before.directory / "journal.jsonl").write_text(damage)
    (before.directory.parent / "kd-s9-stray").touch()
    assert estimated(job()).unknown == 1


def test_of_many_journals_the_latest_few_are_read(job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    latest, earlier = ran(job("seed=0"), 10.0), ran(job("seed=1"), 30.0)
    for number in range(50):
        source = latest if number < progress.LATEST else earlier
        other = source.directory.with_name(f"kd-s{number}-{number:08x}")
        shutil.copytree(source.directory, other)
        os.utime(other / "journal.jsonl", (1000 - number, 1000 - number))
    for each in (latest, earlier):
        shutil.rmtree(each.directory)
    read: list[Path] = []
    original = journal.state
    monkeypatch.setattr(journal, "state", lambda path: (read.append(path), original(path))[1])
    assert estimated(job("seed=99")).stages == {"students": [100.0]}
    assert len(read) == progress.LATEST


# ---- shown


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (
            Estimate({"teachers": [4320.0], "students": [50400.0]}, 1, 4, 0, Counter({GPU: 4})),
            f"estimate: teachers 1:12:00, students 14:00:00, 15.2 device hours in all; recorded on {GPU}: 4 networks",
        ),
        (
            Estimate({"students": [3600.0, 7200.0, 3600.0]}, 2, 1, 0, Counter({HERE: 1})),
            f"estimate: students 4:00:00, 4.0 device hours in all, 2:00:00 with 2 runs at a time; "
            f"recorded on {HERE}: 1 network",
        ),
        (
            Estimate({"students": [60.0]}, None, 3, 2, Counter({HERE: 1})),
            f"estimate: at least students 0:01:00, 0.017 device hours in all; recorded on {HERE}: 1 network; "
            "no recorded step time for 2 of 3 networks",
        ),
        (
            Estimate({}, 2, 11, 11),
            "estimate: none yet, no recorded step time for 11 of 11 networks",
        ),
        (
            Estimate({"teachers": [500.0], "students": [100.0, 900.0, 200.0]}, 4, 1, 0, Counter({HERE: 1})),
            "estimate: teachers 0:08:20, students 0:20:00, 0.47 device hours in all, 0:23:20 with 4 runs at a time; "
            f"recorded on {HERE}: 1 network",  # the longest run of a stage bounds it
        ),
        (Estimate(), "estimate: nothing to train"),
    ],
)
def test_the_line(found: Estimate, line: str) -> None:
    assert found.line() == line


def test_the_plan_of_a_sweep_says_how_long_it_takes(tiny: list[str], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["-m", *tiny, "distiller=kd,dkd"]
    assert launch(*command).code == 0
    said = launch(*command, "seed=1", "+dry_run=true").out.splitlines()[-2]
    assert said.startswith("estimate: students ") and said.endswith(f"; recorded on {HERE}: 1 network")

"""What surrounds the steps: evaluation and tracking once an epoch, planning once a sweep."""

import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edkd import tracking
from edkd.bench.measure import seconds
from edkd.bench.modes import WAYS
from edkd.bench.table import Cost, Timing
from edkd.bench.workload import METHODS, Workload, networks, table_pairs
from edkd.config.schema import Settings
from edkd.rundir import checkpoint, journal
from edkd.rundir.paths import RunDir
from edkd.runs.inputs import device_data
from edkd.teachers.source import Precision
from edkd.training.device import to_device
from edkd.training.evaluation import evaluate

EPOCHS = 12  # journalled and tracked; the first few sync what begins a run
RUNS = 1000
TRACKED = {
    "journal": "the step waits for it",
    "sync": "to MLflow in SQLite, by a thread beside the training",
    "checkpoint": "the student's weights and as much again, the step waits for it",
}


def of_an_epoch(configured: Sequence[Settings], timings: Sequence[Timing], work: Workload) -> list[Cost]:
    """The steps of each pair in the fastest mode of ours, evaluation of each student, and tracking."""
    found = []
    steps = len(work.arrays.train) / configured[0].schedule.batch_size / 1000
    for pair in dict.fromkeys(cfg.pair for cfg in configured):
        ours = [timing.ms * steps for timing in timings if timing.pair == pair and timing.mode in WAYS]
        found += [Cost(f"steps of {pair}", min(ours), "s/epoch", "in the fastest mode of ours")] if ours else []
    for student, cfg in {cfg.student.name: cfg for cfg in configured}.items():
        found.append(Cost(f"evaluation of {student}", evaluation(cfg, work), "s/epoch", "the whole test set"))
    times = tracked(configured[0], work)
    return found + [Cost(f"tracking: {name}", took * 1000, "ms/epoch", TRACKED[name]) for name, took in times.items()]


def evaluation(cfg: Settings, work: Workload) -> float:
    """Seconds to evaluate the student on the whole test set, scaled up from a part of it."""
    data = device_data(work.cut, cfg, work.device).test
    network = to_device(networks(cfg, work)[1], cfg.engine, work.device)
    precision = Precision(cfg.engine.precision, work.device)
    times = [seconds(lambda: evaluate(network, data, precision), work.device) for _ in range(4)]
    return statistics.median(times[1:]) * len(work.arrays.test) / len(work.cut.test)


def tracked(cfg: Settings, work: Workload) -> dict[str, float]:
    """Median seconds an epoch: the step waits for "journal" and "checkpoint"; another thread does "sync"."""
    folder = work.folder / "tracked"
    folder.mkdir()
    store: dict[str, Any] = {
        "uri": f"sqlite:///{work.folder}/mlflow.db",
        "experiment": "bench",
        "artifacts": f"{work.folder}/artifacts",
    }
    tracking.create_store(**store)
    book = journal.Journal(folder)
    tags = {"distiller": cfg.method, "teacher": cfg.teacher.name, "student": cfg.student.name, "seed": 0}
    start = {"run": "0" * 16, "name": "bench", "config": {"distiller": cfg.distiller}, "tags": tags}
    book.append({"event": "start", **start})
    student = networks(cfg, work)[1].state_dict()
    state = {"student": student, "optimizer": student}
    metrics = {f"train/{number}": 71.23456789 for number in range(10)}  # as many as EDKD has
    times: dict[str, list[float]] = {name: [] for name in TRACKED}
    for epoch in range(1, EPOCHS + 1):
        record = {"event": "epoch", "epoch": epoch, "metrics": metrics, "seconds": {"train": 55.5, "test": 4.5}}
        times["journal"].append(seconds(lambda: book.append(record), work.device))  # noqa: B023
        times["sync"].append(seconds(lambda: tracking.sync_run(folder, **store), work.device))
        times["checkpoint"].append(seconds(lambda: checkpoint.save(state, RunDir(folder).checkpoint), work.device))
    return {name: statistics.median(found[EPOCHS // 4 :]) for name, found in times.items()}


def planning(folder: Path) -> Cost:
    """The time to plan a sweep of at least a thousand runs in a new process, as a user waits for it."""
    cells = len(table_pairs()) * len(METHODS)
    seeds = -(-RUNS // cells)
    command = "import sys; from edkd.cli.launch import main; sys.argv[0] = 'launch.py'; main()"
    sweep = [f"distiller={','.join(METHODS)}", "pair=all", f"seed={','.join(map(str, range(seeds)))}"]
    arguments = ["-m", "+dry_run=true", *sweep, f"output={folder / 'planned'}"]
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", command, *arguments], capture_output=True, check=True)
    took = time.perf_counter() - began
    return Cost("planning", took, "s", f"{cells * seeds} jobs, with imports and the teachers' jobs")

"""What surrounds the steps: evaluation and tracking once an epoch, planning and status once a sweep."""

import os
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edkd import tracking
from edkd.bench.many_runs import make_runs
from edkd.bench.measure import seconds
from edkd.bench.results import Cost
from edkd.bench.workload import METHODS, Workload, networks, table_pairs
from edkd.config.schema import Settings
from edkd.errors import EdkdError
from edkd.rundir import checkpoint, journal
from edkd.runs.setup import device_data
from edkd.teachers.source import Precision
from edkd.training.device import set_up, to_device
from edkd.training.trainer import evaluate

EVALUATED = {"cpu": 500, "cuda": 10_000}  # images; the time is scaled to the whole test set
EPOCHS = 12  # journalled and tracked; the first few sync what begins a run
RUNS = 1000
TRACKED = {
    "journal": "the step waits for it",
    "sync": "to MLflow in SQLite, by a thread beside the training",
    "checkpoint": "the student's weights and as much again, the step waits for it",
}


def evaluation(cfg: Settings, work: Workload, repetitions: int) -> float:
    """Seconds to evaluate the student on the whole test set, once an epoch."""
    set_up(cfg.engine, work.threads)
    count = min(EVALUATED[work.device.type], len(work.arrays.test))
    part = replace(work.cut, test=work.arrays.test.take(np.arange(count)))
    data = device_data(part, cfg, work.device).test
    network = to_device(networks(cfg, work)[1], cfg.engine, work.device)
    precision = Precision(cfg.engine.precision, work.device)
    times = [seconds(lambda: evaluate(network, data, precision), work.device) for _ in range(1 + repetitions)]
    return statistics.median(times[1:]) * len(work.arrays.test) / count


def tracked(cfg: Settings, work: Workload) -> dict[str, float]:
    """Seconds an epoch: {"journal": the step waits, "sync": a thread beside it works, "checkpoint": the step waits}."""
    folder = work.folder / "tracked"
    folder.mkdir()
    store: dict[str, Any] = {
        "uri": f"sqlite:///{work.folder / 'mlflow.db'}",
        "experiment": "bench",
        "artifacts": str(work.folder / "mlartifacts"),
    }
    tracking.create_store(**store)
    book = journal.Journal(folder / journal.FILE)
    book.append(start_record(cfg))
    student = networks(cfg, work)[1]
    waits, syncs, saves = [], [], []
    for epoch in range(1, EPOCHS + 1):
        record = epoch_record(epoch)
        waits.append(seconds(lambda record=record: book.append(record), work.device))  # type: ignore[misc]
        syncs.append(seconds(lambda: tracking.sync_run(folder, **store), work.device))
        state = {"epoch": epoch, "student": student.state_dict(), "optimizer": student.state_dict()}
        saves.append(seconds(lambda state=state: checkpoint.save(state, folder / "checkpoint.pt"), work.device))  # type: ignore[misc]
    late = slice(EPOCHS // 4, None)
    names = {"journal": waits, "sync": syncs, "checkpoint": saves}
    return {name: statistics.median(times[late]) for name, times in names.items()}


def planning(folder: Path) -> Cost:
    """A sweep of a thousand runs planned by a process of its own, as a user waits for it."""
    pairs, methods = len(table_pairs()), len(METHODS)
    seeds = -(-RUNS // (pairs * methods))
    command = "import sys; from edkd.cli.launch import main; sys.argv[0] = 'launch.py'; main()"
    arguments = ["-m", "+dry_run=true", f"distiller={','.join(METHODS)}", "pair=all"]
    arguments += [f"seed={','.join(map(str, range(seeds)))}", f"output={folder / 'planned'}"]
    took = _command("-c", command, *arguments, says=f"{pairs * methods * seeds} runs")
    return Cost("planning", took, "s", f"{pairs * methods * seeds} jobs, with imports and the teachers' jobs")


def status(folder: Path) -> Cost:
    """`edkd status` over a thousand runs of 240 epochs each."""
    output = folder / "many"
    make_runs(output, RUNS, epochs=240)
    took = _command("-m", "edkd.cli.main", "status", "--output", str(output), says=f"{RUNS} runs")
    return Cost("status", took, "s", f"{RUNS} runs")


def start_record(cfg: Settings) -> dict[str, Any]:
    """The beginning of a run's journal, for a run that there never was."""
    run = "0" * 16
    schedule = {key: getattr(cfg.schedule, key) for key in ("epochs", "batch_size", "lr", "milestones")}
    tags = {"pair": cfg.pair, "teacher": cfg.teacher.name, "student": cfg.student.name, "distiller": "edkd"}
    return {
        "event": "start",
        "run": run,
        "name": "bench",
        "sweep": "bench",
        "resumed_from": 0,
        "config": {
            "seed": 0,
            "dataset": {"name": cfg.dataset.name},
            "teacher": {"name": cfg.teacher.name},
            "student": {"name": cfg.student.name},
            "distiller": cfg.distiller,
            "schedule": schedule,
        },
        "tags": {**tags, "dataset": cfg.dataset.key, "seed": "0", "config_hash": run, "cell": run, "recipe": "bench"},
        "versions": {"python": sys.version.split()[0]},
        "host": "bench",
        "pid": os.getpid(),
        "device": "bench",
        "threads": 1,
        "data_sha256": "0" * 64,
        "teacher": {"id": "run:bench", "sha256": "0" * 64, "top1": 70.0},
    }


def epoch_record(epoch: int) -> dict[str, Any]:
    """An epoch of a journal with as many numbers as EDKD's have."""
    names = ("train/loss", "train/loss_ce", "train/loss_kd", "train/top1", "edkd/beta_mean", "edkd/confidence_mean")
    metrics = {name: 1.0 / (epoch + number) for number, name in enumerate((*names, "lr"))}
    metrics |= {"test/top1": 70.0 - 1 / epoch, "test/top5": 90.0 - 1 / epoch, "test/loss": 1.0 + 1 / epoch}
    times = {"train": 10.0, "test": 1.0}
    return {"event": "epoch", "epoch": epoch, "metrics": metrics, "seconds": times, "images_per_second": 5000.0}


def _command(*arguments: str, says: str) -> float:
    """Seconds that a command takes, which must print `says`: `edkd status` exits with 1 where runs are lost."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=600)
    took = time.perf_counter() - began
    if says not in done.stdout:
        raise EdkdError(f"{' '.join(arguments[:3])} failed: {(done.stderr or done.stdout).strip()[-300:]}")
    return took

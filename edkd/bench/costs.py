"""What surrounds the steps: evaluation and tracking once an epoch, planning and status once a sweep."""

import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from edkd import tracking
from edkd.bench import many_runs
from edkd.bench.measure import seconds
from edkd.bench.modes import WAYS
from edkd.bench.results import Cost, Timing
from edkd.bench.workload import METHODS, Workload, networks, table_pairs
from edkd.config.schema import Settings
from edkd.errors import EdkdError
from edkd.rundir import checkpoint, journal
from edkd.rundir.paths import RunDir
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
    """Seconds to evaluate the student on the whole test set, once an epoch."""
    set_up(cfg.engine, work.threads)
    count = min(EVALUATED[work.device.type], len(work.arrays.test))
    part = replace(work.cut, test=work.arrays.test.take(np.arange(count)))
    data = device_data(part, cfg, work.device).test
    network = to_device(networks(cfg, work)[1], cfg.engine, work.device)
    precision = Precision(cfg.engine.precision, work.device)
    times = [seconds(lambda: evaluate(network, data, precision), work.device) for _ in range(4)]
    return statistics.median(times[1:]) * len(work.arrays.test) / count


def tracked(cfg: Settings, work: Workload) -> dict[str, float]:
    """Seconds an epoch: {"journal": the step waits, "sync": a thread beside it works, "checkpoint": the step waits}."""
    folder = work.folder / "tracked"
    folder.mkdir()
    store = {
        "uri": f"sqlite:///{work.folder}/mlflow.db",
        "experiment": "bench",
        "artifacts": f"{work.folder}/artifacts",
    }
    tracking.create_store(**store)
    book = journal.Journal(folder)
    start, *epochs = many_runs.records("vanished", "bench", "0" * 16, 2 * EPOCHS)
    book.append(start)
    student = networks(cfg, work)[1].state_dict()
    state = {"student": student, "optimizer": student}
    times: dict[str, list[float]] = {name: [] for name in TRACKED}
    for record in epochs:
        times["journal"].append(seconds(lambda: book.append(record), work.device))  # noqa: B023
        times["sync"].append(seconds(lambda: tracking.sync_run(folder, **store), work.device))
        times["checkpoint"].append(seconds(lambda: checkpoint.save(state, RunDir(folder).checkpoint), work.device))
    return {name: statistics.median(found[EPOCHS // 4 :]) for name, found in times.items()}


def planning(folder: Path) -> Cost:
    """A sweep of a thousand runs planned by a process of its own, as a user waits for it."""
    cells = len(table_pairs()) * len(METHODS)
    seeds = -(-RUNS // cells)
    command = "import sys; from edkd.cli.launch import main; sys.argv[0] = 'launch.py'; main()"
    sweep = [f"distiller={','.join(METHODS)}", "pair=all", f"seed={','.join(map(str, range(seeds)))}"]
    took = _command(
        "-c", command, "-m", "+dry_run=true", *sweep, f"output={folder / 'planned'}", says=f"{cells * seeds} runs"
    )
    return Cost("planning", took, "s", f"{cells * seeds} jobs, with imports and the teachers' jobs")


def status(folder: Path) -> Cost:
    """`edkd status` over a thousand runs of 240 epochs each."""
    output = folder / "many"
    many_runs.make_runs(output, RUNS, epochs=240)
    took = _command("-m", "edkd.cli.main", "status", "--output", str(output), says=f"{RUNS} runs")
    return Cost("status", took, "s", f"{RUNS} runs")


def _command(*arguments: str, says: str) -> float:
    """Seconds that a command takes, which must print `says`: `edkd status` exits with 1 where runs are lost."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=600)
    took = time.perf_counter() - began
    if says not in done.stdout:
        raise EdkdError(f"{' '.join(arguments[:3])} failed: {(done.stderr or done.stdout).strip()[-300:]}")
    return took

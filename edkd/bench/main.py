"""The benchmark in its order: cell by cell all modes in turn, then what surrounds the steps."""

import contextlib
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from edkd.bench import costs, method_costs, table, workload
from edkd.bench.modes import PLAIN, TOGETHER, choose, prepare, train
from edkd.bench.table import Timing
from edkd.bench.workload import Workload
from edkd.config.schema import Settings
from edkd.console import console
from edkd.errors import EdkdError
from edkd.training.device import cores, pick_device, set_up

LEAST = 3  # repetitions, whatever the time
MOST_TURNS = 50  # of every method; the time ends them before
STEPS = {"cpu": 2, "cuda": 100}  # of one repetition
MOST_WORKERS = 8  # of the plain loop, one for each core
SIDE_BY_SIDE = (1, 2, 4, 8)
EPOCHS_TOGETHER = 5  # cut epochs that runs side by side train at once


def run(
    *,
    dataset: str,
    overrides: list[str],
    pairs: list[str] | None,
    methods: list[str] | None,
    modes: list[str] | None,
    repetitions: int | None,
    steps: int | None,
    seconds: float | None,
    threads: int | None,
    quick: bool,
    output: Path,
) -> list[Path]:
    """Measure, print the tables, write the files and return their paths. Raises EdkdError for what does not fit.

    None leaves the choice to the benchmark: 10 minutes of steps, or 90 seconds if `quick`.
    """
    for name, value in {"repetitions": repetitions, "steps": steps, "seconds": seconds, "threads": threads}.items():
        if value is not None and not value > 0:
            raise EdkdError(f"--{name}={value}: must be above 0")
    every = methods == [method_costs.EVERY]
    methods = method_costs.options() if every else methods or (["edkd"] if quick else list(workload.METHODS))
    for method in methods:
        if not every and method not in workload.METHODS:
            allowed = ", ".join([*workload.METHODS, method_costs.EVERY])
            raise EdkdError(f"--methods={method}: no such method; allowed: {allowed}")
    pairs = pairs or ([method_costs.PAIR] if every else workload.table_pairs())
    cells = [workload.settings(pair, method, dataset, overrides) for pair in pairs for method in methods]
    cfg = cells[0]
    device = pick_device(cfg.engine.device)
    chosen = choose(modes, device)
    required = any(override.startswith("dataset.root=") for override in overrides)
    arrays, data = workload.read_data(cfg, required=required)
    steps = steps or STEPS[device.type]
    threads = threads or cfg.engine.threads or cores()
    part = workload.cut(arrays, batch=cfg.schedule.batch_size, steps=steps)
    set_up(cfg.engine, threads)
    try:
        output.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(prefix=".bench-", dir=output, ignore_cleanup_errors=True)
    except OSError as error:
        raise EdkdError(f"cannot write to {output}: {error.strerror}; --output names the folder") from error
    with temporary:  # for caches, where there is room for results too
        work = Workload(arrays, part, device, threads, min(cores(), MOST_WORKERS), steps, Path(temporary.name))
        most, seconds = repetitions or (LEAST if quick else 7), seconds or (90 if quick else 600)
        if every:
            timings = method_costs.timings(cells, work, repetitions or MOST_TURNS, seconds)
        else:
            timings = _timings(cells, chosen, work, most, seconds / len(cells))
            found = costs.of_an_epoch(cells, timings, work)
            if not quick:
                found.append(costs.planning(work.folder))
    about = table.about(device, threads=threads, data=data, steps=steps)
    if every:
        method_costs.show(timings)
        return method_costs.write(output, timings, about)
    table.show(timings, found, about)
    return table.write(output, timings, found, about)


def process() -> Executor:
    """A process that does one thing after another."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


def _timings(
    cells: Sequence[Settings], chosen: Sequence[str], work: Workload, most: int, seconds: float
) -> list[Timing]:
    """All cells, each with up to `most` repetitions in about so many seconds."""
    timings: list[Timing] = []
    with process() as away:
        for cfg in cells:
            with console.status(f"{cfg.pair} {cfg.method}"):
                found = _in_turns(cfg, [name for name in chosen if name != TOGETHER], work, away, most, seconds)
                if TOGETHER in chosen and cfg.method == cells[-1].method:
                    found += _side_by_side(cfg, work)
                table.compare(found)
            shown = [f"{t.mode} {t.ms:.1f} ms" + (f" ({t.ratio:.1f}x)" if t.ratio else "") for t in found]
            console.print(f"{cfg.pair} {cfg.method}: {', '.join(shown)}", soft_wrap=True)
            timings += found
    return timings


def _in_turns(
    cfg: Settings, names: Sequence[str], work: Workload, away: Executor, most: int, seconds: float
) -> list[Timing]:
    """Modes of a cell: each is made and warmed up, then they take turns, the first to go changing each time."""
    until = time.monotonic() + seconds

    def call(name: str, action: Callable[..., Any], *arguments: object) -> Any:
        return away.submit(action, name, *arguments).result() if name == PLAIN else action(name, *arguments)

    timings = [Timing(cfg.pair, cfg.method, name, cfg.schedule.batch_size) for name in names]
    for timing in timings:
        timing.peak_mb = call(timing.mode, prepare, cfg, work)
    for repetition in range(most if timings else 0):
        first = repetition % len(timings)
        for timing in timings[first:] + timings[:first]:
            began, ended = call(timing.mode, train, 1)
            timing.seconds.append((ended - began) / work.steps)
        if repetition + 1 >= LEAST and time.monotonic() > until:
            break
    return timings


def _side_by_side(cfg: Settings, work: Workload) -> list[Timing]:
    """Captured runs, a process each: the time of a step of one, the images of all."""
    timings = []
    with contextlib.ExitStack() as stack:
        runs = [stack.enter_context(process()) for _ in range(max(SIDE_BY_SIDE))]
        alone = replace(work, threads=1, arrays=work.cut)
        prepared = [
            run.submit(prepare, "captured", cfg, replace(alone, folder=work.folder / f"run-{number}"))
            for number, run in enumerate(runs)
        ]
        for each in prepared:
            each.result()
        for count in SIDE_BY_SIDE:
            timing = Timing(cfg.pair, cfg.method, f"{TOGETHER}-{count}", count * cfg.schedule.batch_size)
            for _ in range(LEAST):
                running = [run.submit(train, "captured", EPOCHS_TOGETHER) for run in runs[:count]]
                began, ended = zip(*(each.result() for each in running))
                timing.seconds.append((max(ended) - min(began)) / (EPOCHS_TOGETHER * work.steps))
            timings.append(timing)
    return timings

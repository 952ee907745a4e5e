"""The whole benchmark: for each cell all modes in turns, then what surrounds the steps."""

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import Any

from edkd.bench import contention as beside_others
from edkd.bench import costs, method_costs, processes, table, workload
from edkd.bench import streaming as from_files
from edkd.bench.modes import PLAIN, TOGETHER, choose, prepare, train
from edkd.bench.table import Timing
from edkd.bench.turns import LEAST, in_turns, process
from edkd.bench.workload import Workload
from edkd.config.schema import Settings
from edkd.console import console
from edkd.data.arrays import Arrays
from edkd.data.files import Streamed
from edkd.errors import EdkdError
from edkd.runs.processes import check_devices
from edkd.training.device import cores, pick_device, set_up

MOST_TURNS = 50  # the most repetitions of every method; the time limit usually ends them earlier
STEPS = {"cpu": 2, "cuda": 100}  # of one repetition
MOST_WORKERS = 8  # of the plain loop, one for each core
SIDE_BY_SIDE = (1, 2, 4, 8)
EPOCHS_TOGETHER = 2  # cut epochs that each run side by side trains in a repetition


def run(
    *,
    dataset: str,
    overrides: list[str],
    pairs: list[str] | None,
    methods: list[str] | None,
    modes: list[str] | None,
    streaming: bool,
    devices: int | None,
    contention: bool,
    repetitions: int | None,
    steps: int | None,
    seconds: float | None,
    threads: int | None,
    quick: bool,
    output: Path,
) -> list[Path]:
    """Measure, print the tables, write the files and return their paths. Raises EdkdError for what does not fit.

    None leaves the choice to the benchmark: 10 minutes of steps, or 90 seconds if `quick`. Instead of the modes,
    `streaming` measures image files, `devices` that many processes beside one, `contention` threads on busy cores.
    """
    numbers = {"repetitions": repetitions, "steps": steps, "seconds": seconds, "threads": threads}
    for name, value in numbers.items():
        if value is not None and not value > 0:
            raise EdkdError(f"--{name}={value}: must be above 0")
    if devices is not None and devices < 2:
        raise EdkdError(f"--devices={devices}: must be 2 or more")
    beside = streaming or contention or devices is not None
    every = methods == [method_costs.EVERY] and not beside
    if every:
        methods = method_costs.options()
    elif methods is None:
        methods = [method_costs.BASE] if beside else ["edkd"] if quick else list(workload.METHODS)
    else:
        _check_methods(methods, [*workload.METHODS, *([] if beside else [method_costs.EVERY])])
    if pairs is None:
        one = from_files.PAIR if streaming else method_costs.PAIR
        pairs = beside_others.PAIRS if contention else [one] if every or beside else workload.table_pairs()
    make_images = streaming and dataset == "cifar100"
    if make_images:
        dataset, overrides = "imagefolder", [*from_files.made_data(cores()), *overrides]
    cells = [workload.settings(pair, method, dataset, overrides) for pair in pairs for method in methods]
    cfg = cells[0]
    device = pick_device(cfg.engine.device)
    if devices is not None:
        check_devices(replace(cfg.engine, devices=devices), device, nodes=1)
    chosen = choose(modes, device)
    steps = steps or (from_files.STEPS if streaming else STEPS)[device.type]
    threads = threads or cfg.engine.threads or cores()
    arrays: Arrays | Streamed
    part: Arrays | Streamed
    if not streaming:
        required = any(override.startswith("dataset.root=") for override in overrides)
        arrays, data = workload.read_data(cfg, required=required)
        part = workload.cut(arrays, batch=cfg.schedule.batch_size, steps=steps)
    elif not make_images:
        arrays, data = from_files.read(cfg)
    set_up(cfg.engine, threads)
    most, seconds = repetitions or (LEAST if quick else 7), seconds or (90 if quick else 600)
    with _room(output) as folder:
        if make_images:
            cells = from_files.with_images(cells, folder / "images")
            arrays, data = from_files.read(cells[0])
        if isinstance(arrays, Streamed):
            part = from_files.cut(arrays, batch=cfg.schedule.batch_size, steps=steps)
        work = Workload(arrays, part, device, threads, min(cores(), MOST_WORKERS), steps, folder)
        about = table.about(device, threads=threads, data=data, steps=steps)
        if streaming:
            timings = from_files.timings(cells, work, most, seconds)
            return table.show_and_write(output, "streaming-", timings, *from_files.summary(timings), about)
        if devices is not None:
            timings = processes.timings(cells, work, devices, most, seconds)
            return table.show_and_write(output, "devices-", timings, *processes.summary(timings, work, devices), about)
        if contention:
            timings = beside_others.timings(cells, work, most, seconds)
            found = beside_others.summary(timings, work)
            return table.show_and_write(output, "contention-", timings, *found, about)
        if every:
            timings = method_costs.timings(cells, work, repetitions or MOST_TURNS, seconds)
            method_costs.show(timings)
            return method_costs.write(output, timings, about)
        timings = _timings(cells, chosen, work, most, seconds / len(cells))
        around = costs.of_an_epoch(cells, timings, work)
        if not quick:
            around.append(costs.planning(work.folder))
    table.show(timings, around, about)
    return table.write(output, timings, table.markdown(timings, around, about), about)


def _check_methods(asked: Sequence[str], allowed: Sequence[str]) -> None:
    """Raise EdkdError for a method that the plain loop lacks; `all` is no method and is allowed only alone."""
    for method in asked:
        if method not in workload.METHODS:
            raise EdkdError(f"--methods={method}: no such method; allowed: {', '.join(allowed)}")


@contextlib.contextmanager
def _room(output: Path) -> Iterator[Path]:
    """A temporary folder in `output`, for caches and images. Raises EdkdError if `output` cannot be written."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(prefix=".bench-", dir=output, ignore_cleanup_errors=True)
    except OSError as error:
        raise EdkdError(f"cannot write to {output}: {error.strerror}; --output names the folder") from error
    with temporary:
        yield Path(temporary.name)


def _timings(
    cells: Sequence[Settings], chosen: Sequence[str], work: Workload, most: int, seconds: float
) -> list[Timing]:
    """The timings of all cells, each with up to `most` repetitions in about `seconds`."""
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
    """The timings of a cell's modes: each is made and warmed up, then they take turns, each time another one first."""
    until = time.monotonic() + seconds

    def call(name: str, action: Callable[..., Any], *arguments: object) -> Any:
        return away.submit(action, name, *arguments).result() if name == PLAIN else action(name, *arguments)

    timings = [Timing(cfg.pair, cfg.method, name, cfg.schedule.batch_size) for name in names]
    for timing in timings:
        timing.peak_mb = call(timing.mode, prepare, cfg, work)

    def seconds_of(timing: Timing) -> float:
        began, ended = call(timing.mode, train, 1)
        return float(ended - began) / work.steps

    in_turns(timings, seconds_of, most, until)
    return timings


def _side_by_side(cfg: Settings, work: Workload) -> list[Timing]:
    """The timings of captured runs, each in its own process: seconds per step of one run, images of all."""
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

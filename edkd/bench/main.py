"""The benchmark in its order: cell by cell all modes in turn, then what surrounds the steps."""

import contextlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import torch

from edkd.bench import costs, floor, table, workload
from edkd.bench.modes import PLAIN, TOGETHER, WAYS, choose
from edkd.bench.processes import Away, Here
from edkd.bench.results import Timing, compare
from edkd.bench.workload import Workload
from edkd.config.schema import Settings
from edkd.console import console
from edkd.errors import EdkdError
from edkd.training.device import cores, pick_device, set_up

LEAST = 3  # repetitions, whatever the time
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
    methods = methods or (["edkd"] if quick else list(workload.METHODS))
    pairs = pairs or workload.table_pairs()
    cells = [workload.settings(pair, method, dataset, overrides) for pair in pairs for method in methods]
    cfg = cells[0]
    device = pick_device(cfg.engine.device)
    chosen = choose(modes, device)
    required = any(override.startswith("dataset.root=") for override in overrides)
    arrays, data = workload.read_data(cfg, required=required)
    steps = steps or STEPS[device.type]
    threads = threads or cfg.engine.threads or cores()
    part = workload.cut(arrays, batch=cfg.schedule.batch_size, steps=steps)
    with _folder(output) as folder:
        work = Workload(arrays, part, device, threads, min(cores(), MOST_WORKERS), steps, folder)
        most = repetitions or (LEAST if quick else 7)
        try:
            timings = _timings(cells, chosen, work, most, (seconds or (90 if quick else 600)) / len(cells))
        except BrokenProcessPool as error:
            raise EdkdError("a process of the benchmark died: is there memory enough?") from error
        found = costs.of_an_epoch(cells, timings, work)
        if not quick:
            found += [costs.planning(folder), costs.status(folder)]
    about = table.about(device, threads=threads, data=data, steps=steps)
    table.show(timings, found, about)
    return table.write(output, timings, found, about)


def _timings(
    cells: Sequence[Settings], chosen: Sequence[str], work: Workload, most: int, seconds: float
) -> list[Timing]:
    """All cells, each with up to `most` repetitions in about so many seconds."""
    set_up(cells[0].engine, work.threads)
    timings: list[Timing] = []
    with Away(work) as away:
        for cfg in cells:
            with console.status(f"{cfg.pair} {cfg.method}"):
                found = _in_turns(cfg, [name for name in chosen if name != TOGETHER], work, away, most, seconds)
                if TOGETHER in chosen and cfg.method == cells[-1].method:
                    found += _side_by_side(cfg, work)
                compare(found)
                _add_floor(found, cfg, work)
            shown = [f"{t.mode} {t.ms:.1f} ms" + (f" ({t.ratio:.1f}x)" if t.ratio else "") for t in found]
            console.print(f"{cfg.pair} {cfg.method}: {', '.join(shown)}", highlight=False, soft_wrap=True)
            timings += found
    return timings


def _in_turns(
    cfg: Settings, names: Sequence[str], work: Workload, away: Away, most: int, seconds: float
) -> list[Timing]:
    """Modes of a cell: each is made and warmed up, then they take turns, the first to go changing each time."""
    until = time.monotonic() + seconds
    if PLAIN in names:
        away.prepare(PLAIN, cfg).result()
    batch = cfg.schedule.batch_size
    turns: list[tuple[Timing, Here | Away]] = [
        (Timing(cfg.pair, cfg.method, name, batch), away if name == PLAIN else Here(name, cfg, work)) for name in names
    ]
    for repetition in range(most):
        first = repetition % max(1, len(turns))
        for timing, mode in turns[first:] + turns[:first]:
            span = mode.train()
            timing.seconds.append((span.ended - span.began) / work.steps)
            timing.peak_mb = span.peak_mb
        if repetition + 1 >= LEAST and time.monotonic() > until:
            break
    return [timing for timing, _ in turns]


def _side_by_side(cfg: Settings, work: Workload) -> list[Timing]:
    """Captured runs, a process each: the time of a step of one, the images of all."""
    timings = []
    with contextlib.ExitStack() as stack:
        folders = [work.folder / f"run-{number}" for number in range(max(SIDE_BY_SIDE))]
        alone = replace(work, threads=1, arrays=work.cut)
        runs = [stack.enter_context(Away(replace(alone, folder=folder))) for folder in folders]
        for prepared in [each.prepare("captured", cfg) for each in runs]:
            prepared.result()
        for count in SIDE_BY_SIDE:
            timing = Timing(cfg.pair, cfg.method, f"{TOGETHER}-{count}", count * cfg.schedule.batch_size)
            for _ in range(LEAST):
                spans = [begun.result() for begun in [each.start(EPOCHS_TOGETHER) for each in runs[:count]]]
                took = max(span.ended for span in spans) - min(span.began for span in spans)
                timing.seconds.append(took / (EPOCHS_TOGETHER * work.steps))
            timings.append(timing)
    return timings


def _add_floor(timings: Sequence[Timing], cfg: Settings, work: Workload) -> None:
    size, classes = work.arrays.image_size, work.arrays.num_classes
    counts = floor.operations(cfg, batch=cfg.schedule.batch_size, classes=classes, size=size)
    for timing in timings:
        if timing.mode == PLAIN or timing.mode in WAYS:
            half = timing.mode in WAYS and WAYS[timing.mode].precision == "bf16"
            timing.floor_ms = floor.milliseconds(counts, work.device, torch.bfloat16 if half else torch.float32)


@contextlib.contextmanager
def _folder(output: Path) -> Iterator[Path]:
    """A folder beside the results, for the caches and trees of the benchmark; gone with the block."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=".bench-", dir=output, ignore_cleanup_errors=True)
    except OSError as error:
        raise EdkdError(f"cannot write to {output}: {error.strerror}; --output names the folder") from error
    with folder as name:
        yield Path(name)

"""The benchmark in its order: floor, then cell by cell all modes in turn, then what surrounds the steps."""

import contextlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from edkd.bench import costs, floor, modes, table, workload
from edkd.bench.modes import PLAIN, TOGETHER
from edkd.bench.results import Cost, Timing, compare
from edkd.bench.turns import Away, Here, Host, together
from edkd.bench.workload import Cell, Workload
from edkd.config.schema import Settings
from edkd.console import console
from edkd.errors import EdkdError
from edkd.training.device import cores, pick_device, set_up

STEPS = {"cpu": 2, "cuda": 100}  # of one repetition
QUICK_STEPS = {"cpu": 2, "cuda": 20}
SIDE_BY_SIDE = (1, 2, 4, 8)
HALF = [name for name, way in modes.WAYS.items() if way.precision == "bf16"]
EPOCHS_TOGETHER = 5  # cut epochs that runs side by side train at once


@dataclass(frozen=True)
class Options:
    """What a user asks for; None leaves the choice to the benchmark."""

    dataset: str
    overrides: list[str]
    pairs: list[str] | None
    methods: list[str] | None
    modes: list[str] | None
    repetitions: int | None
    steps: int | None
    seconds: float | None
    threads: int | None
    quick: bool
    output: Path

    def __post_init__(self) -> None:
        for name in ("repetitions", "steps", "seconds", "threads"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise EdkdError(f"--{name}={value}: must be above 0")


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    repetitions: int  # at most
    least: int  # repetitions, whatever the time
    seconds: float  # for all cells

    @classmethod
    def of(cls, options: Options) -> "Effort":
        """What the options ask for: 12 minutes, or 2 with --quick; fewer repetitions rather than more time."""
        repetitions = options.repetitions or (3 if options.quick else 7)
        least = min(repetitions, 1 if options.quick else 3)
        return cls(repetitions, least, options.seconds or (90.0 if options.quick else 600.0))


def run(options: Options) -> list[Path]:
    """Measure, print the tables, write the files and return their paths. Raises EdkdError for what does not fit."""
    methods = options.methods or (["edkd"] if options.quick else list(workload.METHODS))
    cells = workload.cells(options.pairs or workload.table_pairs(), methods)
    configured = [workload.settings(cell, options.dataset, options.overrides) for cell in cells]
    cfg = configured[0]
    device = pick_device(cfg.engine.device)
    chosen = modes.choose(options.modes, device)
    threads = options.threads or cfg.engine.threads or cores()
    asked = any(override.startswith("dataset.root=") for override in options.overrides)
    arrays, described = workload.read_data(cfg, asked=asked)
    steps = options.steps or (QUICK_STEPS if options.quick else STEPS)[device.type]
    part = workload.cut(arrays, batch=cfg.schedule.batch_size, steps=steps)
    with _folder(options.output) as folder, _torch_as_it_was():
        work = Workload(arrays, part, device, threads, steps, folder, feed=None)
        timings, extra = _measure(list(zip(cells, configured)), chosen, work, Effort.of(options), quick=options.quick)
    about = table.about(device, threads=threads, described=described, steps=steps)
    table.show(timings, extra, about, cuda=device.type == "cuda")
    return table.write(options.output, timings, extra, about, cuda=device.type == "cuda")


def _measure(
    cells: Sequence[tuple[Cell, Settings]], chosen: Sequence[str], work: Workload, effort: Effort, *, quick: bool
) -> tuple[list[Timing], list[Cost]]:
    timings: list[Timing] = []
    until = time.monotonic() + effort.seconds
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with contextlib.ExitStack() as stack:
        host = None
        if PLAIN in chosen:
            host = Host(work, feed=cells[0][1])
            stack.callback(host.close)
        set_up(cells[0][1].engine, work.threads)
        progress = stack.enter_context(Progress(*columns, console=console, transient=True))
        bar = progress.add_task("", total=len(cells) + 1)
        for number, (cell, cfg) in enumerate(cells):
            progress.update(bar, description=f"{cell.pair} {cell.method}", completed=number)
            share = (until - time.monotonic()) / (len(cells) - number)
            found = _cell(cell, cfg, [name for name in chosen if name != TOGETHER], work, host, effort, share)
            if TOGETHER in chosen and cell.method == cells[-1][0].method:
                found += _together(cell, cfg, work)
            compare(found)
            _add_floor(found, cfg, work)
            timings += found
            progress.console.print(_line(found), highlight=False, soft_wrap=True)
        progress.update(bar, description="evaluation, tracking, planning, status", completed=len(cells))
        extra = _surroundings([cfg for _, cfg in cells], timings, work, effort.least)
        for measured in () if quick else (costs.planning, costs.status):
            try:
                extra.append(measured(work.folder))
            except EdkdError as error:  # what took minutes to measure is not thrown away for it
                _not_measured(str(error))
    return timings, extra


def _not_measured(what: str) -> None:
    console.print(f"not measured: {what}", highlight=False, soft_wrap=True)


def _cell(
    cell: Cell,
    cfg: Settings,
    names: Sequence[str],
    work: Workload,
    host: Host | None,
    effort: Effort,
    share: float,
) -> list[Timing]:
    """All modes of a cell: each is made and warmed up, then they take turns, the first to go changing each time."""
    began = time.monotonic()
    turns: list[tuple[Timing, Here | Away]] = []
    for name in names:
        try:
            turn = Away(host, name, cfg) if name == PLAIN and host is not None else Here(name, cfg, work)
        except modes.NotCapturedError as error:  # what it would measure is in the table already
            _not_measured(f"{cell.pair} {cell.method}, {error}")
            continue
        timing = Timing(cell.pair, cell.method, name, cfg.schedule.batch_size, peak_mb=turn.peak_mb)
        turns.append((timing, turn))
    for repetition in range(effort.repetitions):
        start = time.monotonic()
        first = repetition % max(1, len(turns))
        for timing, turn in turns[first:] + turns[:first]:
            span = turn.train(1)
            timing.seconds.append((span.ended - span.began) / work.steps)
        now = time.monotonic()
        if repetition + 1 >= effort.least and now - began + (now - start) > share:
            break
    return [timing for timing, _ in turns]


def _together(cell: Cell, cfg: Settings, work: Workload) -> list[Timing]:
    """Runs side by side: per-step time of one, images of all. Each is captured on a GPU, in a process of its own."""
    mode = "captured" if work.device.type == "cuda" else "warm"
    alone = replace(work, threads=1, arrays=work.cut)
    timings = []
    with contextlib.ExitStack() as stack:
        hosts = []
        for number in range(max(SIDE_BY_SIDE)):
            hosts.append(Host(replace(alone, folder=work.folder / f"run-{number}"), feed=None))
            stack.callback(hosts[-1].close)
        for host in hosts:
            host.ask("make", mode, cfg)
        try:
            for host in hosts:
                host.answer()
        except EdkdError as error:
            _not_measured(f"{cell.pair} {cell.method}, side by side: {error}")
            return []
        for count in SIDE_BY_SIDE:
            took = [together(hosts[:count], EPOCHS_TOGETHER) / (EPOCHS_TOGETHER * work.steps) for _ in range(3)]
            batch = count * cfg.schedule.batch_size
            timings.append(Timing(cell.pair, cell.method, f"{TOGETHER}-{count}", batch, took))
    return timings


def _add_floor(timings: Sequence[Timing], cfg: Settings, work: Workload) -> None:
    counts = floor.operations(
        cfg, batch=cfg.schedule.batch_size, classes=work.arrays.num_classes, size=work.arrays.image_size
    )
    for timing in timings:
        if not timing.mode.startswith(TOGETHER):
            dtype = torch.bfloat16 if timing.mode in HALF else torch.float32
            timing.floor_ms = floor.milliseconds(counts, floor.rates(work.device, dtype))


def _surroundings(
    configured: Sequence[Settings], timings: Sequence[Timing], work: Workload, repetitions: int
) -> list[Cost]:
    """Evaluation of each pair's student, and tracking, once an epoch, against the fastest epoch that was measured."""
    epochs = len(work.arrays.train) / configured[0].schedule.batch_size
    fastest: dict[str, float] = {}
    for timing in timings:
        if not timing.mode.startswith((PLAIN, TOGETHER)):
            fastest[timing.pair] = min(timing.ms / 1000 * epochs, fastest.get(timing.pair, float("inf")))
    found = []
    evaluated: dict[str, float] = {}
    for cfg in {cfg.pair: cfg for cfg in configured}.values():
        took = evaluated.get(cfg.student.name) or costs.evaluation(cfg, work, repetitions)
        if cfg.student.name not in evaluated:
            found.append(Cost(f"evaluation of {cfg.student.name}", took, "s/epoch", "the whole test set"))
        evaluated[cfg.student.name] = took
        if cfg.pair in fastest:
            found.append(_share(f"evaluation, {cfg.pair}", took, fastest[cfg.pair]))
    times = costs.tracked(configured[0], work)
    found += [Cost(f"tracking: {name}", took * 1000, "ms/epoch", costs.TRACKED[name]) for name, took in times.items()]
    if fastest:
        found.append(_share("tracking", times["journal"] + times["sync"], min(fastest.values())))
    return found


def _share(name: str, took: float, epoch: float) -> Cost:
    return Cost(f"{name}, share", 100 * took / epoch, "%", f"of the fastest epoch, {epoch:.1f} s of steps")


def _line(timings: Sequence[Timing]) -> str:
    """One line about a cell that is done."""
    parts = [
        f"{timing.mode} {timing.ms:.1f} ms" + (f" ({timing.ratio:.1f}x)" if timing.ratio else "") for timing in timings
    ]
    return f"{timings[0].pair} {timings[0].method}: {', '.join(parts)}" if timings else "nothing measured"


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


@contextlib.contextmanager
def _torch_as_it_was() -> Iterator[None]:
    """What the modes switch is switched back, for whoever called this as a function."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    cudnn = torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = cudnn

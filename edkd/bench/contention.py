"""Training on cores that other processes use: one run with all threads beside runs of one thread each.

`edkd bench --contention`. The threads of a run wait for each other several hundred times a step. If another process
occupies a core, all threads wait for the one that is not scheduled; a run with one thread waits for none. The other
processes here are busy loops.
"""

import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import replace

from edkd.bench.modes import prepare, train
from edkd.bench.table import Timing
from edkd.bench.turns import in_turns, process
from edkd.bench.workload import Workload
from edkd.config.schema import Settings
from edkd.console import console

PAIRS = ["vgg13-vgg8", "vgg13-mobilenetv2", "resnet56-resnet20"]
MODE = "warm"
WAYS = ("threads", "passive", "alone")
MOST_RUNS = 8  # side by side
PAUSE = 0.2  # seconds that a loop is given to begin


def loads(work: Workload) -> list[int]:
    """The numbers of busy loops beside the runs: none, half as many as threads, as many as threads."""
    return sorted({0, max(1, work.threads // 2), work.threads})


def timings(cells: Sequence[Settings], work: Workload, most: int, seconds: float) -> list[Timing]:
    """The timings of each cell's ways under each load, in turns: up to `most` repetitions in about `seconds`."""
    timed: list[Timing] = []
    for number, cfg in enumerate(cells):
        until = time.monotonic() + seconds / len(cells)
        with console.status(f"{cfg.pair} {cfg.method}, beside others"), contextlib.ExitStack() as stack:
            own = replace(work, folder=work.folder / str(number))
            own.folder.mkdir()
            prepare(MODE, cfg, own)  # in this process, and fills the teacher cache for the others
            runs = {way: _start(way, cfg, own, stack) for way in WAYS}
            batch = cfg.schedule.batch_size
            of_cell = [
                Timing(cfg.pair, cfg.method, f"{way}-{load}", batch * len(runs[way]))
                for load in loads(work)
                for way in WAYS
            ]

            def seconds_of(timing: Timing) -> float:
                way, _, load = timing.mode.partition("-")
                with _busy(int(load)):
                    running = [run.submit(train, MODE, 1) for run in runs[way]]  # noqa: B023
                    starts, ends = zip(*(run.result() for run in running))
                return float(max(ends) - min(starts)) / work.steps

            in_turns(of_cell, seconds_of, most, until)
        for first in range(0, len(of_cell), len(WAYS)):
            threads, *others = of_cell[first : first + len(WAYS)]
            for other in others:
                ratios = [theirs / ours for theirs, ours in zip(threads.seconds, other.seconds)]
                other.ratio = other.batch / threads.batch * statistics.median(ratios)
        timed += of_cell
    return timed


def runs_alone(work: Workload) -> int:
    """How many runs of one thread are side by side."""
    return min(work.threads, MOST_RUNS)


def _start(way: str, cfg: Settings, work: Workload, stack: contextlib.ExitStack) -> list[Executor]:
    """The processes of a way, warmed up."""
    count = runs_alone(work) if way == "alone" else 1
    with _waiting("passive" if way == "passive" else None):
        processes = [stack.enter_context(process()) for _ in range(count)]
        threads = 1 if way == "alone" else work.threads
        for each in [each.submit(prepare, MODE, cfg, replace(work, threads=threads)) for each in processes]:
            each.result()
    return processes


@contextlib.contextmanager
def _waiting(policy: str | None) -> Iterator[None]:
    """Set how OpenMP threads wait in processes that start within the context; None changes nothing."""
    if policy is None:
        yield
        return
    before = os.environ.get("OMP_WAIT_POLICY")
    os.environ["OMP_WAIT_POLICY"] = policy
    try:
        yield
    finally:
        del os.environ["OMP_WAIT_POLICY"]
        if before is not None:
            os.environ["OMP_WAIT_POLICY"] = before


@contextlib.contextmanager
def _busy(count: int) -> Iterator[None]:
    """Run `count` busy loops within the context."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        if loops:
            time.sleep(PAUSE)
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def summary(timed: Sequence[Timing], work: Workload) -> tuple[list[str], list[list[str]]]:
    """Images per second of each way, all runs together, and the ratios to the first way, as (header, rows)."""
    n, count = work.threads, runs_alone(work)
    header = ["pair", "loops beside", f"1 run x {n} threads", "OMP_WAIT_POLICY=passive", f"{count} runs x 1 thread"]
    rows = []
    for first in range(0, len(timed), len(WAYS)):
        threads, passive, alone = timed[first : first + len(WAYS)]
        others = [f"{each.images_per_second:.4g} ({each.ratio:.2f}x)" for each in (passive, alone)]
        load = threads.mode.partition("-")[2]
        rows.append([threads.pair, load, f"{threads.images_per_second:.4g}", *others])
    return header, rows

"""A run in several processes beside the same run in one: `edkd bench --devices 2`.

On a CPU the processes share the threads of the one; on GPUs each has its own. All train with the code of a real run.
"""

import contextlib
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace

from edkd.bench.modes import prepare, train
from edkd.bench.table import Timing
from edkd.bench.turns import in_turns, process
from edkd.bench.workload import Workload
from edkd.config.schema import Settings
from edkd.console import console
from edkd.training import distributed
from edkd.training.device import pick_device

MODE = "warm"


def timings(cells: Sequence[Settings], work: Workload, size: int, most: int, seconds: float) -> list[Timing]:
    """The timings of each cell in one process and in `size`: up to `most` repetitions in about `seconds`."""
    timed: list[Timing] = []
    for number, cfg in enumerate(cells):
        with console.status(f"{cfg.pair} {cfg.method}, {size} processes beside one"):
            of_cell = [Timing(cfg.pair, cfg.method, f"processes-{n}", cfg.schedule.batch_size) for n in (1, size)]
            own = replace(work, folder=work.folder / str(number))
            own.folder.mkdir()
            _measure(of_cell, cfg, own, size, most, seconds / len(cells))
        of_cell[1].ratio = statistics.median(one / more for one, more in zip(*(each.seconds for each in of_cell)))
        timed += of_cell
    return timed


def _measure(of_cell: Sequence[Timing], cfg: Settings, work: Workload, size: int, most: int, seconds: float) -> None:
    until = time.monotonic() + seconds
    prepare(MODE, cfg, work)  # in this process, and fills the teacher cache for the others
    with contextlib.ExitStack() as stack:
        others = [stack.enter_context(process()) for _ in range(size)]
        meeting = str(work.folder.resolve() / "meeting")
        joined = [each.submit(_join, rank, size, meeting, cfg, work) for rank, each in enumerate(others)]
        for each in joined:
            each.result()

        def seconds_of(timing: Timing) -> float:
            if timing is of_cell[0]:
                began, ended = train(MODE, 1)
                return (ended - began) / work.steps
            running = [each.submit(train, MODE, 1) for each in others]
            starts, ends = zip(*(each.result() for each in running))
            return (max(ends) - min(starts)) / work.steps

        in_turns(of_cell, seconds_of, most, until)
        for each in [each.submit(distributed.leave) for each in others]:
            each.result()


def _join(rank: int, size: int, meeting: str, cfg: Settings, work: Workload) -> None:
    """Become one of the processes, and warm up."""
    device = pick_device(f"cuda:{rank}") if work.device.type == "cuda" else work.device
    distributed.join(rank, size, distributed.open_store(meeting), device)
    prepare(MODE, cfg, replace(work, device=device, threads=_share(work, size)))


def _share(work: Workload, size: int) -> int:
    """The threads of one of the processes."""
    return max(1, work.threads // size)


def summary(timed: Sequence[Timing], work: Workload, size: int) -> tuple[list[str], list[list[str]]]:
    """Images per second and their ratio, as (header, rows)."""
    names = ["1 process", f"{size} processes"]
    if work.device.type == "cpu":
        names = [f"{name} x {n} threads" for name, n in zip(names, (work.threads, _share(work, size)))]
    header = ["pair", "method", *names, "times as fast"]
    rows = [
        [one.pair, one.method, f"{one.images_per_second:.4g}", f"{more.images_per_second:.4g}", f"{more.ratio:.2f}"]
        for one, more in zip(timed[::2], timed[1::2])
    ]
    return header, rows

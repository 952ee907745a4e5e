"""The cost of a step of every method, relative to KD's: `edkd bench --methods all`.

All methods of a pair are made at once, each with the code of a real run, and take turns, so that whatever slows the
machine down slows all of them: a cost is the median of the ratios to KD's step within a repetition.
"""

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from edkd import CONF
from edkd.bench import measure, table
from edkd.bench.modes import WAYS, Ours
from edkd.bench.table import Timing
from edkd.bench.turns import in_turns
from edkd.bench.workload import Workload
from edkd.config.schema import Settings
from edkd.console import console
from edkd.rundir import files

EVERY = "all"  # of --methods
PAIR = "vgg13-vgg8"
BASE = "kd"
FILE = "methods_cost.csv"


def options() -> list[str]:
    """All methods of conf/distiller, KD first."""
    names = sorted(path.stem for path in (CONF / "distiller").glob("*.yaml"))
    return [BASE, *(name for name in names if name != BASE)]


def timings(cells: Sequence[Settings], work: Workload, most: int, seconds: float) -> list[Timing]:
    """The timings of all methods of each pair: up to `most` repetitions in about `seconds`; `ratio` is the cost."""
    found: list[Timing] = []
    pairs = list(dict.fromkeys(map(_pair, cells)))
    for pair in pairs:
        with console.status(f"{pair}, all methods"):
            found += _of_a_pair([cfg for cfg in cells if _pair(cfg) == pair], work, most, seconds / len(pairs))
    return found


def _pair(cfg: Settings) -> str:
    """Both networks, also of a method that needs no teacher."""
    return f"{cfg.teacher.name}-{cfg.student.name}"


def _of_a_pair(cells: Sequence[Settings], work: Workload, most: int, seconds: float) -> list[Timing]:
    until = time.monotonic() + seconds
    _made(cells[0], work)  # the one-time costs of a process's first steps belong to no method
    made, timings = {}, []
    for cfg in cells:
        made[cfg.method], peak = _made(cfg, work)
        timings.append(Timing(_pair(cfg), cfg.method, "warm", cfg.schedule.batch_size, peak_mb=peak))

    def seconds_of(timing: Timing) -> float:
        made[timing.method].ready()
        return measure.seconds(made[timing.method].run, work.device) / work.steps

    in_turns(timings, seconds_of, most, until)
    for timing in timings:
        timing.ratio = statistics.median(own / others for own, others in zip(timing.seconds, timings[0].seconds))
    return timings


def _made(cfg: Settings, work: Workload) -> tuple[Ours, float | None]:
    """A warmed-up method, and its peak memory in MB."""
    memory = measure.Memory(work.device)
    method = Ours(WAYS["warm"], cfg, work)
    memory.restart()
    method.ready()
    method.run()
    return method, memory.peak(children=False)


def show(found: Sequence[Timing]) -> None:
    """Print the costs, the cheapest first."""
    grid = Table("pair", "method", "ms per step", "as much as KD", "peak MB")
    for timing in sorted(found, key=lambda timing: (timing.pair, timing.ratio)):
        numbers = (timing.ms, timing.ratio, timing.peak_mb)
        grid.add_row(timing.pair, timing.method, *("" if each is None else f"{each:.4g}" for each in numbers))
    console.print(grid)


def write(folder: Path, found: Sequence[Timing], about: dict[str, Any]) -> list[Path]:
    """Write `<folder>/methods_cost.csv` and return its path; docs/methods.md is made from the one in docs/."""
    files.write_bytes(folder / FILE, table.as_csv(found, about).encode())
    return [folder / FILE]

"""A mode that is warmed up and takes its turns, in this process or in one of its own.

The plain loop has a process of its own, for what makes ours fast is partly a matter of the process (how memory is
kept, which algorithms cuDNN takes) and must not leak into it. Runs side by side have one each.
"""

import multiprocessing
import time
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, NamedTuple

from edkd.bench import measure, modes
from edkd.bench.workload import Workload
from edkd.config.schema import Settings
from edkd.data import _torchvision

LULL = 0.1  # seconds for the plain loop's workers to finish what its last step asked of them


class Span(NamedTuple):
    """When work began and ended, in seconds of the machine's monotonic clock, which all processes share."""

    began: float
    ended: float
    peak_mb: float | None  # what the mode took at its most, beyond what was held before it was made


class Here:
    """A mode in this process."""

    def __init__(self, name: str, cfg: Settings, work: Workload) -> None:
        self.work = work
        if name == modes.PLAIN:
            _torchvision.load()  # a library counts as little as torch does
        memory = measure.Memory(work.device)
        self.mode = modes.make(name, cfg, work)
        memory.restart()
        self.mode.ready()
        self.mode.run()
        workers = multiprocessing.active_children() if name == modes.PLAIN else []
        self.peak_mb = memory.peak(worker.pid for worker in workers)

    def train(self, epochs: int = 1) -> Span:
        """Train this many cut epochs from the first weights."""
        self.mode.ready()
        measure.wait(self.work.device)
        began = time.monotonic()
        for _ in range(epochs):
            self.mode.run()
        measure.wait(self.work.device)
        return Span(began, time.monotonic(), self.peak_mb)


class Away(ProcessPoolExecutor):
    """One mode after another in a process of their own. Where that process dies, BrokenProcessPool is raised."""

    def __init__(self, work: Workload) -> None:
        super().__init__(1, multiprocessing.get_context("spawn"), _begin, (work,))

    def prepare(self, name: str, cfg: Settings) -> Future[None]:
        """Begin to put a mode in the place of the one before."""
        return self.submit(_prepare, name, cfg)

    def start(self, epochs: int) -> Future[Span]:
        """Begin what `Here.train` does."""
        return self.submit(_train, epochs)

    def train(self) -> Span:
        """See `Here.train`."""
        span = self.start(1).result()
        time.sleep(LULL)
        return span


_held: dict[str, Any] = {}  # in a process of its own: "work", and "here" of the mode


def _begin(work: Workload) -> None:
    _held["work"] = work


def _prepare(name: str, cfg: Settings) -> None:
    _held.pop("here", None)  # its memory is to be free
    _held["here"] = Here(name, cfg, _held["work"])


def _train(epochs: int) -> Span:
    span: Span = _held["here"].train(epochs)
    return span

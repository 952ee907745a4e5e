"""A mode that is warmed up and takes its turns, in this process or in one of its own.

The plain loop has a process of its own, for what makes ours fast is partly a matter of the process (how memory is
kept, which algorithms cuDNN takes) and must not leak into it. Runs side by side have one each.
"""

import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from edkd.bench import measure, modes, workload
from edkd.bench.workload import Workload
from edkd.config.schema import Settings
from edkd.errors import EdkdError

PATIENCE = 900.0  # seconds for a process to start, to warm up and to answer
LULL = 0.1  # seconds for the plain loop's workers to finish what its last step asked of them


class Span(NamedTuple):
    """When work began and ended, in seconds of the machine's monotonic clock, which all processes share."""

    began: float
    ended: float


class Here:
    """A mode in this process, warmed up; `peak_mb` is the memory that it took beyond what was held before.

    Raises NotCapturedError (see `modes`).
    """

    def __init__(self, name: str, cfg: Settings, work: Workload) -> None:
        self.work = work
        memory = measure.Memory(work.device)
        self.mode = modes.make(name, cfg, work)
        self.mode.fill()
        self.mode.ready()
        memory.restart()
        self.mode.run()
        self.mode.check()
        self.peak_mb = memory.peak(work.feed.workers if work.feed is not None else ())

    def train(self, epochs: int) -> Span:
        """Train this many cut epochs from the first weights."""
        self.mode.ready()
        measure.wait(self.work.device)
        began = time.monotonic()
        for _ in range(epochs):
            self.mode.run()
        measure.wait(self.work.device)
        return Span(began, time.monotonic())


class Host:
    """A process for one mode after another; `feed`: with the plain loop's workers, for data configured so."""

    def __init__(self, work: Workload, *, feed: Settings | None) -> None:
        context = multiprocessing.get_context("spawn")
        self.end, theirs = context.Pipe()
        # Not a daemon, which could have no workers; it ends when this end of the pipe is closed, however that happens.
        self.process = context.Process(target=_serve, args=(theirs, replace(work, feed=None), feed))
        self.process.start()
        theirs.close()

    def ask(self, *words: Any) -> None:
        """Give an order: a method of `_Service` and its arguments."""
        try:
            self.end.send(words)
        except OSError as error:
            raise EdkdError(f"a process of the benchmark is gone: {error.strerror}") from error

    def answer(self) -> Any:
        """What the oldest order without an answer came to. Raises EdkdError with the reason if it failed."""
        try:
            if not self.end.poll(PATIENCE):
                raise EdkdError(f"a process of the benchmark did not answer for {PATIENCE:.0f} s")
            good, answer = self.end.recv()
        except (EOFError, ConnectionError):
            raise EdkdError("a process of the benchmark died: is there memory enough?") from None
        if not good:
            raise EdkdError(answer)
        return answer

    def close(self) -> None:
        """End the process."""
        self.end.close()
        self.process.join(10)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


class Away:
    """A mode in the process of a host."""

    def __init__(self, host: Host, name: str, cfg: Settings) -> None:
        self.host = host
        host.ask("make", name, cfg)
        self.peak_mb: float | None = host.answer()

    def train(self, epochs: int) -> Span:
        """See `Here.train`."""
        self.host.ask("train", epochs)
        span: Span = self.host.answer()
        time.sleep(LULL)
        return span


def together(hosts: Sequence[Host], epochs: int) -> float:
    """The seconds from the first start to the last end, where the modes of these hosts train at once."""
    for host in hosts:
        host.ask("train", epochs)
    spans = [host.answer() for host in hosts]
    return max(span.ended for span in spans) - min(span.began for span in spans)


class _Service:
    """The orders that a host takes."""

    def __init__(self, work: Workload, feed: Settings | None) -> None:
        self.work = work if feed is None else replace(work, feed=workload.feed(feed, work.arrays, work.device))
        self.turn: Here | None = None

    def make(self, name: str, cfg: Settings) -> float | None:
        self.turn = None  # the memory of the mode before
        self.turn = Here(name, cfg, self.work)
        return self.turn.peak_mb

    def train(self, epochs: int) -> Span:
        assert self.turn is not None
        return self.turn.train(epochs)


def _serve(end: Connection, work: Workload, feed: Settings | None) -> None:
    service = None
    while True:
        try:
            order, *arguments = end.recv()
        except (EOFError, OSError, KeyboardInterrupt):
            return
        try:
            service = service or _Service(work, feed)
            answer = True, getattr(service, order)(*arguments)
        except KeyboardInterrupt:
            return
        except EdkdError as error:
            answer = False, str(error)
        except Exception as error:
            answer = False, f"in a process of the benchmark: {type(error).__name__}: {error}"
        try:
            end.send(answer)
        except OSError:
            return

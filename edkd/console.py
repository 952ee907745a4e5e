"""What a person sees while runs train: log lines, a progress bar, one-line errors."""

import argparse
import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rich.console import Console, RenderableType

if TYPE_CHECKING:
    from rich.progress import Task

LOG = logging.getLogger("edkd")

console = Console(stderr=True, highlight=False)

LINE_EVERY = 10.0  # seconds between lines about a count, where there is no terminal


@contextlib.contextmanager
def logging_to(file: Path, *, show: bool) -> Iterator[None]:
    """Append the log to `file`; with `show`, print it too. Warnings of Python's own go to the log as well."""
    handlers: list[logging.Handler] = [logging.FileHandler(file)]
    handlers[0].setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    if show:
        handlers.append(_printer())
    warnings = logging.getLogger("py.warnings")
    level, propagate = LOG.level, LOG.propagate
    LOG.setLevel(logging.INFO)
    LOG.propagate = False
    logging.captureWarnings(True)
    for handler in handlers:
        LOG.addHandler(handler)
        warnings.addHandler(handler)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for handler in handlers:
            LOG.removeHandler(handler)
            warnings.removeHandler(handler)
            handler.close()
        LOG.setLevel(level)
        LOG.propagate = propagate


def _printer() -> logging.Handler:
    if console.is_terminal:  # beside a progress bar only rich may print
        from rich.highlighter import NullHighlighter
        from rich.logging import RichHandler

        return RichHandler(
            console=console,
            show_path=False,
            show_level=False,
            log_time_format="%H:%M:%S",
            highlighter=NullHighlighter(),
            keywords=[],
        )
    plain = logging.StreamHandler()
    plain.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    return plain


@contextlib.contextmanager
def step_bar(show: bool, epochs: int) -> Iterator[Callable[[int, int, int], None] | None]:
    """A bar over the steps of a single run, on a terminal only; yields `update(epoch, steps done, steps an epoch)`."""
    if not show or not console.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    times = TextColumn("steps {task.fields[times]}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), times)
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=None, times="")

        def update(epoch: int, done: int, steps: int) -> None:
            progress.update(
                task,
                description=f"epoch {epoch}/{epochs}",
                total=epochs * steps,
                completed=(epoch - 1) * steps + done,
                times=_times(progress.tasks[0]),
            )

        yield update


def _times(task: "Task") -> str:
    """The time since a bar began and, once that is known, the time left."""
    left = task.time_remaining
    return duration(task.elapsed or 0.0) + ("" if left is None else f", {duration(left)} left")


@contextlib.contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a count's progress, its rate and the time left; yields `update(done)`.

    On a terminal it is a bar; elsewhere a line is printed at most every `LINE_EVERY` seconds.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    pace_column = TextColumn("{task.fields[pace]}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), pace_column)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total, pace="")
        began = shown = time.monotonic()

        def update(done: int) -> None:
            nonlocal shown
            now = time.monotonic()
            rate = done / max(now - began, 1e-9)
            left = duration((total - done) / rate) if rate else "unknown time"
            pace = f"{rate:,.0f}/s, {left} left"
            progress.update(task, completed=done, pace=pace)
            if not console.is_terminal and now - shown > LINE_EVERY:
                shown = now
                print(f"{what}: {done:,} of {total:,}, {pace}", file=sys.stderr, flush=True)

        yield update


def stdout() -> Console:
    """A console on standard output, for tables; it wraps lines only on a terminal."""
    return Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=10_000)


def print_lines(to: Console, *renderables: RenderableType) -> None:
    """Print to the console, without empty lines and without blanks at the ends of lines."""
    with to.capture() as drawn:
        to.print(*renderables, sep="\n")
    print("\n".join(line.rstrip() for line in drawn.get().splitlines() if line))


def fail(message: str, code: int = 1) -> NoReturn:
    """Print one line that says what went wrong, and exit with `code`."""
    print(f"edkd: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(code)


class Parser(argparse.ArgumentParser):
    """A parser that reports a wrong command in one line, like every other error."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str) -> NoReturn:
        """Exit with 2; the line begins with the name of the program or the module."""
        name = self.prog.removeprefix("python -m ").split()[0]
        print(f"{name}: {' '.join(message.split())}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


def size(count: float) -> str:
    """A number of bytes, as ``1.52 GB`` or ``0.31 MB``."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"


def counted(count: int, noun: str) -> str:
    """A number and its noun: ``1 run``, ``2 runs``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss, or in days: ``0:08:20``, ``1.5 days``."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}" if whole < 86400 else f"{whole / 86400:.1f} days"


def number(value: float | None, digits: int) -> str:
    """A number with `digits` decimals; empty for None."""
    return "" if value is None else f"{value:.{digits}f}"

"""The table of runs that `edkd status` shows: once, live, or as JSON."""

import dataclasses
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from edkd.status import STATES, RunView
from edkd.wording import counted

STYLES = {
    "done": "green",
    "new": "dim",
    "waiting": "yellow",
    "running": "cyan",
    "vanished": "bold magenta",
    "failed": "bold red",
}
URGENCY = ("failed", "vanished", "running", "waiting", "new", "done")
COLUMNS = ("state", "epoch", "top-1 %", "best %", "images/s", "time", "node", "job", "run")
WORDS = ("state", "node", "job", "run")  # flush left, the numbers flush right


def show(views: Sequence[RunView]) -> None:
    """Print the table, what needs attention last, and the numbers."""
    lines = _lines(sorted(views, key=lambda view: STATES.index(view.state))) if views else []
    if sys.stdout.isatty():
        console = Console()
        console.print(_table(lines, overflow="fold"))
        console.print(summary(views), style="bold", highlight=False)
    else:
        for line in lines:
            print(f"{line.numbers}  {line.run}".rstrip())
        print(summary(views))


def watch(look: Callable[[], list[RunView]], seconds: float) -> list[RunView]:
    """Show the table, renewed every so many seconds, what needs attention first; return what was seen last.

    Ends when every run is done, failed or vanished, and at Ctrl-C.
    """
    console = Console()
    views = look()
    try:
        with Live(_screen(views, console), console=console, auto_refresh=False, vertical_overflow="crop") as live:
            while any(view.state in ("new", "waiting", "running") for view in views):
                time.sleep(seconds)
                views = look()
                live.update(_screen(views, console), refresh=True)
    except KeyboardInterrupt:
        pass
    return views


def document(views: Sequence[RunView], output: str, sweep: str | None) -> str:
    """One JSON object: {"output", "sweep", "time", "counts": {state: number}, "runs": [the fields of RunView]}."""
    counts = Counter(view.state for view in views)
    whole: dict[str, Any] = {
        "output": output,
        "sweep": sweep,
        "time": time.time(),
        "counts": {state: counts[state] for state in STATES},
        "runs": [dataclasses.asdict(view) for view in views],
    }
    return json.dumps(whole, default=str, indent=1)


def exit_code(views: Sequence[RunView]) -> int:
    """0 if all runs are done, 1 if one failed or vanished, 3 otherwise."""
    states = {view.state for view in views}
    return 1 if states & {"failed", "vanished"} else 3 if states - {"done"} else 0


def summary(views: Sequence[RunView]) -> str:
    """The number of runs in each state, in one line."""
    counts = Counter(view.state for view in views)
    numbers = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    return f"{counted(len(views), 'run')}{': ' if numbers else ''}{numbers}"


def clock(seconds: float) -> str:
    """A duration as h:mm:ss, or in days."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}" if whole < 86400 else f"{whole / 86400:.1f} days"


class _Line(NamedTuple):
    """A row of the table: what has a fixed width, and what may be cut or wrapped on a narrow screen."""

    state: str
    numbers: str
    run: str


def _screen(views: Sequence[RunView], console: Console) -> Group:
    ordered = sorted(views, key=lambda view: URGENCY.index(view.state))
    room = max(1, console.height - 4) if console.is_terminal else len(ordered)  # for header, numbers and cursor
    hidden = f"; {len(ordered) - room} not shown" if len(ordered) > room else ""
    numbers = Text(f"{time.strftime('%H:%M:%S')}  {summary(views)}{hidden}", style="bold", overflow="ellipsis")
    return Group(_table(_lines(ordered[:room]), overflow="ellipsis"), numbers)


def _table(lines: Sequence[_Line], overflow: Literal["fold", "ellipsis"]) -> Table:
    """Two columns: rich takes its time for each cell, and a sweep may have a thousand rows."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=overflow == "ellipsis", overflow=overflow)
    for line in lines:
        numbers = Text(line.numbers)
        numbers.stylize(STYLES.get(line.state, "bold"), 0, len(line.state))
        table.add_row(numbers, Text(line.run, style="" if line.state in STYLES else "bold"))
    return table


def _lines(views: Sequence[RunView]) -> list[_Line]:
    """A header and one line a run, aligned, without the columns that no run fills."""
    same_dataset = len({view.dataset for view in views}) < 2
    rows = [COLUMNS, *(_row(view, same_dataset) for view in views)]
    filled = [number for number in range(len(COLUMNS)) if any(row[number] for row in rows[1:])]
    widths = [max(len(row[number]) for row in rows) for number in range(len(COLUMNS))]

    def padded(row: Sequence[str], number: int) -> str:
        width = widths[number]
        return row[number].ljust(width) if COLUMNS[number] in WORDS else row[number].rjust(width)

    whys = ["", *(view.why for view in views)]
    return [
        _Line(row[0], "  ".join(padded(row, number) for number in filled[:-1]), f"{padded(row, -1)}  {why}".rstrip())
        for row, why in zip(rows, whys)
    ]


def _row(view: RunView, same_dataset: bool) -> tuple[str, ...]:
    begun = view.epoch > 0 or view.state == "running"
    took = clock(view.seconds) if view.seconds is not None else ""
    return (
        view.state,
        f"{view.epoch}/{view.epochs if view.epochs is not None else '?'}" if begun else "",
        _number(view.top1, 2),
        _number(view.best, 2),
        _number(view.images_per_second, 0) if view.state == "running" else "",
        took if view.seconds_left is None else f"{clock(view.seconds_left)} left",
        view.node or "",
        (view.job or "") if view.state != "done" else "",
        view.name.partition("/")[2] if same_dataset else view.name,
    )


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"

"""The table of runs that `edkd status` shows: once, live, or as JSON."""

import itertools
import json
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from edkd.console import counted, duration, number
from edkd.status.state import STATES, RunStatus

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
EXTRA = ("time", "best %", "job", "node", "images/s")  # as far as a screen has room, in this order


def show(views: Sequence[RunStatus]) -> None:
    """Print the table, what needs attention last, and the numbers."""
    ordered = sorted(views, key=lambda view: STATES.index(view.state))
    if sys.stdout.isatty():
        console = Console()
        rows = _drawn(_lines(ordered, console.width), console.width, cut=False) if views else []
        console.print(Group(*(text for row in rows for text in row)))
        console.print(summary(views), style="bold", highlight=False)
    else:
        for line in _lines(ordered) if views else []:
            print(f"{line.numbers}  {line.run}  {line.why}".rstrip())
        print(summary(views))


def watch(look: Callable[[], list[RunStatus]], seconds: float) -> list[RunStatus]:
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


def document(views: Sequence[RunStatus], output: str, sweep: str | None) -> str:
    """One JSON object: {"output", "sweep", "time", "counts": {state: number}, "runs": [RunStatus.document]}."""
    counts = Counter(view.state for view in views)
    whole: dict[str, Any] = {
        "output": output,
        "sweep": sweep,
        "time": time.time(),
        "counts": {state: counts[state] for state in STATES},
        "runs": [view.document() for view in views],
    }
    return json.dumps(whole, default=str, indent=1)


def exit_code(views: Sequence[RunStatus]) -> int:
    """0 if all runs are done, 1 if one failed or vanished, 3 otherwise."""
    states = {view.state for view in views}
    return 1 if states & {"failed", "vanished"} else 3 if states - {"done"} else 0


def summary(views: Sequence[RunStatus]) -> str:
    """The number of runs in each state, in one line."""
    counts = Counter(view.state for view in views)
    numbers = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    return f"{counted(len(views), 'run')}{': ' if numbers else ''}{numbers}"


class _Line(NamedTuple):
    """A row of the table."""

    state: str
    numbers: str
    run: str
    why: str


def _screen(views: Sequence[RunStatus], console: Console) -> Group:
    ordered = sorted(views, key=lambda view: URGENCY.index(view.state))
    room = max(1, console.height - 4) if console.is_terminal else 2 * len(ordered)  # for header, numbers and cursor
    header, *rows = _drawn(_lines(ordered[:room], console.width), console.width, cut=True)
    ends = list(itertools.accumulate(map(len, rows)))
    shown = max(1, sum(end <= room for end in ends)) if rows else 0
    hidden = f"; {len(ordered) - shown} not shown" if len(ordered) > shown else ""
    numbers = Text(f"{time.strftime('%H:%M:%S')}  {summary(views)}{hidden}", style="bold", overflow="ellipsis")
    return Group(*header, *(text for row in rows[:shown] for text in row), numbers)


def _drawn(lines: Sequence[_Line], width: int, *, cut: bool) -> list[list[Text]]:
    """Each line as it is on a screen of that width: what explains a run is below it if it does not fit beside it.

    What is too long even so is cut, or takes several lines.
    """
    drawn = []
    indent = max(len(line.state) for line in lines) + 2
    fold: dict[str, Any] = {"no_wrap": cut, "overflow": "ellipsis" if cut else "fold"}
    for line in lines:
        beside = f"{line.numbers}  {line.run}  {line.why}".rstrip()
        below = len(beside) > width and bool(line.why)
        text = f"{line.numbers}  {line.run.rstrip()}" if below else beside
        first = Text(text, style="" if line.state in STYLES else "bold", **fold)
        first.stylize(STYLES.get(line.state, "bold"), 0, len(line.state))
        rest = [line.why] if cut else textwrap.wrap(line.why, max(20, width - indent))
        drawn.append([first, *(Text(" " * indent + part, **fold) for part in rest if below)])
    return drawn


def _lines(views: Sequence[RunStatus], width: int | None = None) -> list[_Line]:
    """A header and one line a run, aligned, without the columns that no run fills or that the width does not take."""
    same_dataset = len({view.dataset for view in views}) < 2
    rows = [COLUMNS, *(_row(view, same_dataset) for view in views)]
    filled = [column for column in range(len(COLUMNS)) if any(row[column] for row in rows[1:])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    if width is not None:
        room = width + 2 - sum(widths[column] + 2 for column in filled if COLUMNS[column] not in EXTRA)
        for column in map(COLUMNS.index, EXTRA):
            if column in filled and widths[column] + 2 > room:
                filled.remove(column)
            elif column in filled:
                room -= widths[column] + 2

    def padded(row: Sequence[str], column: int) -> str:
        width = widths[column]
        return row[column].ljust(width) if COLUMNS[column] in WORDS else row[column].rjust(width)

    whys = ["", *(view.why for view in views)]
    return [
        _Line(row[0], "  ".join(padded(row, column) for column in filled[:-1]), padded(row, -1), why)
        for row, why in zip(rows, whys)
    ]


def _row(view: RunStatus, same_dataset: bool) -> tuple[str, ...]:
    begun = view.epoch > 0 or view.state == "running"
    took = duration(view.seconds) if view.seconds is not None else ""
    return (
        view.state,
        f"{view.epoch}/{view.epochs if view.epochs is not None else '?'}" if begun else "",
        number(view.top1, 2),
        number(view.best, 2),
        number(view.images_per_second, 0) if view.state == "running" else "",
        took if view.seconds_left is None else f"{duration(view.seconds_left)} left",
        view.node or "",
        (view.job or "") if view.state != "done" else "",
        view.name.partition("/")[2] if same_dataset else view.name,
    )

"""The table of runs that `edkd status` shows: once, live, or as JSON."""

import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from edkd.console import counted, duration, number, print_lines, stdout
from edkd.rundir.settings import labels
from edkd.status.state import STATES, RunStatus, frozen

STYLES = {
    "done": "green",
    "pruned": "dim green",
    "new": "dim",
    "waiting": "yellow",
    "running": "cyan",
    "vanished": "bold magenta",
    "interrupted": "magenta",
    "failed": "bold red",
}
URGENCY = ("failed", "vanished", "interrupted", "running", "waiting", "new", "pruned", "done")
WORDS = ("state", "node", "job", "run")  # columns flush left; the numbers are flush right
EXTRA = ("time", "best %", "job", "node", "images/s")  # columns that are added in this order as far as the width allows
_GAP = 2  # characters between columns


def show(views: Sequence[RunStatus]) -> None:
    """Print the table, the most urgent runs last, and the counts; without a terminal, each run on one line."""
    ordered = sorted(views, key=lambda view: STATES.index(view.state))
    console = stdout()
    print_lines(console, _table(ordered, console.width) if views else Group(), Text(summary(views), style="bold"))


def watch(look: Callable[[], list[RunStatus]], seconds: float) -> list[RunStatus]:
    """Show the table on the whole screen, the most urgent runs first, and renew it every `seconds` seconds.

    Ends when every run is done, pruned, failed, vanished or interrupted, and at Ctrl-C; the table is then printed.
    Returns the last statuses.
    """
    console = Console()
    views = look()
    with (
        contextlib.suppress(KeyboardInterrupt),
        Live(_screen(views, console), console=console, screen=True, auto_refresh=False) as live,
    ):
        while any(view.state in ("new", "waiting", "running") for view in views):
            time.sleep(seconds)
            views = look()
            live.update(_screen(views, console), refresh=True)
    show(views)
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
    """0 if all runs are done or pruned, 1 if one failed or vanished, 3 otherwise."""
    states = {view.state for view in views}
    return 1 if states & {"failed", "vanished"} else 3 if states - {"done", "pruned"} else 0


def summary(views: Sequence[RunStatus]) -> str:
    """The number of runs in each state, in one line."""
    counts = Counter(view.state for view in views)
    numbers = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    return f"{counted(len(views), 'run')}{': ' if numbers else ''}{numbers}"


def _screen(views: Sequence[RunStatus], console: Console) -> Group:
    ordered = sorted(views, key=lambda view: URGENCY.index(view.state))[: console.height]
    numbers = Text(f"{time.strftime('%H:%M:%S')}  {summary(views)}", style="bold", no_wrap=True, overflow="ellipsis")
    return Group(numbers, _table(ordered, console.width))


def _table(views: Sequence[RunStatus], width: int) -> Table:
    """One line a run, without columns that are empty or too wide for the screen; the reason follows the run's name."""
    same_dataset, varied = len({view.dataset for view in views}) < 2, _labels(views)
    rows = [_row(view, varied.get(view.directory, ""), same_dataset=same_dataset) for view in views]
    widths = {
        column: max(len(column), *(len(row[column]) for row in rows)) + _GAP
        for column in (rows[0] if rows else ())
        if any(row[column] for row in rows)
    }
    room = width + _GAP - sum(widths[column] for column in widths if column not in EXTRA)
    shown = {column for column in widths if column not in EXTRA}
    for column in EXTRA:
        if column in widths and widths[column] <= room:
            shown.add(column)
            room -= widths[column]
    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False)
    columns = [column for column in widths if column in shown]
    for column in columns:
        table.add_column(
            column, justify="left" if column in WORDS else "right", no_wrap=column != "run", overflow="fold"
        )
    for view, row in zip(views, rows):
        row["run"] += f"  {view.why}" if view.why else ""
        table.add_row(*(Text(row[column], style=STYLES[view.state] if column == "state" else "") for column in columns))
    return table


def _labels(views: Sequence[RunStatus]) -> dict[Path, str]:
    """The settings in which runs of the same data, pair, method and seed differ; else only hashes tell them apart."""
    groups: dict[tuple[Any, ...], list[RunStatus]] = {}
    for view in views:
        groups.setdefault((view.dataset, view.pair, view.distiller), []).append(view)
    return labels(
        {
            view.directory: (group, (view.known.first_start or {}).get("config") or frozen(view.directory))
            for group, members in groups.items()
            if len({view.seed for view in members}) < len(members)
            for view in members
        }
    )


def _row(view: RunStatus, label: str, *, same_dataset: bool) -> dict[str, str]:
    begun = view.epoch > 0 or view.state == "running"
    took = duration(view.seconds) if view.seconds is not None else ""
    return {
        "state": view.state,
        "epoch": f"{view.epoch}/{view.epochs if view.epochs is not None else '?'}" if begun else "",
        "top-1 %": number(view.top1, 2),
        "best %": number(view.best, 2),
        "images/s": number(view.images_per_second, 0) if view.state == "running" else "",
        "time": took if view.seconds_left is None else f"{duration(view.seconds_left)} left",
        "node": view.node or "",
        "job": (view.job or "") if view.state != "done" else "",
        "run": f"{view.name.partition('/')[2] if same_dataset else view.name} {label}".rstrip(),
    }

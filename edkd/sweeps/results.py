"""The small table at the end of a sweep, from the journals alone; `python -m analysis` makes the whole one."""

import statistics
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from rich.table import Table

from edkd.config.job import Job, labels
from edkd.console import print_lines, stdout
from edkd.status.state import RunStatus

TEACHER, ALONE = "teacher", "alone"  # columns: a pair's teacher, and its student trained without one


class _Result(NamedTuple):
    row: str  # a pair, or a network that is in none
    column: str
    setting: str  # names what the runs of a cell have in common, all but the seed
    version: str  # like `setting`, with the code of the user's own classes
    top1: float


def show(jobs: Iterable[Job], outcome: Mapping[str, RunStatus]) -> None:
    """Print the last top-1 accuracy of finished runs, by pair and method, the mean over seeds; nothing if none ended.

    Settings of one method that the sweep varies are separate. If the runs of a cell still differ in more than the
    seed, it shows the number of settings or code versions instead.
    """
    cells: dict[tuple[str, str], dict[tuple[str, str], list[float]]] = {}
    for result in _results(jobs, outcome):
        ways = cells.setdefault((result.row, result.column), {})
        ways.setdefault((result.setting, result.version), []).append(result.top1)
    if not cells:
        return
    counts = {len(runs) for key, ways in cells.items() if key[1] != TEACHER for runs in ways.values()}
    same_count = len(counts) == 1
    texts = {key: _text(ways, with_count=not same_count and key[1] != TEACHER) for key, ways in cells.items()}
    columns = [
        name for name in dict.fromkeys((TEACHER, ALONE, *(c for _, c in cells))) if name in {c for _, c in cells}
    ]
    rows = list(dict.fromkeys(row for row, _ in cells))
    if len(columns) > len(rows):
        rows, columns = columns, rows
        texts = {(column, row): text for (row, column), text in texts.items()}
    over = f"n = {min(counts)}" if same_count else "(n)"
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column()
    for column in columns:
        table.add_column(column, justify="right", overflow="fold")
    for row in rows:
        table.add_row(row, *(texts.get((row, column), "") for column in columns))
    print_lines(stdout(), f"top-1 of the last epoch, %, {'' if counts == {1} else 'mean of '}{over}", table)


def _results(jobs: Iterable[Job], outcome: Mapping[str, RunStatus]) -> Iterator[_Result]:
    jobs = list(jobs)
    varied = labels(jobs)
    ended = [(job, known) for job in jobs if (known := outcome[job.run].known).end is not None]
    pairs = {job.settings.pair: job.settings for job, _ in ended if job.settings.needs_teacher}
    paired = {network.name for cfg in pairs.values() for network in (cfg.teacher, cfg.student)}
    for job, known in ended:
        assert known.start is not None and known.end is not None
        cfg, tags, top1 = job.settings, job.tags, known.end["last"]["top1"]
        label = f" {varied[job.run]}" if varied[job.run] else ""
        ways = tags["cell"], known.start["tags"]["cell"]
        if cfg.needs_teacher:
            if known.start["teacher"]["top1"] is not None:
                yield _Result(cfg.pair, TEACHER, job.teacher_id or "", "", known.start["teacher"]["top1"])
            yield _Result(cfg.pair, f"{tags.get('title', cfg.method)}{label}", *ways, top1)
            continue
        rows = [pair for pair, other in pairs.items() if other.student.name == cfg.student.name]
        for row in rows or ([] if cfg.pair in paired else [cfg.pair]):
            yield _Result(row, f"{ALONE}{label}", *ways, top1)


def _text(ways: Mapping[tuple[str, str], list[float]], *, with_count: bool) -> str:
    if len(ways) > 1:
        settings = len({setting for setting, _ in ways})
        return f"{settings} settings" if settings > 1 else f"{len(ways)} versions of its code"
    (runs,) = ways.values()
    return f"{statistics.fmean(runs):.2f}{f' ({len(runs)})' if with_count else ''}"

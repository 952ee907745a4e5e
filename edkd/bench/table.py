"""What a person reads of a benchmark: tables on the screen, a CSV, and a block of Markdown for a README."""

import csv
import io
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from edkd import __version__
from edkd.bench.modes import LABELS, PLAIN
from edkd.bench.results import Cost, Timing, by_pair
from edkd.rundir import files, provenance
from edkd.training import hardware
from edkd.training.device import cores


def about(device: torch.device, *, threads: int, data: str, steps: int) -> dict[str, Any]:
    """Versions and hardware."""
    version = provenance.read().version
    cuda = device.type == "cuda"
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(device) if cuda else "cpu",
        "cpu": hardware.cpu_model(),
        "cores": cores(),
        "threads": threads,
        "data": data,
        "steps": steps,
        "edkd": __version__,
        "commit": version.get("git_commit", ""),
        "modified": version.get("git_dirty", ""),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cuda": torch.version.cuda or "",
        "cudnn": torch.backends.cudnn.version() or "",
    }


def show(timings: Sequence[Timing], costs: Sequence[Cost], about: dict[str, Any]) -> None:
    """Print everything on standard output."""
    console = Console(width=None if os.isatty(1) else 160)
    console.print(_heading(about), "Teachers are untrained.", highlight=False)
    console.print(_grid(timings, "ms per step · images/s · times as fast as the plain loop", _speed))
    console.print(_grid(timings, "peak memory in MB · step as a multiple of its floor", _space))
    beside = Table("beside the step", "", "", "")
    for cost in costs:
        beside.add_row(cost.name, f"{cost.value:.3g}", cost.unit, cost.note)
    console.print(beside)


def write(folder: Path, timings: Sequence[Timing], costs: Sequence[Cost], about: dict[str, Any]) -> list[Path]:
    """Write `<folder>/<device>-<date>.csv` and `….md`; returns them. Raises EdkdError."""
    device = "".join(letter if letter.isalnum() else "-" for letter in str(about["device"])).lower()
    stem = folder / f"{device}-{about['date'][:19].replace(':', '').replace('-', '')}"
    text = io.StringIO()
    rows = [{**row(timing), **about} for timing in timings]
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    contents = {stem.with_suffix(".csv"): text.getvalue(), stem.with_suffix(".md"): markdown(timings, costs, about)}
    for path, content in contents.items():
        files.write_bytes(path, content.encode())
    return list(contents)


def row(timing: Timing) -> dict[str, Any]:
    """A timing as a row of the CSV; what was not measured is empty."""
    numbers = {
        "ms_median": timing.ms,
        "ms_q1": timing.quartiles[0],
        "ms_q3": timing.quartiles[1],
        "repetitions": len(timing.seconds),
        "images_per_second": timing.images_per_second,
        "ratio": timing.ratio,
        "peak_mb": timing.peak_mb,
        "floor_ms": timing.floor_ms,
    }
    named = {"pair": timing.pair, "method": timing.method, "mode": timing.mode}
    return named | {name: "" if number is None else f"{number:.6g}" for name, number in numbers.items()}


def markdown(timings: Sequence[Timing], costs: Sequence[Cost], about: dict[str, Any]) -> str:
    """The plain loop's time and the ratios by pair (geometric means over the methods), then the other costs."""
    names = [name for name in _modes(timings) if name != PLAIN]
    lines = [
        f"{_heading(about)}, commit {str(about['commit'])[:7] or 'unknown'}, {about['date'][:10]}",
        "",
        f"| pair | {' | '.join(['(a) plain loop, ms', *map(_label, names)])} |",
        f"|---|{'---:|' * (len(names) + 1)}",
    ]
    means = {name: by_pair(timings, name) for name in names}
    for pair in dict.fromkeys(timing.pair for timing in timings):
        base = [timing.ms for timing in timings if (timing.pair, timing.mode) == (pair, PLAIN)]
        shown = [f"{means[name][pair]:.1f}x" if pair in means[name] else "" for name in names]
        lines.append(f"| {pair} | {' | '.join([f'{statistics.geometric_mean(base):.0f}' if base else '', *shown])} |")
    overall = [f"**{statistics.geometric_mean(means[name].values()):.1f}x**" if means[name] else "" for name in names]
    lines += [f"| geometric mean | {' | '.join(['', *overall])} |", ""]
    lines += [f"- {cost.name}: {cost.value:.3g} {cost.unit} ({cost.note})" for cost in costs]
    return "\n".join(lines) + "\n"


def _heading(about: dict[str, Any]) -> str:
    return f"{about['device']} ({about['cpu']}, {about['threads']} threads), torch {about['torch']}, {about['data']}"


def _grid(timings: Sequence[Timing], title: str, shown: Callable[[Timing], str]) -> Table:
    """A row for each pair and method, a column for each mode."""
    names = _modes(timings)
    grid = Table("pair", "method", *map(_label, names), title=title)
    cells = {(timing.pair, timing.method, timing.mode): shown(timing) for timing in timings}
    for pair, method in dict.fromkeys((timing.pair, timing.method) for timing in timings):
        grid.add_row(pair, method, *(cells.get((pair, method, name), "") for name in names))
    return grid


def _modes(timings: Sequence[Timing]) -> list[str]:
    return list(dict.fromkeys(timing.mode for timing in timings))


def _label(mode: str) -> str:
    _, _, count = mode.partition("-")
    return f"(f) {count} side by side" if count else LABELS[mode]


def _speed(timing: Timing) -> str:
    ratio = f" · {timing.ratio:.1f}x" if timing.ratio is not None and timing.mode != PLAIN else ""
    return f"{timing.ms:.1f} ms · {timing.images_per_second:.0f}/s{ratio}"


def _space(timing: Timing) -> str:
    memory = "–" if timing.peak_mb is None else f"{timing.peak_mb:.0f}"
    return memory + (f" · {timing.ms / timing.floor_ms:.1f}x" if timing.floor_ms else "")

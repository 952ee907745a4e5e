"""The measurements, and their output: tables on the screen, a CSV, and Markdown for a README."""

import csv
import io
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from edkd import __version__
from edkd.bench.modes import LABELS, PLAIN
from edkd.rundir import files, provenance
from edkd.training import hardware
from edkd.training.device import cores


@dataclass
class Timing:
    """What one way to train one pair with one method took."""

    pair: str
    method: str
    mode: str
    batch: int  # images a step; times the number of runs for runs side by side
    seconds: list[float] = field(default_factory=list)  # per step, one entry a repetition
    ratio: float | None = None  # times as fast as the plain loop; other benchmarks compare otherwise
    peak_mb: float | None = None

    @property
    def ms(self) -> float:
        """Median milliseconds per step."""
        return statistics.median(self.seconds) * 1000

    @property
    def images_per_second(self) -> float:
        """Images trained on in a second, by all runs together."""
        return self.batch / self.ms * 1000


@dataclass(frozen=True)
class Cost:
    """The cost of something beside the step."""

    name: str
    value: float
    unit: str
    note: str


def compare(timings: Sequence[Timing]) -> None:
    """Fill in the ratios of a cell's timings to its plain loop: the median of those within each repetition.

    The ways to train take turns within a repetition, so whatever slows the machine down slows both sides of a ratio.
    For runs side by side, all runs' images count.
    """
    for base in [timing for timing in timings if timing.mode == PLAIN]:
        for timing in timings:
            ratios = [theirs / ours for theirs, ours in zip(base.seconds, timing.seconds)]
            timing.ratio = timing.batch / base.batch * statistics.median(ratios)


def about(device: torch.device, *, threads: int, data: str, steps: int) -> dict[str, Any]:
    """Versions and hardware."""
    version = provenance.read().version
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
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
        "torchvision": metadata.version("torchvision"),
        "pillow": metadata.version("pillow"),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cuda": torch.version.cuda or "",
        "cudnn": torch.backends.cudnn.version() or "",
    }


def show(timings: Sequence[Timing], costs: Sequence[Cost], about: dict[str, Any]) -> None:
    """Print everything on standard output."""
    console = Console(width=None if os.isatty(1) else 160)
    console.print(_heading(about), "Teachers are untrained.", highlight=False)
    modes = _modes(timings)
    title = "ms per step · images/s · times as fast as the plain loop; peak memory"
    grid = Table("pair", "method", *modes.values(), title=title, show_lines=True)
    cells = {(timing.pair, timing.method, timing.mode): _shown(timing) for timing in timings}
    for pair, method in dict.fromkeys((timing.pair, timing.method) for timing in timings):
        grid.add_row(pair, method, *(cells.get((pair, method, mode), "") for mode in modes))
    console.print(grid)
    beside = Table("beside the step", "", "", "")
    for cost in costs:
        beside.add_row(cost.name, f"{cost.value:.3g}", cost.unit, cost.note)
    console.print(beside)


def show_and_write(
    folder: Path,
    kind: str,
    timings: Sequence[Timing],
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    about: dict[str, Any],
) -> list[Path]:
    """Print one table, and write it in Markdown beside a CSV of the timings, as `write` does."""
    console = Console(width=None if os.isatty(1) else 160)
    console.print(_heading(about), highlight=False)
    grid = Table(*columns, title="images per second, and their ratios")
    for each in rows:
        grid.add_row(*each)
    console.print(grid)
    lines = [f"Images per second. {_heading(about, with_commit=True)}", "", columns, ["---"] * len(columns), *rows]
    text = "\n".join(line if isinstance(line, str) else f"| {' | '.join(line)} |" for line in lines) + "\n"
    return write(folder, timings, text, about, kind=kind)


def write(folder: Path, timings: Sequence[Timing], text: str, about: dict[str, Any], *, kind: str = "") -> list[Path]:
    """Write `<folder>/<device>-<kind><date>.csv`, and `text` as `….md`; returns their paths. Raises EdkdError."""
    device = "".join(letter if letter.isalnum() else "-" for letter in str(about["device"])).lower()
    stem = folder / f"{device}-{kind}{about['date'][:19].replace(':', '').replace('-', '')}"
    contents = {stem.with_suffix(".csv"): as_csv(timings, about), stem.with_suffix(".md"): text}
    for path, content in contents.items():
        files.write_bytes(path, content.encode())
    return list(contents)


def as_csv(timings: Sequence[Timing], about: dict[str, Any]) -> str:
    """A row for each timing, with versions and hardware."""
    text = io.StringIO()
    rows = [{**row(timing), **about} for timing in timings]
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def row(timing: Timing) -> dict[str, Any]:
    """A timing as a row of the CSV; what was not measured is empty."""
    low, high = np.percentile(timing.seconds, (25, 75)) * 1000
    numbers = {
        "ms_median": timing.ms,
        "ms_q1": low,
        "ms_q3": high,
        "repetitions": len(timing.seconds),
        "images_per_second": timing.images_per_second,
        "ratio": timing.ratio,
        "peak_mb": timing.peak_mb,
    }
    shown = {name: "" if number is None else f"{number:.6g}" for name, number in numbers.items()}
    return {"pair": timing.pair, "method": timing.method, "mode": timing.mode, **shown}


def markdown(timings: Sequence[Timing], costs: Sequence[Cost], about: dict[str, Any]) -> str:
    """The plain loop's time and the ratios by pair (geometric means over the methods), then the other costs."""
    labels = {name: label for name, label in _modes(timings).items() if name != PLAIN}
    lines = [
        _heading(about, with_commit=True),
        "",
        f"| pair | {' | '.join(['(a) plain loop, ms', *labels.values()])} |",
        f"|---|{'---:|' * (len(labels) + 1)}",
    ]
    for pair in dict.fromkeys(timing.pair for timing in timings):
        of_pair = [timing for timing in timings if timing.pair == pair]
        base = _mean([timing.ms for timing in of_pair if timing.mode == PLAIN], "{:.0f}")
        ratios = [_mean([timing.ratio for timing in of_pair if timing.mode == name], "{:.1f}x") for name in labels]
        lines.append(f"| {' | '.join([pair, base, *ratios])} |")
    overall = [_mean([timing.ratio for timing in timings if timing.mode == name], "**{:.1f}x**") for name in labels]
    lines += [f"| geometric mean | {' | '.join(['', *overall])} |", ""]
    lines += [f"- {cost.name}: {cost.value:.3g} {cost.unit} ({cost.note})" for cost in costs]
    return "\n".join(lines) + "\n"


def _mean(numbers: Sequence[float | None], shape: str) -> str:
    """The geometric mean as text; empty where nothing was measured."""
    known = [number for number in numbers if number is not None]
    return shape.format(statistics.geometric_mean(known)) if known else ""


def _heading(about: dict[str, Any], *, with_commit: bool = False) -> str:
    commit = f", commit {str(about['commit'])[:7] or 'unknown'}, {about['date'][:10]}" if with_commit else ""
    machine = f"{about['device']} ({about['cpu']}, {about['threads']} threads)"
    return f"{machine}, torch {about['torch']}, {about['data']}{commit}"


def _modes(timings: Sequence[Timing]) -> dict[str, str]:
    """The modes that were measured, with their names for a reader."""
    counts = {timing.mode: timing.mode.partition("-")[2] for timing in timings}
    return {mode: f"(f) {count} side by side" if count else LABELS[mode] for mode, count in counts.items()}


def _shown(timing: Timing) -> str:
    ratio = f" · {timing.ratio:.1f}x" if timing.ratio is not None and timing.mode != PLAIN else ""
    memory = f"\n{timing.peak_mb:.0f} MB" if timing.peak_mb is not None else ""
    return f"{timing.ms:.1f} ms · {timing.images_per_second:.0f}/s{ratio}{memory}"

"""What a person reads of a benchmark: tables on the screen, a CSV, and a block of Markdown for a README."""

import csv
import io
import os
import platform
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from edkd import __version__
from edkd.bench.modes import LABELS
from edkd.bench.results import Cost, Target, Timing, by_pair, geometric_mean, ratios_of, targets
from edkd.rundir import files, provenance
from edkd.training import hardware
from edkd.training.device import cores

COLUMNS = (
    "pair", "method", "mode", "ms_median", "ms_q1", "ms_q3", "repetitions", "images_per_second", "ratio", "peak_mb",
    "floor_ms",
)  # fmt: skip
ABOUT = (
    "date", "device", "cpu", "cores", "threads", "data", "steps", "edkd", "commit", "modified", "python", "torch",
    "cpu_capability", "cuda", "cudnn",
)  # fmt: skip


def about(device: torch.device, *, threads: int, described: str, steps: int) -> dict[str, Any]:
    """Versions and hardware: a value for each of `ABOUT`."""
    version = provenance.read().version
    cuda = device.type == "cuda"
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(device) if cuda else "cpu",
        "cpu": hardware.cpu_model(),
        "cores": cores(),
        "threads": threads,
        "data": described,
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


def show(timings: Sequence[Timing], extra: Sequence[Cost], about: dict[str, Any], *, cuda: bool) -> None:
    """Print everything on standard output."""
    console = Console(width=None if os.isatty(1) else 160)
    names = _modes(timings)
    console.print(
        f"{about['device']} ({about['cpu']}, {about['threads']} threads), torch {about['torch']}; {about['data']}"
    )
    console.print("Teachers are untrained. Each cell: ms per step · images/s · times as fast as the plain loop.")
    grid = Table("pair", "method", *(_label(name) for name in names))
    cells = {(timing.pair, timing.method, timing.mode): timing for timing in timings}
    for pair, method in dict.fromkeys((timing.pair, timing.method) for timing in timings):
        grid.add_row(pair, method, *(_cell(cells.get((pair, method, name))) for name in names))
    console.print(grid)
    space = Table("pair", "method", *(f"{_label(name)}: MB, x floor" for name in names), title="peak memory, floor")
    for pair, method in dict.fromkeys((timing.pair, timing.method) for timing in timings):
        space.add_row(pair, method, *(_space(cells.get((pair, method, name))) for name in names))
    console.print(space)
    beside = Table("beside the step", "", "", "")
    for cost in extra:
        beside.add_row(cost.name, f"{cost.value:.3g}", cost.unit, cost.note)
    console.print(beside)
    for target in _targets(timings, extra, cuda=cuda):
        console.print(_sentence(target))


def write(
    folder: Path, timings: Sequence[Timing], extra: Sequence[Cost], about: dict[str, Any], *, cuda: bool
) -> list[Path]:
    """Write `<folder>/<device>-<date>.csv`, `….costs.csv` and `….md`; returns them. Raises EdkdError."""
    device = "".join(letter if letter.isalnum() else "-" for letter in str(about["device"])).lower()
    stem = f"{device}-{about['date'][:19].replace(':', '').replace('-', '')}"
    made = [folder / f"{stem}.csv", folder / f"{stem}.costs.csv", folder / f"{stem}.md"]
    rows = ({**row(timing), **about} for timing in timings)
    measured = ({"name": c.name, "value": f"{c.value:.6g}", "unit": c.unit, "note": c.note, **about} for c in extra)
    files.write_bytes(made[0], _csv((*COLUMNS, *ABOUT), rows))
    files.write_bytes(made[1], _csv(("name", "value", "unit", "note", *ABOUT), measured))
    files.write_bytes(made[2], markdown(timings, extra, about, cuda=cuda).encode())
    return made


def row(timing: Timing) -> dict[str, Any]:
    """A timing as `COLUMNS`; what was not measured is empty."""
    low, high = timing.quartiles
    return {
        "pair": timing.pair,
        "method": timing.method,
        "mode": timing.mode,
        "ms_median": f"{timing.ms:.4f}",
        "ms_q1": f"{low:.4f}",
        "ms_q3": f"{high:.4f}",
        "repetitions": len(timing.seconds),
        "images_per_second": f"{timing.images_per_second:.1f}",
        "ratio": "" if timing.ratio is None else f"{timing.ratio:.4f}",
        "peak_mb": "" if timing.peak_mb is None else f"{timing.peak_mb:.1f}",
        "floor_ms": "" if timing.floor_ms is None else f"{timing.floor_ms:.4f}",
    }


def markdown(timings: Sequence[Timing], extra: Sequence[Cost], about: dict[str, Any], *, cuda: bool) -> str:
    """The plain loop's time and the ratios by pair (geometric means over the methods), then the targets."""
    names = [name for name in _modes(timings) if name != "plain"]
    lines = [
        f"{about['device']} ({about['cpu']}, {about['threads']} threads), torch {about['torch']}, {about['data']}, "
        f"commit {str(about['commit'])[:7] or 'unknown'}, {about['date'][:10]}",
        "",
        f"| pair | {' | '.join(['(a) plain loop, ms'] + [_label(name) for name in names])} |",
        f"|---|{'---:|' * (len(names) + 1)}",
    ]
    means = {name: by_pair(ratios_of(timings, name)) for name in names}
    for pair in dict.fromkeys(timing.pair for timing in timings):
        base = [timing.ms for timing in timings if (timing.pair, timing.mode) == (pair, "plain")]
        shown = [f"{means[name][pair]:.1f}x" if pair in means[name] else "" for name in names]
        lines.append(f"| {pair} | {' | '.join([f'{geometric_mean(base):.0f}' if base else '', *shown])} |")
    overall = [f"**{geometric_mean(list(means[name].values())):.1f}x**" if means[name] else "" for name in names]
    lines += [f"| geometric mean | {' | '.join(['', *overall])} |", ""]
    lines += [f"- {_sentence(target)}" for target in _targets(timings, extra, cuda=cuda)]
    return "\n".join(lines) + "\n"


def _targets(timings: Sequence[Timing], extra: Sequence[Cost], *, cuda: bool) -> list[Target]:
    limits = {"planning": 10.0, "status": 2.0, "tracking, share": 1.0}
    costs = [Target(c.name, limits[c.name], c.value, False, f" {c.unit}") for c in extra if c.name in limits]
    return [*targets(timings, cuda=cuda), *costs]


def _sentence(target: Target) -> str:
    bound = "at least" if target.at_least else "at most"
    word = {True: "met", False: "MISSED", None: "not judged by fewer than 3 repetitions"}[target.met]
    return f"{target.name}: {target.value:.2f}{target.unit}; {bound} {target.goal:g}: {word}"


def _modes(timings: Iterable[Timing]) -> list[str]:
    return list(dict.fromkeys(timing.mode for timing in timings))


def _label(mode: str) -> str:
    name, _, count = mode.partition("-")
    return f"(f) {count} side by side" if count else LABELS[name]


def _cell(timing: Timing | None) -> str:
    if timing is None:
        return ""
    ratio = f" · {timing.ratio:.1f}x" if timing.ratio is not None and timing.mode != "plain" else ""
    return f"{timing.ms:.1f} ms · {timing.images_per_second:.0f}/s{ratio}"


def _space(timing: Timing | None) -> str:
    if timing is None:
        return ""
    floor = f", {timing.above_floor:.1f}x" if timing.above_floor is not None else ""
    return (f"{timing.peak_mb:.0f}" if timing.peak_mb is not None else "–") + floor


def _csv(columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()

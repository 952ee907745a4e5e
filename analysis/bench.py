"""`python -m analysis.bench`: seconds and memory of table, statistics and report over 1,014 runs of 240 epochs."""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from analysis import __main__ as table
from analysis import html_report, literature, load, statistics
from analysis.options import chosen, parser
from edkd.rundir import files, results
from edkd.rundir.journal import Record

_METHODS = ("kd", "dkd", "edkd", *(f"method{i:02}" for i in range(23)))
_PAIRS = literature.PUBLISHED
_SEEDS, _EPOCHS = 3, 240


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the store, measure each part in a process of its own and print a line for it."""
    parser = argparse.ArgumentParser(prog="python -m analysis.bench", description=__doc__)
    parser.add_argument("part", nargs="?", choices=_PARTS, help=argparse.SUPPRESS)  # what a process of its own does
    parser.add_argument("--output", type=Path, help="keep the store in this folder (default: a temporary one)")
    options = parser.parse_args(arguments)
    if options.part:
        _PARTS[options.part](options.output)
        used = resource.getrusage(resource.RUSAGE_SELF)
        print(used.ru_utime + used.ru_stime, used.ru_maxrss)
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.output or Path(temporary)
        print(f"{build(folder)} runs of {_EPOCHS} epochs")
        for part in _PARTS:
            begun = time.perf_counter()
            command = [sys.executable, "-m", "analysis.bench", part, "--output", str(folder)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            seconds = time.perf_counter() - begun
            cpu, kilobytes = map(float, done.stdout.split()[-2:])
            print(f"{part:<10} {seconds:5.1f} s ({cpu:.1f} s of CPU), {kilobytes * 1024 / 1e9:.2f} GB")
    return 0


def build(folder: Path) -> int:
    """Pack invented runs of every method on every pair of the field into `folder`/packed; returns their number."""
    draw = np.random.default_rng(0)
    count = 0
    for k, pair in enumerate(_PAIRS):
        for m, method in enumerate(_METHODS):
            for seed in range(_SEEDS):
                top1 = 60 + k / 2 + m / 20 + 10 * (np.arange(_EPOCHS) >= 149) + draw.normal(0, 0.25, _EPOCHS)
                path = folder / "packed" / pair / f"{method}-s{seed}-{count:08x}{results.SUFFIX}"
                files.write_bytes(path, results.dump(_journal(pair, method, seed, count, top1.tolist())))
                count += 1
    return count


def _journal(pair: str, method: str, seed: int, number: int, top1: list[float]) -> list[Record]:
    """A run as the trainer writes it down."""
    teacher, student = pair.split("-")
    rate = 0.01 if student.startswith(("mobilenet", "shufflenet")) else 0.05
    schedule = {"epochs": _EPOCHS, "batch_size": 64, "lr": rate, "milestones": [150, 180, 210], "gamma": 0.1}
    names = {
        "pair": pair,
        "teacher": teacher,
        "student": student,
        "distiller": method,
        "title": method.upper(),
        "year": "2020",
    }
    tags = {**names, "dataset": "cifar100", "seed": str(seed), "recipe": "240ep", "cell": f"{pair}{method}"}
    begun, run = 1.79e9 + number, f"{number:016x}"
    config = {"seed": seed, "schedule": schedule, "distiller": {f"value{i}": i for i in range(40)}}
    start = {"event": "start", "time": begun, "run": run, "name": f"{pair}/{method}-s{seed}", "config": config}
    start |= {"tags": {**tags, "config_hash": run, "git_commit": "0" * 40, "git_dirty": "False"}}
    start |= {"teacher": {"id": teacher, "sha256": "0" * 64, "top1": 75.0}, "versions": {"torch": "2.13.0"}}
    measured = ("train/loss", "train/loss_ce", "train/loss_kd", "train/top1", "lr", "test/loss", "test/top5")
    epochs = [
        {
            **{"event": "epoch", "time": begun + i, "epoch": i, "images_per_second": 1000 + value},
            "metrics": {
                **{name: value + 1 / (3 + j) for j, name in enumerate(measured)},
                **{"test/top1": value, "test/agreement": value, "test/kl_teacher": value / 100, "test/ece": value / 9},
            },
            "seconds": {"train": value, "test": value / 7},
        }
        for i, value in enumerate(top1, 1)
    ]
    last = {"epoch": _EPOCHS, "top1": top1[-1], "top5": 90.0, "loss": 1.0}
    best = {**last, "epoch": top1.index(max(top1)) + 1, "top1": max(top1), "by": "test"}
    spent = {"seconds": 3600 + 10.0 * number, "peak_memory_mb": 2000.0 + number}
    return [start, *epochs, {"event": "end", "time": begun, "last": last, "best": best, **spent}]


def _options(folder: Path) -> list[str]:
    return ["--results", str(folder / "packed"), "--output", str(folder)]


def _statistics(folder: Path) -> None:
    options = parser("analysis", None, "").parse_args(_options(folder))
    tidy = load.tidy(chosen(options)[1])
    *others, ours = tidy["method"].unique()
    contrasts = [(ours, name) for name in others]
    statistics.cells(tidy)
    for protocol in tidy["protocol"].unique():
        statistics.permits(statistics.comparisons(tidy, protocol))
        html_report.html_figures.matrix(tidy, protocol, [*others, ours])
        over = dict(zip(others, statistics.over_pairs(tidy, protocol, contrasts)))
        statistics.verdict(ours, over, statistics.comparisons(tidy, protocol, contrasts))


_PARTS: dict[str, Callable[[Path], object]] = {
    "table": lambda folder: table.main(_options(folder)),
    "statistics": _statistics,
    "report": lambda folder: html_report.main(_options(folder)),
}

if __name__ == "__main__":
    raise SystemExit(main())

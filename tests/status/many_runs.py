"""Journals without training, and the output folder of a large sweep: what tracking and overviews are measured on."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

PAIRS = ("resnet32x4-resnet8x4", "wrn_40_2-wrn_16_2", "wrn_40_2-wrn_40_1", "vgg13-vgg8", "vgg13-mobilenetv2")
DISTILLERS = ("kd", "dkd", "edkd")
KINDS = ("done", "done", "done", "done", "failed", "vanished", "new")  # the run number i is of kind i modulo 7
SWEEP = "cifar100-0123abcd"
BEGAN = 1_790_000_000.25
GROUP = {f"value_{number}": number / 7 for number in range(12)}
CONFIG = {
    name: dict(GROUP) for name in ("dataset", "teacher", "student", "distiller", "engine", "tracking")
}  # as large


def make_runs(output: Path, count: int, epochs: int) -> None:
    """Write `count` run directories of `epochs` epochs each below `output`/runs.

    Four of seven are finished, one each has failed half-way, was killed half-way, and was planned and never begun.
    """
    frozen = yaml.dump(CONFIG)
    for number in range(count):
        kind, pair = KINDS[number % len(KINDS)], PAIRS[number % len(PAIRS)]
        seed, method = divmod(number // len(PAIRS), len(DISTILLERS))
        run = f"{number:08x}" * 2
        name = f"cifar100/{pair}/{DISTILLERS[method]}-s{seed}-{run[:8]}"
        directory = output / "runs" / name
        directory.mkdir(parents=True)
        about = {"hash": run, "method": DISTILLERS[method], "teacher_id": f"run:{run}", "sweep": SWEEP}
        (directory / "config.yaml").write_text(frozen + yaml.dump({"run": about}))
        if kind != "new":
            lines = (json.dumps(record) + "\n" for record in records(kind, name, run, epochs))
            (directory / "journal.jsonl").write_text("".join(lines))


def records(kind: str, name: str, run: str, epochs: int) -> Iterator[dict[str, Any]]:
    """The journal of a run of a kind, with as many numbers as EDKD's have."""
    config = {**CONFIG, "schedule": {"epochs": epochs}}
    start = {"event": "start", "run": run, "name": name, "sweep": SWEEP, "config": config, "host": "node7"}
    yield {**start, "time": BEGAN, "tags": {f"tag_{number}": "0" * 16 for number in range(12)}}
    metrics = {f"{split}/{what}": 71.23456789 for split in ("train", "test") for what in ("loss", "top1", "top5")}
    metrics |= {f"train/loss_{part}": 1.23456789 for part in ("ce", "kd", "tckd", "nckd")}
    took = {"seconds": {"train": 55.5, "test": 4.5}, "images_per_second": 900.9}
    for epoch in range(1, (epochs if kind == "done" else epochs // 2) + 1):
        yield {"event": "epoch", "time": BEGAN + 60 * epoch, "epoch": epoch, "metrics": metrics, "lr": 0.05, **took}
    if kind == "failed":
        error = "loss_kd is nan in epoch 121: a lower learning rate may help"
        yield {"event": "failure", "time": BEGAN + 60 * epochs, "error": error}
    elif kind == "done":
        last = {"epoch": epochs, "top1": 71.2, "top5": 91.2, "loss": 1.1}
        end = {"event": "end", "last": last, "best": {**last, "by": "test"}, "seconds": 60.0 * epochs}
        yield {**end, "time": BEGAN + 60 * epochs, "num_classes": 100}

"""An output folder as a large sweep leaves it behind, without training: what overviews and planning are measured on."""

import json
import random
from pathlib import Path
from typing import Any

import yaml

PAIRS = ("resnet32x4-resnet8x4", "wrn_40_2-wrn_16_2", "wrn_40_2-wrn_40_1", "vgg13-vgg8", "vgg13-mobilenetv2")
DISTILLERS = ("kd", "dkd", "edkd")
KINDS = ("done", "done", "done", "done", "failed", "vanished", "new")  # the run number i is of kind i modulo 7
SWEEP = "cifar100-0123abcd"


def make_runs(output: Path, count: int, epochs: int) -> list[Path]:
    """Write `count` run directories of `epochs` epochs each below `output`/runs, and return them.

    Four of seven are finished, one each has failed half-way, was killed half-way, and was planned and never begun.
    """
    made = []
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        pair, distiller = PAIRS[number % len(PAIRS)], DISTILLERS[number // len(PAIRS) % len(DISTILLERS)]
        seed = number // (len(PAIRS) * len(DISTILLERS))
        run = f"{random.Random(number).getrandbits(64):016x}"
        name = f"cifar100/{pair}/{distiller}-s{seed}-{run[:8]}"
        directory = Path(output) / "runs" / name
        directory.mkdir(parents=True)
        config = _config(pair, distiller, seed, epochs)
        about = {"hash": run, "method": distiller, "teacher_id": f"run:{run[::-1]}", "sweep": SWEEP}
        (directory / "config.yaml").write_text(yaml.dump({**config, "run": about}, Dumper=_DUMPER, sort_keys=False))
        if kind != "new":
            records = _records(kind, name, run, config, epochs)
            (directory / "journal.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        made.append(directory)
    return made


_DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def _config(pair: str, distiller: str, seed: int, epochs: int) -> dict[str, Any]:
    """A configuration of the size of a real one; its values are never read."""
    teacher, student = pair.split("-")
    group = {f"value_{number}": number / 7 for number in range(12)}
    return {
        "seed": seed,
        "dataset": {"name": "cifar100", **group},
        "teacher": {"name": teacher, **group},
        "student": {"name": student, **group},
        "distiller": {"name": distiller, **group},
        "schedule": {"epochs": epochs, **group},
        "engine": group,
        "tracking": {"uri": "sqlite:///outputs/mlflow.db", **group},
    }


def _records(kind: str, name: str, run: str, config: dict[str, Any], epochs: int) -> list[dict[str, Any]]:
    metrics = {f"{split}/{what}": 71.23456789 for split in ("train", "test") for what in ("loss", "top1", "top5")}
    parts = {f"train/loss_{part}": 1.23456789 for part in ("ce", "kd", "tckd", "nckd")}
    begun = 1_790_000_000.25
    records: list[dict[str, Any]] = [
        {"event": "start", "time": begun, "run": run, "name": name, "sweep": SWEEP, "config": config, "host": "node7"}
    ]
    for number in range(1, (epochs if kind == "done" else epochs // 2) + 1):
        records.append(
            {
                "event": "epoch",
                "time": begun + 60 * number,
                "epoch": number,
                "metrics": {**metrics, **parts},
                "lr": 0.05,
                "seconds": {"train": 55.5, "test": 4.5},
                "images_per_second": 900.9,
            }
        )
    if kind == "failed":
        error = "loss_kd is nan in epoch 121: a lower learning rate may help"
        records.append({"event": "failure", "time": begun + 60 * epochs, "error": error})
    elif kind == "done":
        measured = {"epoch": epochs, "top1": 71.2, "top5": 91.2, "loss": 1.1}
        end = {"last": measured, "best": {**measured, "by": "test"}, "seconds": 60.0 * epochs, "num_classes": 100}
        records.append({"event": "end", "time": begun + 60 * epochs, **end})
    return records

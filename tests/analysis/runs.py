"""Runs as `load_runs` gives them, and a reader of the written table."""

import pandas as pd

from analysis import load

PAIR, OTHER = "vgg13-vgg8", "wrn_40_2-wrn_16_2"
RECIPE = "240ep-b64-fp32-1a2b3c4d"


def make(method="kd", pair=PAIR, seed=1, top1=70.0, **changes):
    """A finished run as `load_runs` gives it; best is the last epoch's accuracy + 1."""
    teacher, student = pair.split("-") if "-" in pair else ("", pair)
    cell = changes.pop("cell", f"c{abs(hash((method, pair))):x}"[:12])
    epochs = changes.pop("epochs", 240)
    tags = {"pair": pair, "teacher": teacher, "student": student, "distiller": method, "dataset": "cifar100"}
    tags |= {"seed": str(seed), "recipe": RECIPE, "cell": cell, "config_hash": f"{cell}{seed}", "best_by": "test"}
    tags |= {"git_commit": "0123456789abcdef", "git_dirty": "False"}
    tags |= {"teacher_top1": "74.64", "teacher_id": "t1"} if teacher else {}
    metrics = {"last/top1": top1, "last/top5": 90.0, "last/loss": 1.0, "last/epoch": float(epochs)}
    metrics |= {"best/top1": top1 + 1, "best/top5": 91.0, "best/loss": 1.0, "best/epoch": epochs - 5.0}
    name = changes.pop("name", f"{pair}/{method}-s{seed}")
    started = changes.pop("started", 1_790_000_000_000)
    status = changes.pop("status", "FINISHED")
    params = {"seed": str(seed), **changes.pop("params", {})}
    tags |= changes
    return {
        "run_id": f"{name}@{started}",
        "name": name,
        "status": status,
        "tags": tags,
        "params": params,
        "metrics": metrics if status == "FINISHED" else {"test/top1": 12.0},
        "start_time": started,
        "end_time": started,
    }


def block(text, title):
    """One block of the Markdown table: {row label: [cell, ...]}, the header under `teacher`."""
    lines = text.split(f"## {title}", 1)[1].split("\n## ", 1)[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return {row[0]: row[1:] for row in rows}


def placed(runs):
    return load.one_cell_each(pd.DataFrame(map(load._row, runs)), picked={}, latest=False)


def swept(*values, method="kd", **changes):
    """A run with each of these temperatures, whose top-1 is 70 + temperature."""
    return [
        make(
            method,
            **{"cell": f"{method}{value}", "top1": 70.0 + value, **changes},
            params={"distiller.temperature": str(value), "distiller.title": f"draft {value}", "engine.device": "cpu"},
            name=f"t{value}",
            started=1_790_000_000_000 + value,
        )
        for value in values
    ]


def seeded(method, *values, **changes):
    return [make(method, seed=seed, top1=top1, **changes) for seed, top1 in enumerate(values)]

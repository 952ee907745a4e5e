"""Work logs as mdistiller's training writes them."""

import random
from collections.abc import Iterable
from pathlib import Path

EPOCHS = 240


def block(epoch: int, top1: float, rate: str) -> str:
    line = "-" * 25
    values = {"epoch": epoch, "lr": rate, "train_acc": f"{top1 - 1:.2f}", "train_loss": "1.50"}
    values |= {"test_acc": f"{top1:.2f}", "test_acc_top5": f"{min(100.0, top1 + 20):.2f}", "test_loss": "1.25"}
    return "\n".join([line, *(f"{name}: {value}" for name, value in values.items()), line, ""])


def worklog(
    seed: int = 0, epochs: Iterable[int] = range(1, EPOCHS + 1), *, rate: float = 0.05, best: bool = True
) -> str:
    """A run's blocks, and its best accuracy where it reached the end. No two seeds give the same numbers."""
    stream = random.Random(seed)
    tops, text = [], ""
    for epoch in epochs:
        tops.append(round(70 * epoch / EPOCHS + 3 * stream.random(), 2))
        now = rate * 0.1 ** sum(epoch > milestone for milestone in (150, 180, 210))
        text += block(epoch, tops[-1], f"{now:.2f}")
    return text + (f"best_acc\t{max(tops):.2f}" if best else "")


def put(folder: Path, text: str) -> Path:
    """Write the work log of a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "worklog.txt"
    log.write_text(text)
    return log

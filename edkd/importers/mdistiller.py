"""Output folders of mdistiller-style training: `<method>,<teacher>,<student>/worklog.txt`.

A work log has one block for each epoch, between dashed lines. A block has lines `name: value`: `epoch`, `lr`,
`train_acc`, `train_loss`, `test_acc`, `test_acc_top5`, `test_loss`; accuracies are in percent. A complete run ends with
`best_acc<TAB>value`. Training appends to the file: it may hold several runs, and a restarted run repeats epochs.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edkd.config.schema import Schedule
from edkd.console import counted
from edkd.errors import EdkdError
from edkd.importers.results import Result, network
from edkd.rundir.paths import NAME

ORIGIN = "mdistiller"
LOG = "worklog.txt"

_METRICS = {
    "lr": "lr",
    "train_acc": "train/top1",
    "train_loss": "train/loss",
    "test_acc": "test/top1",
    "test_acc_top5": "test/top5",
    "test_loss": "test/loss",
}
_NEEDED = ("lr", "test_acc", "test_acc_top5", "test_loss")

Block = dict[str, str]  # the values of one epoch, as printed


@dataclass
class _Run:
    """Consecutive entries of a file that are one run."""

    blocks: list[Block] = field(default_factory=list)
    best: str | None = None

    @property
    def last(self) -> int:
        return int(self.blocks[-1]["epoch"]) if self.blocks else 0


def find(path: Path) -> list[Path]:
    """The work logs at or below a path. Raises EdkdError if there is none."""
    found = [path] if path.name == LOG and path.is_file() else sorted(path.rglob(LOG))
    if not found:
        raise EdkdError(f"no {LOG} there or below")
    return found


def named(log: Path) -> tuple[str, str, str]:
    """Method, teacher (empty for a student alone) and student, by the name of a work log's folder. Raises EdkdError."""
    folder = log.absolute().parent.name
    method, *networks = folder.split(",")
    if not NAME.fullmatch(method) or len(networks) not in (1, 2):
        raise EdkdError(f"the folder {folder!r} is not named METHOD,TEACHER,STUDENT")
    if len(networks) == 1 and method.lower() != "vanilla":
        raise EdkdError(f"the folder {folder!r} names one network, which only vanilla training has")
    teacher, student = ("", *map(network, networks)) if len(networks) == 1 else map(network, networks)
    return method.lower(), teacher, student


def read(log: Path, schedule: Schedule) -> Iterator[Result | EdkdError]:
    """Each run of a work log, or an EdkdError with the reason if it is no whole run by this schedule.

    Raises EdkdError for a file that is no work log, or one in another form.
    """
    method, teacher, student = named(log)
    try:
        runs = _split(_parse(log.read_text()))
    except (OSError, UnicodeDecodeError) as error:
        raise EdkdError(f"could not be read: {error}") from error
    for number, run in enumerate(runs, 1):
        which = f"run {number} of {len(runs)} in the file" if len(runs) > 1 else ""
        try:
            metrics, notes = _checked(run, schedule)
            best = max(metrics, key=lambda epoch: metrics[epoch]["test/top1"])  # the first of equals
        except EdkdError as error:
            yield EdkdError(f"{which}: {error}" if which else str(error))
            continue
        yield Result(
            origin=ORIGIN,
            source=log,
            method=method,
            teacher=teacher,
            student=student,
            epochs=metrics,
            best={"epoch": best, **{name: metrics[best][f"test/{name}"] for name in ("top1", "top5", "loss")}},
            notes=(*([which] if which else []), *notes),
        )


def _parse(text: str) -> Iterator[Block | str]:
    """The blocks of a file and its best accuracies, in their order. Raises EdkdError for any other line.

    A block that the file's end cuts off is left out: its run ends early.
    """
    block: Block | None = None
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        cut = not line.endswith("\n")
        line = line.strip()
        # If the next run was appended, its dashes follow the value on the same line.
        best = re.fullmatch(r"best_acc\s+([\d.]+)-*", line)
        pair = re.fullmatch(r"(\w+):\s*(\S+)", line)
        if best or not line.strip("-"):
            if block is not None:
                yield _whole(block, number)
            block = None
            if best:
                yield best[1]
        elif pair and pair[1] == "epoch" and block is None:
            block = {"epoch": pair[2]}
        elif pair and block is not None and pair[1] not in block:
            block[pair[1]] = pair[2]
        elif block is None or not cut:
            raise EdkdError(f"line {number} is out of place: {line[:60]!r}")


def _whole(block: Block, number: int) -> Block:
    lacking = [name for name in _NEEDED if name not in block]
    if lacking:
        raise EdkdError(f"the block that ends in line {number} has no {', '.join(lacking)}")
    try:
        int(block["epoch"])
        values = {name: float(block[name]) for name in _METRICS if name in block}
    except ValueError as error:
        raise EdkdError(f"the block that ends in line {number}: {error}") from error
    if not 0 <= values["test_acc"] <= values["test_acc_top5"] <= 100:
        raise EdkdError(f"the block that ends in line {number} has accuracies that are no percentages of top 1 and 5")
    return block


def _split(entries: Iterator[Block | str]) -> list[_Run]:
    """The runs of a file: one ends with its best accuracy, or where another begins with epoch 1."""
    runs = [_Run()]
    for entry in entries:
        anew = isinstance(entry, dict) and entry["epoch"] == "1" and runs[-1].blocks
        if runs[-1].best is not None or anew:
            runs.append(_Run())
        if isinstance(entry, str):
            runs[-1].best = entry
        else:
            runs[-1].blocks.append(entry)
    return runs


def _checked(run: _Run, schedule: Schedule) -> tuple[dict[int, dict[str, float]], list[str]]:
    """The metrics of each epoch, and notes on oddities. Raises EdkdError unless the run is whole and by `schedule`."""
    latest: dict[int, Block] = {}
    notes: list[str] = []
    since = 0  # the entry at which the run was started again
    for number, block in enumerate(run.blocks):
        epoch, before = int(block["epoch"]), int(run.blocks[number - 1]["epoch"]) if number else 0
        if epoch > before + 1:
            raise EdkdError(f"epoch {epoch} follows epoch {before}" if before else f"begins with epoch {epoch}")
        if epoch <= before:
            since = number
            again = f"epochs {epoch} to {before}" if epoch < before else f"epoch {epoch}"
            notes.append(f"{again} repeated after a restart: the later counts")
        latest[epoch] = block
    if run.last < max(latest, default=0):
        raise EdkdError(f"ends after epoch {run.last}, which an earlier start had passed")
    if run.last != schedule.epochs:
        if run.best is None and run.last < schedule.epochs:
            raise EdkdError(f"ends after epoch {run.last} of {schedule.epochs}")
        raise EdkdError(
            f"has {run.last} epochs, the recipe {schedule.epochs}: schedule.epochs={run.last} names another one"
        )
    for epoch, block in latest.items():
        if not _prints_as(schedule.rate(epoch), block["lr"]):
            raise EdkdError(
                f"the learning rate of epoch {epoch} is {block['lr']}, the recipe's {schedule.rate(epoch):g}: "
                "schedule.lr=…, schedule.milestones=… name another one"
            )
    if run.best is None:
        notes.append("has no best_acc: the best epoch is that of the blocks")
    elif float(run.best) not in _possible_bests(run.blocks, latest, since):
        raise EdkdError(
            f"best_acc is {run.best}, but the highest test_acc is {max(float(b['test_acc']) for b in latest.values())}"
        )
    metrics = {
        epoch: {ours: float(block[name]) for name, ours in _METRICS.items() if name in block}
        for epoch, block in sorted(latest.items())
    }
    lost = [epoch for epoch in metrics if not math.isfinite(metrics[epoch]["test/loss"])]
    if lost:
        notes.append(f"test_loss is not finite in {counted(len(lost), 'epoch')}, the first is {lost[0]}")
    return metrics, notes


def _prints_as(rate: float, printed: str) -> bool:
    """Whether `rate`, rounded to the digits of `printed`, is the learning rate that was printed."""
    exact = abs(float(printed) - rate) <= 1e-6 * rate
    decimals = len(printed.partition(".")[2]) if "e" not in printed else 12
    return exact or abs(float(printed) - rate) <= 0.5001 * 10**-decimals


def _possible_bests(blocks: Sequence[Block], latest: dict[int, Block], since: int) -> set[float]:
    """The best accuracies that a run may report: a restart may have forgotten or replaced the epochs before it."""
    return {max(float(block["test_acc"]) for block in some) for some in (blocks, latest.values(), blocks[since:])}

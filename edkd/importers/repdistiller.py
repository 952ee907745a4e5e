"""Output folders of RepDistiller: `S:<student>_T:<teacher>_cifar100_<method>_r:<r>_a:<a>_b:<b>_<trial>/`.

Accuracies come from checkpoints: `<student>_best.pth` has the best epoch's on the test set (`epoch`, `best_acc`), and
`ckpt_epoch_<epoch>.pth` has that of every fortieth epoch, the last included (`accuracy`). Two kinds of files are not
read: TensorBoard's event files, which alone have learning curves, and `<student>_last.pth`, which has no accuracy.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edkd.config.schema import Schedule
from edkd.errors import EdkdError
from edkd.importers.results import Result, network
from edkd.rundir import checkpoint

ORIGIN = "repdistiller"

_FOLDER = re.compile(
    r"S[:_](?P<student>\w+?)_T[:_](?P<teacher>\w+?)_cifar100_(?P<method>[a-z]+)"
    r"_r:(?P<r>[^_]+)_a:(?P<a>[^_]+)_b:(?P<b>[^_]+)_(?P<trial>.+)"
)
_METHODS = {"hint": "fitnet", "attention": "at", "similarity": "sp", "correlation": "cc"}


def find(path: Path) -> list[Path]:
    """The folders of runs at or below a path. Raises EdkdError if there is none."""
    folders = [path, *sorted(each for each in path.rglob("*") if each.is_dir())] if path.is_dir() else []
    found = [folder for folder in folders if _FOLDER.fullmatch(folder.absolute().name)]
    if not found:
        raise EdkdError("no folder there is named as S:…_T:…_cifar100_METHOD_r:…_a:…_b:…_TRIAL")
    return found


def named(folder: Path) -> tuple[str, str, str]:
    """Method, teacher and student, by the name of a run's folder. Raises EdkdError."""
    name = _FOLDER.fullmatch(folder.absolute().name)
    assert name is not None
    return _METHODS.get(name["method"], name["method"]), network(name["teacher"]), network(name["student"])


def read(folder: Path, schedule: Schedule) -> Iterator[Result | EdkdError]:
    """The run of a folder. Raises EdkdError where it has no accuracy of its best epoch or of the schedule's last."""
    method, teacher, student = named(folder)
    name = _FOLDER.fullmatch(folder.absolute().name)
    assert name is not None
    best = _only(folder, "*_best.pth")
    epoch, top1 = _measured(best, "best_acc")
    tops = {}
    for path in folder.glob("ckpt_epoch_*.pth"):
        saved, accuracy = _measured(path, "accuracy")
        if path.name != f"ckpt_epoch_{saved}.pth":
            raise EdkdError(f"{path.name} is of epoch {saved}")
        tops[saved] = accuracy
    if max(tops, default=0) != schedule.epochs:
        there = f"the last checkpoint is of epoch {max(tops)}" if tops else "there is no ckpt_epoch_*.pth"
        raise EdkdError(
            f"the accuracy after epoch {schedule.epochs} is not known: {there} (schedule.epochs=… names another recipe)"
        )
    if epoch > schedule.epochs or top1 < max(tops.values()) or tops.get(epoch, top1) != top1:
        raise EdkdError(f"{best.name} ({top1:.2f} % in epoch {epoch}) does not agree with the other checkpoints")
    yield Result(
        origin=ORIGIN,
        source=folder,
        method=method,
        teacher=teacher,
        student=student,
        epochs={saved: {"test/top1": tops[saved]} for saved in sorted(tops)},
        best={"epoch": epoch, "top1": top1},
        given={key: name[key] for key in ("r", "a", "b", "trial")},
        notes=("accuracies are known of the epochs with a checkpoint and of the best one",),
    )


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise EdkdError(f"has {len(found)} files {pattern}, where one is expected")
    return found[0]


def _measured(path: Path, key: str) -> tuple[int, float]:
    """The epoch of a checkpoint and its accuracy in percent."""
    content: Any = checkpoint.read(path)
    try:
        epoch, accuracy = int(content["epoch"]), float(content[key])
    except (TypeError, KeyError, ValueError) as error:
        raise EdkdError(f"{path.name} has no epoch and {key}") from error
    if not 0 <= accuracy <= 100:
        raise EdkdError(f"{path.name} has {key} {accuracy}, which is no percentage")
    return epoch, accuracy

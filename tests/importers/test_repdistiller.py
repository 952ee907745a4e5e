"""Folders of checkpoints: which accuracies are known."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edkd.errors import EdkdError
from edkd.importers import Result, repdistiller
from tests.importers.test_mdistiller import RECIPE

NAME = "S:resnet8x4_T:resnet32x4_cifar100_kd_r:0.1_a:0.9_b:0.0_1"


def saved(folder: Path, tops: dict[int, Any], best: tuple[int, Any]) -> Path:
    """A run's folder with the checkpoints of these epochs, as far as they are read: accuracies beside weights."""
    folder.mkdir(parents=True)
    model = {"fc.weight": torch.zeros(2, 3)}
    for epoch, top1 in tops.items():
        torch.save({"epoch": epoch, "model": model, "accuracy": top1}, folder / f"ckpt_epoch_{epoch}.pth")
    torch.save({"epoch": best[0], "model": model, "best_acc": best[1]}, folder / "resnet8x4_best.pth")
    return folder


def test_what_checkpoints_say(tmp_path: Path) -> None:
    folder = saved(tmp_path / NAME, {40: torch.tensor(50.0), 200: 72.5, 240: np.float64(73.0)}, (238, 73.25))
    (result,) = repdistiller.read(folder, RECIPE)
    assert isinstance(result, Result)
    assert (result.method, result.teacher, result.student) == ("kd", "resnet32x4", "resnet8x4")
    assert result.epochs == {40: {"test/top1": 50.0}, 200: {"test/top1": 72.5}, 240: {"test/top1": 73.0}}
    assert result.best == {"epoch": 238, "top1": 73.25}
    assert result.given == {"r": "0.1", "a": "0.9", "b": "0.0", "trial": "1"}


@pytest.mark.parametrize(
    ("folder", "names"),
    [
        ("S:wrn_16_2_T:wrn_40_2_cifar100_hint_r:1.0_a:0.0_b:100.0_1", ("fitnet", "wrn_40_2", "wrn_16_2")),
        ("S:MobileNetV2_T:ResNet50_cifar100_attention_r:1_a:0.0_b:1000_2", ("at", "resnet50", "mobilenetv2")),
        ("S:ShuffleV1_T:resnet32x4_cifar100_crd_r:1_a:0_b:0.8_x", ("crd", "resnet32x4", "shufflenetv1")),
    ],
)
def test_names_of_folders(tmp_path: Path, folder: str, names: tuple[str, str, str]) -> None:
    (tmp_path / "student_model" / folder).mkdir(parents=True)
    (found,) = repdistiller.find(tmp_path)
    assert repdistiller.named(found) == names


@pytest.mark.parametrize(
    ("tops", "best", "message"),
    [
        ({40: 50.0}, (39, 51.0), "the accuracy after epoch 240 is not known: the last checkpoint is of epoch 40"),
        ({}, (39, 51.0), "the accuracy after epoch 240 is not known: there is no ckpt_epoch_*.pth"),
        ({200: 74.0, 240: 73.0}, (239, 73.5), "resnet8x4_best.pth (73.50 % in epoch 239) does not agree"),
        ({240: 7300.0}, (239, 73.5), "ckpt_epoch_240.pth has accuracy 7300.0, which is no percentage"),
        ({240: "good"}, (239, 73.5), "ckpt_epoch_240.pth has no epoch and accuracy"),
    ],
)
def test_runs_of_which_too_little_is_known(
    tmp_path: Path, tops: dict[int, Any], best: tuple[int, float], message: str
) -> None:
    folder = saved(tmp_path / NAME, tops, best)
    with pytest.raises(EdkdError, match=re.escape(message)):
        list(repdistiller.read(folder, RECIPE))


def test_a_checkpoint_that_holds_code_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / NAME, {240: 73.0}, (239, 73.5))
    torch.save({"epoch": 240, "accuracy": 73.0, "run": Path("x")}, folder / "ckpt_epoch_240.pth")
    with pytest.raises(EdkdError, match="is refused: holds Python objects"):
        list(repdistiller.read(folder, RECIPE))

"""Teachers that come with weights, as a user names them."""

import logging
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch

from edkd.data import _torchvision
from edkd.models import foreign
from edkd.teachers import store
from tests.commandline import error, files, journals, launch

KEY = "digits-8-20perclass-test10"
ARCH = "shufflenet_v2_x0_5"
TEACHER = ["teacher=torchvision", f"teacher.arch={ARCH}"]
STUDENT = ["student=timm", "student.arch=test_resnet", "distiller=kd", "schedule.epochs=1"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def weights(num_classes: int = 10) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return foreign.torchvision(num_classes=num_classes, arch=ARCH).state_dict()


@pytest.mark.parametrize("sweep", [[], ["-m"]], ids=["run", "sweep"])
def test_weights_in_a_file_teach(tiny: list[str], here: Path, sweep: list[str]) -> None:
    torch.save(weights(), here / "teacher.pth")
    command = [*sweep, *tiny, *TEACHER, "teacher.weights=teacher.pth", *STUDENT]
    assert launch(*command, "+dry_run=true").code == 0
    assert files(here) == {"teacher.pth"}
    done = launch(*command)
    assert done.code == 0, done
    (records,) = journals(here / "outputs").values()
    entry = store.find(here / "outputs" / "teachers", KEY, f"torchvision_{ARCH}")
    assert entry is not None and entry.id.startswith("file:") and records[0]["teacher"]["id"] == entry.id
    assert records[0]["tags"]["pair"] == f"torchvision_{ARCH}-timm_test_resnet"

    (here / "teacher.pth").rename(here / "moved.pth")  # the same weights: the same run, which is finished
    again = launch(*sweep, *tiny, *TEACHER, "teacher.weights=moved.pth", *STUDENT)
    assert again.code == 0 and journals(here / "outputs") == {
        f"torchvision_{ARCH}-timm_test_resnet/kd-s0": records,
    }
    torch.save({key: value + 1 for key, value in weights().items()}, here / "other.pth")
    message = error(launch(*sweep, *tiny, *TEACHER, "teacher.weights=other.pth", *STUDENT))
    assert message.startswith(f"teacher torchvision_{ARCH} of {KEY} is {entry.id}, teacher.weights=other.pth are file:")


def test_a_network_of_a_library_without_weights_is_trained_by_the_sweep(tiny: list[str], here: Path) -> None:
    done = launch("-m", *tiny, *TEACHER, "student=resnet8", "distiller=kd")
    assert done.code == 0, done
    assert set(journals(here / "outputs")) == {f"torchvision_{ARCH}/vanilla-s0", f"torchvision_{ARCH}-resnet8/kd-s0"}


def test_weights_of_a_library(
    tiny: list[str], here: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    offered = _torchvision.load().models.get_model_weights(ARCH)
    monkeypatch.setattr(offered, "get_state_dict", lambda *_, **__: weights())
    with caplog.at_level(logging.WARNING):
        assert launch(*tiny, *TEACHER, "teacher.weights=DEFAULT", *STUDENT).code == 0
    (warning,) = [each.getMessage() for each in caplog.records if "teacher.weights" in each.getMessage()]
    assert warning == (
        "teacher.weights=DEFAULT were trained with mean [0.485, 0.456, 0.406] (dataset.mean is [0.3057, 0.3057, "
        "0.3057]), with std [0.229, 0.224, 0.225] (dataset.std is [0.357, 0.357, 0.357]), on images of 224x224 (here "
        "8x8): other images make them a worse teacher"
    )
    (records,) = journals(here / "outputs").values()
    assert records[0]["teacher"]["id"] == f"torchvision:{ARCH}.IMAGENET1K_V1"


def failing(*_: Any, **__: Any) -> Any:
    raise urllib.error.URLError("no route to host")


def test_weights_that_cannot_be_had(tiny: list[str], here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def message(*more: str) -> str:
        return error(launch(*tiny, *TEACHER, *STUDENT, *more))

    offered = _torchvision.load().models.get_model_weights(ARCH)
    monkeypatch.setattr(offered, "get_state_dict", failing)
    said = message("teacher.weights=DEFAULT")
    assert said.startswith(f"could not download the weights torchvision:{ARCH}.IMAGENET1K_V1: URLError: ")
    assert said.endswith("no route to host>; without a network, teacher.weights=FILE names a file that has them")
    assert message("teacher.weights=none.pth").startswith("teacher.weights=none.pth: could not read it: No such file")
    torch.save(weights(num_classes=7), here / "seven.pth")
    assert "seven.pth does not fit the architecture ShuffleNetV2: of 338 entries 2 of another shape (fc.weight " in (
        message("teacher.weights=seven.pth")
    )
    assert message("teacher.arch=resnet8", "teacher.weights=DEFAULT").startswith(
        "arch=resnet8: torchvision has no such"
    )
    named = ["teacher=resnet8", "+teacher.weights=DEFAULT"]
    assert error(launch(*tiny, *STUDENT, *named)).startswith(
        "teacher.weights=DEFAULT: only torchvision and timm have weights by name"
    )
    assert error(launch(*tiny, *STUDENT, "+student.weights=DEFAULT")).startswith("student.weights=DEFAULT: students ")
    assert error(launch(*tiny, "teacher=timm", *STUDENT)).startswith("teacher.arch has no value yet: set teacher.arch=")
    assert files(here) == {"seven.pth"}

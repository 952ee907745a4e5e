"""`engine.checkpoint_every_minutes`: a run killed in the middle of an epoch continues there, to the same bits."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edkd.data.streaming import StreamedData
from edkd.rundir import journal
from tests.commandline import REPOSITORY, journals, launch, python, run_file
from tests.runs.networks import KILL_AT

MORTAL = ["student.name=mortal", "student.model._target_=tests.runs.networks.mortal"]
EVERY_STEP = "engine.checkpoint_every_minutes=1e-9"
SIGKILL = -9


@pytest.fixture
def streamed(tiny: list[str], tmp_path: Path) -> list[str]:
    """28 images of two classes, of which one cannot be read; batches of 8."""
    stream = np.random.default_rng(0)
    for split, count in (("train", 14), ("test", 4)):
        for name in ("cat", "dog"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = stream.integers(0, 255, (12, 16, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number:02}.png")
    (tmp_path / "images" / "train" / "dog" / "03.png").write_bytes(b"no image")
    dataset = ["dataset=imagefolder", "dataset.name=pets", f"dataset.root={tmp_path / 'images'}"]
    options = ["dataset.image_size=8", "dataset.workers=1", "dataset.broken=skip", "schedule.batch_size=8"]
    return [*(word for word in tiny if not word.startswith("dataset")), *dataset, *options]


def held_against_an_undisturbed_run(words: list[str], method: str, rank: int, tmp_path: Path) -> None:
    """Kill a process as it begins the third of four batches of the second epoch; continue, and compare."""
    undisturbed = launch(*words, f"output={tmp_path / 'undisturbed'}")
    assert undisturbed.code == 0, undisturbed
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    if (tmp_path / "undisturbed" / "teachers").exists():
        (outputs / "teachers").symlink_to(tmp_path / "undisturbed" / "teachers")
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    killed = python(str(REPOSITORY / "launch.py"), *words, EVERY_STEP, **{KILL_AT: f"{rank},7", "PYTHONPATH": path})
    assert killed.code in (SIGKILL, 1), killed
    (run,) = (path.parent for path in outputs.glob("runs/*/*mortal/*/checkpoint.pt"))
    assert journal.state(run).epoch == 1
    resumed = launch(*words)
    assert resumed.code == 0, resumed
    # Several processes agree on a checkpoint after the first step, and then once a second.
    steps = "2" if killed.code == SIGKILL else "[12]"
    assert re.search(f"resumed in epoch 2, after step {steps}$", (run / "run.log").read_text(), re.MULTILINE)
    found, expected = (journals(tmp_path / name) for name in ("outputs", "undisturbed"))
    (name,) = (each for each in found if "mortal" in each)
    timed = ("time", "seconds", "images_per_second")
    epochs, wanted = (
        [{k: v for k, v in record.items() if k not in timed} for record in each[name] if record["event"] == "epoch"]
        for each in (found, expected)
    )
    assert epochs == wanted
    one, other = (
        torch.load(run_file(tmp_path / folder, method, "last.pt"), weights_only=True)["model"]
        for folder in ("outputs", "undisturbed")
    )
    assert all(torch.equal(one[key], other[key]) for key in other)


def test_resident_data_with_metrics_of_each_class(tiny: list[str], tmp_path: Path) -> None:
    held_against_an_undisturbed_run(["-m", *tiny, *MORTAL, "distiller=edkd"], "edkd", 0, tmp_path)


def test_streamed_data_with_images_that_are_skipped(
    streamed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    load = StreamedData._load

    def counted(self: StreamedData, transform: object, batches: list[list[tuple[int, int]]]) -> object:
        read.append(len(batches))
        return load(self, transform, batches)

    monkeypatch.setattr(StreamedData, "_load", counted)
    held_against_an_undisturbed_run([*streamed, *MORTAL, "distiller=vanilla"], "vanilla", 0, tmp_path)
    assert read == [4, 1, 4, 1, 2, 1], "training and test; what was trained on is not read again"


def test_two_processes(tiny: list[str], tmp_path: Path) -> None:
    held_against_an_undisturbed_run([*tiny, *MORTAL, "distiller=vanilla", "engine.devices=2"], "vanilla", 1, tmp_path)

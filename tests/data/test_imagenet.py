"""ImageNet and Tiny-ImageNet as their archives unpack, and what is said of a folder where something is missing."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from edkd.data.sources import imagenet, tiny_imagenet
from edkd.data.streaming import StreamedData
from edkd.errors import EdkdError
from tests.commandline import journals, launch, metrics

WNIDS = ("n01443537", "n01629819")
IMAGES = {"train": 12, "val": 4}  # of each class


def write(path: Path, stream: np.random.Generator, label: int, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = stream.integers(0, 155, (size, size + 4 * label, 3)) + 100 * label
    Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """ImageNet's layout."""
    stream = np.random.default_rng(0)
    for split, count in IMAGES.items():
        for label, wnid in enumerate(WNIDS):
            for number in range(count):
                write(tmp_path / "imagenet" / split / wnid / f"{number:02}.JPEG", stream, label, 40)
    return tmp_path / "imagenet"


@pytest.fixture
def tiny_root(tmp_path: Path) -> Path:
    """Tiny-ImageNet's layout: one folder of validation images, whose classes a file names."""
    root, stream, lines = tmp_path / "tiny-imagenet-200", np.random.default_rng(0), []
    for label, wnid in enumerate(WNIDS):
        for number in range(IMAGES["train"]):
            write(root / "train" / wnid / "images" / f"{wnid}_{number}.JPEG", stream, 0, 16)
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("")
        for number in range(IMAGES["val"]):
            name = f"val_{2 * number + label}.JPEG"
            write(root / "val" / "images" / name, stream, 0, 16)
            lines.append(f"{name}\t{wnid}\t0\t0\t10\t10")
    (root / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    return root


def read_tiny(root: Path) -> Any:
    return tiny_imagenet(root=str(root), image_size=16, workers=0, broken="stop")


def test_imagenet_has_its_validation_images_as_test_set(large: Path) -> None:
    found = imagenet(root=str(large), image_size=32, workers=0, broken="stop")
    assert (found.classes, len(found.train), len(found.test)) == (WNIDS, 24, 8)


def test_a_class_without_images_is_named(large: Path) -> None:
    shutil.rmtree(large / "val" / WNIDS[1])
    with pytest.raises(EdkdError, match=rf"differ: only in train: {WNIDS[1]}; only in val: none; both need a folder"):
        imagenet(root=str(large), image_size=32, workers=0, broken="stop")
    (large / "val" / WNIDS[1]).mkdir()
    with pytest.raises(EdkdError, match=rf"^.*/val lacks images: .*{WNIDS[1]}.*and val/<class>/\* images$"):
        imagenet(root=str(large), image_size=32, workers=0, broken="stop")


def test_an_archive_is_no_folder(tmp_path: Path) -> None:
    archive = tmp_path / "tiny-imagenet-200.zip"
    archive.write_bytes(b"PK")
    with pytest.raises(EdkdError, match=rf"^{archive} is a file: unpack it; dataset.root=DIR names the folder"):
        read_tiny(archive)


def test_the_annotations_have_the_classes_of_the_validation_images(tiny_root: Path) -> None:
    found = read_tiny(tiny_root)
    assert (found.classes, len(found.train)) == (WNIDS, 24)
    assert {(Path(path).name, label) for path, label in map(found.test.__getitem__, range(8))} == {
        (f"val_{number}.JPEG", number % 2) for number in range(8)
    }
    assert len(found.fingerprint()) == 64


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("val_7.JPEG\tn01629819\t0\t0\t10\t10\n", "", "names 7 of the 8 images in "),
        ("val_7.JPEG\tn01629819\t0\t0\t10\t10\n", "val_7.JPEG\tn016", "line 8: no class 'n016' in train"),
        ("val_7.JPEG\tn01629819\t0\t0\t10\t10\n", "val_7.JP", "line 8: no image 'val_7.JP' in "),
        (WNIDS[1], WNIDS[0], f"has no image of {WNIDS[1]}"),
        ("val_7.JPEG", "val_5.JPEG", "line 8: image 'val_5.JPEG' has a line before"),
    ],
)
def test_truncated_annotations_are_one_line(tiny_root: Path, old: str, new: str, complaint: str) -> None:
    path = tiny_root / "val" / "val_annotations.txt"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(EdkdError) as raised:
        read_tiny(tiny_root)
    assert str(raised.value).startswith(str(path)) and complaint in str(raised.value)
    assert str(raised.value).endswith("; is the archive unpacked whole?") and "\n" not in str(raised.value)
    path.unlink()
    with pytest.raises(
        EdkdError, match=r"^cannot read .*val_annotations.txt and .*; dataset.root=DIR names the folder"
    ):
        read_tiny(tiny_root)


def test_a_class_that_the_archive_names_is_missed(tiny_root: Path) -> None:
    (tiny_root / "wnids.txt").write_text("\n".join([*WNIDS, "n02669723"]))
    with pytest.raises(EdkdError, match=r"wnids.txt names n02669723, not among the classes of .*unpacked whole\?$"):
        read_tiny(tiny_root)


def test_tiny_imagenet_is_rotated_and_evaluated_as_it_is(tiny_root: Path) -> None:
    found = read_tiny(tiny_root)
    shown: dict[str, Any] = {"mean": [0.0] * 3, "std": [1.0] * 3, "device": torch.device("cpu"), "channels_last": False}
    read: dict[str, Any] = {"size": 16, "workers": 0, "augmentation": found.augmentation, "broken": "stop"}
    read["flip"] = True
    train, test = (StreamedData(files, **read, **shown) for files in (found.train, found.test))
    ((images, _),) = test.batches(8)
    with Image.open(found.test[3][0]) as image:
        assert np.array_equal((images[3] * 255).round().byte().permute(1, 2, 0).numpy(), np.asarray(image))
    train.begin(0, 1, 24)
    rotated = train.next(24).images
    assert rotated.shape == (24, 3, 16, 16)
    assert (rotated[:, :, 0, 0] == 0).all(1).float().mean() > 0.5, "corners turn out of the image"


LARGE = {"imagenet_resnet34_resnet18": "imagenet_resnet18", "imagenet_resnet50_mobilenetv1": "mobilenetv1"}
SMALL = {"tiny_resnet18_mobilenetv2": "mobilenetv2", "tiny_resnet18_shufflenetv2": "shufflenetv2"}


@pytest.mark.parametrize("experiment", [*LARGE, *SMALL])
def test_an_experiment_trains(experiment: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Both stages, with a smaller teacher."""
    on_imagenet = experiment in LARGE
    root = request.getfixturevalue("large" if on_imagenet else "tiny_root")
    small = [
        f"dataset.image_size={32 if on_imagenet else 16}",
        f"teacher={'mobilenetv1' if on_imagenet else 'resnet8'}",
    ]
    one_epoch = ["schedule.epochs=1", "schedule.milestones=[]", "schedule.batch_size=8", "dataset.workers=0"]
    engine = ["engine.precision=fp32", "engine.device=cpu", "engine.threads=1", "tracking=journal"]
    words = [f"experiment={experiment}", "distiller=dkd", f"dataset.root={root}", f"output={tmp_path / 'outputs'}"]
    done = launch("-m", *words, *small, *one_epoch, *engine)
    assert done.code == 0, done
    trained = journals(tmp_path / "outputs").values()
    assert all(len(metrics(records)) == 1 for records in trained)
    students = {records[0]["tags"]["student"] for records in trained if records[0]["tags"]["teacher"]}
    assert students == {(LARGE | SMALL)[experiment]}

"""Streamed images: what an epoch draws is a function of (seed, epoch), and the trainer knows no difference."""

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from edkd.config.schema import settings
from edkd.data import _torchvision, streaming, views
from edkd.data.base import ImageBatch
from edkd.data.files import Broken, read_image
from edkd.data.sources import imagefolder
from edkd.data.streaming import StreamedData
from edkd.errors import EdkdError
from edkd.rundir.settings import labels
from edkd.runs import attempt
from edkd.training.evaluation import measure
from tests.commandline import REPOSITORY, edkd, error, journals, launch, metrics, python

CPU = torch.device("cpu")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """24 training and 8 test images of two classes, of several sizes."""
    stream = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for label, name in enumerate(("cat", "dog")):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                height, width = stream.integers(10, 20, 2)
                pixels = stream.integers(0, 155, (height, width, 3)) + 100 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:02}.png")
    return tmp_path / "images"


def data(
    root: Path, *, workers: int, broken: Broken = "stop", channels_last: bool = False, flip: bool = True
) -> StreamedData:
    found = imagefolder(root=str(root), image_size=8, workers=workers, broken=broken)
    read: dict[str, Any] = {"workers": workers, "augmentation": found.augmentation, "broken": broken}
    read["flip"] = flip
    options: dict[str, Any] = {"mean": [0.5] * 3, "std": [0.25] * 3, "size": 8, "device": CPU}
    return StreamedData(found.train, **read, **options, channels_last=channels_last)


def epoch(made: StreamedData, seed: int, number: int) -> list[ImageBatch]:
    return [made.next(count) for count in made.begin(seed, number, 10).counts]


def same(left: list[ImageBatch], right: list[ImageBatch]) -> bool:
    return all(
        torch.equal(getattr(a, name), getattr(b, name))
        for a, b in zip(left, right, strict=True)
        for name in ("images", "target", "index")
    )


def test_images_are_flipped_only_where_asked(root: Path) -> None:
    plain, flipped = (torch.cat([b.images for b in epoch(data(root, workers=0, flip=f), 0, 1)]) for f in (False, True))
    mirrored = [not torch.equal(a, b) for a, b in zip(plain, flipped, strict=True)]
    assert 4 < sum(mirrored) < 20  # of 24
    assert torch.equal(plain[mirrored].flip(-1), flipped[mirrored])


def test_an_epoch_is_a_function_of_seed_and_epoch(root: Path) -> None:
    made = data(root, workers=0)
    first = epoch(made, 0, 1)
    assert [len(batch.target) for batch in first] == [10, 10, 4]
    assert sorted(torch.cat([batch.index for batch in first]).tolist()) == list(range(24))
    assert first[0].images.shape == (10, 3, 8, 8)
    assert not same(first, epoch(made, 0, 2))
    assert not same(first, epoch(made, 1, 1))
    before = torch.random.get_rng_state()
    assert same(first, epoch(made, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before), "torch's own random numbers are left alone"


@pytest.mark.parametrize("channels_last", [False, True])
def test_images_are_those_of_torchvisions_transforms(root: Path, channels_last: bool) -> None:
    made = data(root, workers=0, channels_last=channels_last)
    mean, std = (torch.tensor(each)[:, None, None] for each in ([0.5] * 3, [0.25] * 3))
    v2 = _torchvision.transforms_v2()
    steps = [v2.PILToTensor(), v2.RandomResizedCrop(8, antialias=True), v2.RandomHorizontalFlip()]
    draws = views.draw(24, seed=3, stream=views.TRANSFORMS, counter=2)
    for batch in epoch(made, 3, 2):
        layout = torch.channels_last if channels_last else torch.contiguous_format
        assert batch.images.is_contiguous(memory_format=layout)
        for image, index in zip(batch.images, batch.index.tolist()):
            torch.manual_seed(int(draws[index]))
            pixels = v2.Compose(steps)(read_image(made.files[index][0]))
            assert torch.equal(image, (pixels.float() / 255 - mean) / std)


def test_the_parts_of_three_processes_make_up_each_batch(root: Path) -> None:
    made = data(root, workers=0)
    whole, parts = epoch(made, 0, 1), []
    for rank in range(3):
        planned = made.begin(0, 1, 10, rank, 3)
        assert planned.whole == [10, 10, 4]
        parts.append([made.next(count) for count in planned.counts])
    for number, batch in enumerate(whole):
        for name in ("images", "target", "index"):
            joined = torch.cat([getattr(part[number], name) for part in parts])
            assert torch.equal(joined, getattr(batch, name))


def test_the_number_of_workers_changes_nothing(root: Path) -> None:
    assert same(epoch(data(root, workers=0), 0, 1), epoch(data(root, workers=2), 0, 1))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_named(root: Path, workers: int) -> None:
    broken = root / "train" / "dog" / "03.png"
    broken.write_bytes(b"no image")
    with pytest.raises(EdkdError, match=rf"^cannot read the image {broken}: .*; repair or remove it$"):
        epoch(data(root, workers=workers), 0, 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_skipped_counted_and_named(
    root: Path, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    broken = root / "train" / "dog" / "03.png"
    broken.write_bytes(b"no image")
    made = data(root, workers=workers, broken="skip")
    for number in (1, 2):
        index = torch.cat([batch.index for batch in epoch(made, 0, number)])
        assert sorted(index.tolist()) == [i for i in range(24) if i != 15]
        assert made.skipped == 1
    assert [record.getMessage().partition(f"{broken}:")[0] for record in caplog.records] == [
        "skipped: cannot read the image "
    ]
    for path in (root / "train").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(EdkdError, match="^none of the 10 images of a batch can be read; the first: cannot read "):
        epoch(made, 0, 3)


def test_evaluation_sees_every_image_once_in_order(root: Path) -> None:
    made = data(root, workers=0)
    batches = list(made.batches(10))
    assert [len(target) for _, target in batches] == [10, 10, 4]
    assert torch.cat([target for _, target in batches]).tolist() == [0] * 12 + [1] * 12
    assert torch.equal(batches[0][0], next(iter(made.batches(10)))[0])


def test_a_fingerprint_sees_names_sizes_and_labels(root: Path) -> None:
    def fingerprint() -> str:
        return imagefolder(root=str(root), image_size=8, workers=0, broken="stop").fingerprint()

    image, found = root / "train" / "dog" / "03.png", [fingerprint()]
    with image.open("ab") as file:
        file.write(b"more")
    found.append(fingerprint())
    image.rename(image.with_name("04b.png"))
    found.append(fingerprint())
    image.with_name("04b.png").rename(root / "train" / "cat" / "04b.png")
    found.append(fingerprint())
    assert len(set(found)) == 4


@pytest.mark.skipif(sys.platform != "linux", reason="file systems of macOS have names in UTF-8 alone")
def test_a_file_name_that_is_not_utf8(root: Path) -> None:
    image = (root / "train" / "dog" / "03.png").rename(root / "train" / "dog" / os.fsdecode(b"\xff.png"))
    assert len(imagefolder(root=str(root), image_size=8, workers=0, broken="stop").fingerprint()) == 64
    read = torch.cat([batch.index for batch in epoch(data(root, workers=0), 0, 1)])
    assert sorted(read.tolist()) == list(range(24))
    image.write_bytes(b"")
    with pytest.raises(EdkdError, match=r"^cannot read the image .*/dog/\\udcff.png: ") as raised:
        epoch(data(root, workers=0), 0, 1)
    assert str(raised.value).encode()


COPIED = """
import os
from edkd.data.files import Files

def own():
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith("Private_"))

split = Files.of("/images", [(f"/images/class/{number:07}.png", number % 9) for number in range(300_000)])
if os.fork() == 0:
    before = own()
    for index in range(len(split)):
        path, label = split[index]
    print(own() - before, flush=True)
    os._exit(0)
os.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux alone")
def test_a_worker_copies_no_paths_and_labels() -> None:
    done = python("-c", COPIED, PYTHONPATH=str(REPOSITORY))
    assert done.code == 0, done
    assert int(done.out) < 5_000, "kB; a tuple of tuples takes over 30,000"


@pytest.fixture
def streamed(root: Path, tiny: list[str]) -> list[str]:
    kept = [word for word in tiny if not word.startswith("dataset")]
    dataset = ["dataset=imagefolder", "dataset.name=pets", f"dataset.root={root}", "dataset.image_size=8"]
    return [*kept, *dataset, "dataset.workers=0", "schedule.batch_size=10"]


def test_a_teacher_and_its_student_train_on_streamed_images(streamed: list[str], tmp_path: Path) -> None:
    done = launch("-m", *streamed, "distiller=kd", "student=resnet14")
    assert done.code == 0, done
    found = journals(tmp_path / "outputs")
    assert {len(metrics(records)) for records in found.values()} == {2}
    assert error(launch(*streamed, "distiller=vanilla", "dataset.validation=0.1")).startswith("train_per_class, ")
    assert error(launch(*streamed, "distiller=vanilla", "dataset.padding=4")).startswith("dataset.padding needs data ")


def test_a_run_counts_what_it_skips(streamed: list[str], root: Path, tmp_path: Path) -> None:
    (root / "train" / "cat" / "00.png").write_bytes(b"")
    (root / "test" / "dog" / "00.png").write_bytes(b"")
    words = [*streamed, "distiller=vanilla", "student=resnet14"]
    stopped = launch(*words)
    assert stopped.code == 1 and "cat/00.png" in stopped.err.splitlines()[-1]
    assert launch(*words, "dataset.broken=skip", f"output={tmp_path / 'skipping'}").code == 0
    (records,) = journals(tmp_path / "skipping").values()
    epochs = [record for record in records if record["event"] == "epoch"]
    assert [(record["skipped"], record["test_skipped"]) for record in epochs] == [(1, 1), (1, 1)]
    assert all((record["metrics"]["test/top1"] * 7 / 100) % 1 < 1e-9 for record in epochs), "of seven images"
    (weights,) = (tmp_path / "skipping").rglob("last.pt")
    dataset = [word for word in words if word.startswith("dataset.")]
    options = ["-m", "resnet14", "-c", str(weights), "-d", "imagefolder", "dataset.broken=skip", "engine.device=cpu"]
    measured = edkd("evaluate", *options, *dataset)
    assert " 7 images, " in measured.out, measured


@pytest.mark.parametrize(
    "words",
    [["-m", "seed=0,1", "hydra/launcher=local", "hydra.launcher.n_jobs=2"], ["engine.devices=2"]],
    ids=["local launcher", "two processes"],
)
def test_workers_of_processes_that_others_started(streamed: list[str], tmp_path: Path, words: list[str]) -> None:
    """Such processes would start workers as they were started themselves, which fails or takes long."""
    given = [word for word in streamed if not word.startswith(("dataset.workers", "schedule.epochs"))]
    vanilla = ["distiller=vanilla", "student=resnet14", "schedule.epochs=1"]
    found = []
    for workers in (0, 1):
        output = tmp_path / str(workers)
        done = launch(*words, *given, *vanilla, f"dataset.workers={workers}", f"output={output}")
        assert done.code == 0, done
        found.append({name: metrics(records)[1] for name, records in journals(output).items()})
    assert [*found[0].values()] == [*found[1].values()]


def test_a_link_to_nowhere_is_one_line(streamed: list[str], root: Path) -> None:
    (root / "train" / "cat" / "99.png").symlink_to(root / "nowhere.png")
    words = [*streamed, "distiller=vanilla", "student=resnet14"]
    said = error(launch(*words))
    assert said.startswith("cannot read the image ") and said.endswith(
        "99.png: No such file or directory; repair or remove it"
    )
    assert launch(*words, "dataset.broken=skip").code == 0


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux alone")
def test_a_signal_to_all_processes_interrupts_a_run_with_workers(streamed: list[str], tmp_path: Path) -> None:
    words = [*streamed, "dataset.workers=2", "schedule.epochs=9999", "distiller=vanilla", "student=resnet14"]
    command = [sys.executable, str(REPOSITORY / "launch.py"), *words]
    ends, beginning = os.pipe()  # which every process of the run holds open
    options: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **options, start_new_session=True, pass_fds=[beginning]) as process:
        os.close(beginning)
        try:
            until = time.monotonic() + 120
            while not any(map(metrics, journals(tmp_path / "outputs").values())):
                assert time.monotonic() < until, "no epoch within 120 s"
                time.sleep(0.1)
            os.killpg(process.pid, signal.SIGTERM)
            _, said = process.communicate(timeout=60)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130, said
    assert "Traceback" not in said and said.endswith("the same command continues where this one stopped\n"), said
    assert select.select([ends], [], [], 30)[0], "a worker is left"
    os.close(ends)
    (records,) = journals(tmp_path / "outputs").values()
    assert records[-1]["event"] == "interrupted"


@pytest.mark.parametrize("place", ["worker", "step"])
def test_a_worker_that_is_killed_is_one_line(streamed: list[str], monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    def lost(*_: Any, **__: Any) -> Any:
        if place == "worker":
            os.kill(os.getpid(), signal.SIGKILL)
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")  # as PyTorch's handler does

    module, name = {"worker": (streaming, "read_image"), "step": (attempt, "fit")}[place]
    monkeypatch.setattr(module, name, lost)
    done = launch(*streamed, "dataset.workers=1", "distiller=vanilla", "student=resnet14")
    assert done.code == 1 and "Traceback" not in done.err
    assert re.fullmatch(
        r"edkd: DataLoader worker .*[^ .]; is memory or /dev/shm full\? Fewer dataset.workers need less of both; "
        "the same command continues a run",
        done.err.splitlines()[-1],
    )


@pytest.mark.parametrize("lost_for", ["teacher", "student"])
def test_the_nearness_to_the_teacher_is_of_the_same_images(lost_for: str) -> None:
    class Images:
        skipped = 0

        def __init__(self, count: int) -> None:
            self.count = count

        def __len__(self) -> int:
            return 6

        def batches(self, size: int) -> Any:
            for first in range(0, self.count, 4):
                yield torch.zeros(min(4, self.count - first), 3), torch.zeros(min(4, self.count - first)).long()

    counts = {"teacher": (5, 6), "student": (6, 5)}[lost_for]
    with pytest.raises(EdkdError, match=rf"^the teacher was evaluated on {counts[0]} images .*: start the run again"):
        measure(lambda images: images, Images(counts[1]), CPU, torch.zeros(counts[0], 3))


def test_a_run_that_was_stopped_ends_as_one_that_was_not(
    streamed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["distiller=vanilla", "student=resnet14"]
    assert launch(*streamed, *command).code == 0
    whole = journals(tmp_path / "outputs")
    elsewhere = [*streamed, *command, f"output={tmp_path / 'stopped'}"]
    begin = StreamedData.begin

    def interrupted(self: StreamedData, seed: int, epoch: int, *others: int) -> Any:
        if epoch == 2:
            raise KeyboardInterrupt
        return begin(self, seed, epoch, *others)

    with monkeypatch.context() as patch:
        patch.setattr(StreamedData, "begin", interrupted)
        assert launch(*elsewhere).code == 130
    assert launch(*elsewhere).code == 0
    stopped = journals(tmp_path / "stopped")
    assert [metrics(records) for records in stopped.values()] == [metrics(records) for records in whole.values()]


def test_what_changes_no_result_is_no_part_of_an_identity(compose: Any) -> None:
    words = ["dataset=imagefolder", "dataset.name=pets", "dataset.root=/x"]
    from edkd.config.job import identity

    configs = [compose(*words, f"dataset.workers={n}") for n in (0, 8)]
    runs = [identity(settings(config, "edkd"), None) for config in configs]
    assert runs[0] == runs[1]
    assert labels({n: ("edkd", config) for n, config in enumerate(configs)}) == {0: "", 1: ""}
    assert "broken" not in runs[0]["dataset"]["source"], "runs from before there was a choice keep their hash"
    skipping = identity(settings(compose(*words, "dataset.broken=skip"), "edkd"), None)
    assert skipping["dataset"]["source"]["broken"] == "skip"

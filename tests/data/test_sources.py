import hashlib
import io
import pickle
import shutil
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from edkd.config.instantiate import build
from edkd.data import _torchvision, sources
from edkd.errors import EdkdError

CLASSES = ("apple", "aquarium_fish", "baby")


class Python2Pickler(pickle._Pickler):
    """Writes byte strings as Python 2 did, as the published files have them."""

    write: Any
    memoize: Any

    def save_bytes(self, value):
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    def save_str(self, value):
        self.save_bytes(value.encode())

    dispatch: ClassVar = {**pickle._Pickler.dispatch, bytes: save_bytes, str: save_str}


def write_cifar100(folder, train=12, test=6):
    """A small data set in CIFAR-100's own format; returns its images [N, 32, 32, 3] and labels, for train and test."""
    folder.mkdir(parents=True)
    random, written = np.random.RandomState(0), []
    contents = {"meta": {"fine_label_names": list(CLASSES), "coarse_label_names": ["aquatic", "fruit"]}}
    for name, count in (("train", train), ("test", test)):
        planes = random.randint(0, 256, size=(count, 3, 32, 32)).astype(np.uint8)
        labels = [int(i) % len(CLASSES) for i in random.permutation(count)]
        names = [f"{CLASSES[label]}_s_{i:06d}.png" for i, label in enumerate(labels)]
        contents[name] = {"filenames": names, "batch_label": f"{name}ing batch 1 of 1", "fine_labels": labels}
        contents[name] |= {"coarse_labels": [0] * count, "data": planes.reshape(count, 3072)}
        written.append((planes.transpose(0, 2, 3, 1), labels))
    for name, content in contents.items():
        with (folder / name).open("wb") as file:
            Python2Pickler(file, protocol=2).dump(content)
    return written


def md5(content):
    return hashlib.md5(content).hexdigest()


@pytest.fixture
def small(tmp_path, monkeypatch):
    """The root of a small data set, which torchvision takes for the published one."""
    write_cifar100(tmp_path / "data" / "cifar-100-python")
    accept(monkeypatch, tmp_path / "data")
    return tmp_path / "data"


def accept(monkeypatch, root):
    dataset, data = _torchvision.load().datasets.CIFAR100, root / "cifar-100-python"
    monkeypatch.setattr(dataset, "train_list", [["train", md5((data / "train").read_bytes())]])
    monkeypatch.setattr(dataset, "test_list", [["test", md5((data / "test").read_bytes())]])
    monkeypatch.setattr(dataset, "meta", {**dataset.meta, "md5": md5((data / "meta").read_bytes())})


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def one_line(caught):
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_cifar100_reads_the_published_format(tmp_path, monkeypatch, no_network):
    written = write_cifar100(tmp_path / "cifar-100-python")
    accept(monkeypatch, tmp_path)
    arrays = sources.cifar100(root=str(tmp_path), download=False)
    for split, (images, labels) in zip((arrays.train, arrays.test), written):
        assert np.array_equal(split.images, images)
        assert split.images.flags.c_contiguous
        assert split.labels.tolist() == labels
    assert arrays.classes == CLASSES
    assert arrays.validation is None


def test_cifar100_present_needs_no_network_even_with_download(small, no_network):
    assert len(sources.cifar100(root=str(small), download=True).train) == 12


def test_cifar100_missing_says_where_it_looked(tmp_path, no_network):
    with pytest.raises(EdkdError) as caught:
        sources.cifar100(root=str(tmp_path / "nowhere"), download=False)
    message = one_line(caught)
    assert f"not found: looked for {tmp_path / 'nowhere' / 'cifar-100-python'}" in message
    assert "dataset.root=DIR" in message
    assert "dataset.download=true" in message
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("name", ["train", "test", "meta"])
@pytest.mark.parametrize("damage", ["removed", "truncated", "changed"])
def test_cifar100_damaged_names_the_file(small, name, damage, no_network):
    path = small / "cifar-100-python" / name
    content = path.read_bytes()
    path.unlink()
    if damage != "removed":
        path.write_bytes(content[:-10] if damage == "truncated" else content[:-10] + b"x" + content[-9:])
    found = f"has no {name}; " if damage == "removed" else rf"corrupt: {name} in .* \(wrong MD5 sum\)"
    with pytest.raises(EdkdError, match=found) as caught:
        sources.cifar100(root=str(small), download=False)
    one_line(caught)


def test_cifar100_unreadable_is_one_line(small, monkeypatch, no_network):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied", "train")

    monkeypatch.setattr(_torchvision.load().datasets.CIFAR100, "_check_integrity", refuse)
    with pytest.raises(EdkdError, match=r"cannot read CIFAR-100 in .*Permission denied"):
        sources.cifar100(root=str(small), download=False)


def archive_of(root):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        tar.add(root / "cifar-100-python", arcname="cifar-100-python")
    return buffer.getvalue()


@contextmanager
def serving(content, *, delay=0.0, keep=None):
    """A local server with `content` at every address, of which it sends `content[:keep]`; yields (URL, requests)."""
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            time.sleep(delay)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[:keep])

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/cifar-100-python.tar.gz", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def offer(small, monkeypatch):
    """Make torchvision fetch from a URL what `small` holds; returns (function taking the URL, the archive)."""
    dataset, archive = _torchvision.load().datasets.CIFAR100, archive_of(small)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(dataset, "tgz_md5", md5(archive))
    return lambda url: monkeypatch.setattr(dataset, "url", url), archive


def test_cifar100_downloads_where_nothing_is(offer, small, tmp_path):
    set_url, archive = offer
    with serving(archive) as (url, requests):
        set_url(url)
        arrays = sources.cifar100(root=str(tmp_path / "new" / "place"), download=True)
        assert requests
    assert arrays.fingerprint() == sources.cifar100(root=str(small), download=False).fingerprint()
    assert socket.getdefaulttimeout() is None


def test_cifar100_download_repairs_a_corrupt_file(offer, small):
    set_url, archive = offer
    sound = (small / "cifar-100-python" / "train").read_bytes()
    (small / "cifar-100-python" / "train").write_bytes(sound[:1000])
    with serving(archive) as (url, _):
        set_url(url)
        assert len(sources.cifar100(root=str(small), download=True).train) == 12
    assert (small / "cifar-100-python" / "train").read_bytes() == sound


@pytest.mark.parametrize(
    ("served", "message"),
    [
        ({"delay": 1.0}, "could not download .*timed out"),
        *(({"keep": keep}, "came incomplete|could not download") for keep in (0, 500, -1)),
        (None, r"could not download http://.*refused.*dataset.root=DIR"),
    ],
)
def test_a_download_that_fails_is_one_line_and_leaves_no_data(offer, tmp_path, monkeypatch, served, message):
    set_url, archive = offer
    monkeypatch.setattr(sources, "NETWORK_TIMEOUT", 0.2 if served == {"delay": 1.0} else 30.0)
    with serving(archive, **(served or {})) as (url, _):
        set_url(url if served else "http://127.0.0.1:1/cifar-100-python.tar.gz")
        with pytest.raises(EdkdError, match=message) as caught:
            sources.cifar100(root=str(tmp_path / "new"), download=True)
    one_line(caught)
    assert [path.name for path in (tmp_path / "new").iterdir() if not path.name.endswith(".lock")] == []
    assert socket.getdefaulttimeout() is None


def test_a_root_that_cannot_be_written_is_one_line(tmp_path, no_network):
    (tmp_path / "file").write_text("")
    with pytest.raises(EdkdError, match=r"cannot write CIFAR-100 to .*dataset.root=DIR") as caught:
        sources.cifar100(root=str(tmp_path / "file" / "data"), download=True)
    one_line(caught)


def test_a_full_disk_is_one_line_and_keeps_no_archive(offer, tmp_path, monkeypatch):
    set_url, archive = offer

    def full(url, path):
        Path(path).write_bytes(archive[:100])
        raise OSError(28, "No space left on device")

    with serving(archive) as (url, _):
        set_url(url)
        monkeypatch.setattr(_torchvision.load().datasets.utils, "_urlretrieve", full)
        with pytest.raises(EdkdError, match=r"cannot write CIFAR-100 to .*No space left"):
            sources.cifar100(root=str(tmp_path / "new"), download=True)
    assert not (tmp_path / "new" / "cifar-100-python.tar.gz").exists()


def test_processes_that_share_a_folder_download_once(offer, small, tmp_path):
    set_url, archive = offer
    dataset, new = _torchvision.load().datasets.CIFAR100, str(tmp_path / "new")
    with serving(archive, delay=1.0) as (url, requests):
        set_url(url)
        program = (
            "from edkd.data import _torchvision, sources\n"
            "dataset = _torchvision.load().datasets.CIFAR100\n"
            f"dataset.url, dataset.tgz_md5 = {url!r}, {dataset.tgz_md5!r}\n"
            f"dataset.train_list, dataset.test_list = {dataset.train_list!r}, {dataset.test_list!r}\n"
            f"dataset.meta = {dataset.meta!r}\n"
            "input('ready\\n')\n"
            f"print(sources.cifar100(root={new!r}, download=True).fingerprint())\n"
        )
        with subprocess.Popen(
            [sys.executable, "-uc", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        ) as other:
            assert other.stdout.readline() == "ready\n"
            other.stdin.write("go\n")
            other.stdin.flush()
            here = sources.cifar100(root=new, download=True).fingerprint()
            there, _ = other.communicate(timeout=120)
    assert here == there.strip() == sources.cifar100(root=str(small), download=False).fingerprint()
    assert len(requests) == 2, "torchvision asks twice for one download: where to, then for the file"


def test_the_real_cifar100(no_network, cifar100_root):
    arrays = sources.cifar100(root=str(cifar100_root), download=False)
    assert arrays.train.images.shape == (50_000, 32, 32, 3)
    assert arrays.test.images.shape == (10_000, 32, 32, 3)
    assert np.bincount(arrays.train.labels).tolist() == [500] * 100
    assert np.bincount(arrays.test.labels).tolist() == [100] * 100
    assert (arrays.num_classes, arrays.classes[0], arrays.classes[99]) == (100, "apple", "worm")
    assert list(arrays.classes) == sorted(arrays.classes)
    mean = arrays.train.images[::10].mean(axis=(0, 1, 2)) / 255
    assert mean == pytest.approx((0.5071, 0.4867, 0.4408), abs=3e-3), "red, green, blue, in this order"


@pytest.mark.parametrize("size", [8, 16, 32])
def test_digits_are_real_images_in_stratified_parts(size, no_network):
    arrays = sources.digits(image_size=size)
    assert arrays.train.images.shape[1:] == arrays.test.images.shape[1:] == (size, size, 3)
    assert len(arrays.train) + len(arrays.test) == 1797
    per_class = np.bincount(arrays.train.labels) + np.bincount(arrays.test.labels)
    assert np.allclose(np.bincount(arrays.test.labels), 0.2 * per_class, atol=0.5)
    images = arrays.train.images
    assert (images[..., :1] == images).all(), "three equal channels"
    assert images.min() == 0
    assert images.max() == 255
    assert arrays.classes == tuple("0123456789")
    assert sources.digits(image_size=size).fingerprint() == arrays.fingerprint()


def test_digits_of_their_own_size_are_the_original_values():
    from sklearn.datasets import load_digits

    raw, labels = load_digits(return_X_y=True)
    original = {(tuple(image.astype(int)), label) for image, label in zip(raw, labels)}
    arrays = sources.digits(image_size=8)
    read = {
        (tuple(np.rint(image[..., 0].ravel() * (16 / 255)).astype(int)), label)
        for split in (arrays.train, arrays.test)
        for image, label in zip(split.images, split.labels)
    }
    assert read == original


@pytest.mark.parametrize(
    ("source", "values", "message"),
    [
        *(("digits", {"image_size": n}, f"image_size={n}: must be 8 or more") for n in (7, 0, -16)),
        *((name, {"image_size": 0}, "image_size=0: must be above 0") for name in ("folder", "imagefolder")),
        ("imagenet", {"workers": -1}, "workers=-1: must be 0 or more"),
        ("tiny_imagenet", {"workers": -1}, "workers=-1: must be 0 or more"),
    ],
)
def test_a_number_out_of_range_is_refused(source, values, message):
    others = {} if source == "digits" else {"root": "nowhere", "image_size": 8}
    streamed = {"workers": 0, "broken": "stop"} if source not in ("digits", "folder") else {}
    with pytest.raises(EdkdError, match=rf"^dataset\.source\.{message}$"):
        build({"_target_": f"edkd.data.sources.{source}", **others, **streamed, **values}, "dataset.source")


@pytest.fixture
def pictures(tmp_path):
    """train/ and test/ with 3 and 1 pictures of a cat and a dog: wide, high, grey, transparent, jpeg."""
    random = np.random.RandomState(0)
    for part, count in (("train", 3), ("test", 1)):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                shape = [(40, 60, 3), (60, 40), (50, 50, 4)][i]
                picture = Image.fromarray(random.randint(0, 256, size=shape).astype(np.uint8))
                picture.save(tmp_path / part / name / f"{i}.png")
    Image.new("RGB", (30, 20), "red").save(tmp_path / "train" / "dog" / "3.jpg")
    (tmp_path / "train" / "dog" / "notes.txt").write_text("no picture")
    return tmp_path


def test_folder_reads_resizes_and_crops_as_torchvision_does(pictures, no_network):
    arrays = sources.folder(root=str(pictures), image_size=24)
    assert arrays.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert arrays.test.labels.tolist() == [0, 1]
    assert arrays.classes == ("cat", "dog")
    torchvision = _torchvision.load()
    transform = torchvision.transforms.Compose(
        [torchvision.transforms.Resize(24), torchvision.transforms.CenterCrop(24)]
    )
    for name, split in (("train", arrays.train), ("test", arrays.test)):
        expected = [np.asarray(image) for image, _ in torchvision.datasets.ImageFolder(pictures / name, transform)]
        assert np.array_equal(split.images, np.stack(expected))
    assert np.allclose(arrays.train.images[6], (254, 0, 0), atol=2)


def test_folder_decodes_more_than_one_block(pictures, monkeypatch):
    whole = sources.folder(root=str(pictures), image_size=8)
    monkeypatch.setattr(sources, "DECODE_BLOCK", 3)
    assert sources.folder(root=str(pictures), image_size=8).fingerprint() == whole.fingerprint()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "train").rename(root / "away"), "no folder .*/train; dataset.root=DIR names .*<class>"),
        (lambda root: (root / "test").rename(root / "away"), "no folder .*/test; dataset.root=DIR names .*<class>"),
        (
            lambda root: shutil.rmtree(root / "train") or (root / "train").mkdir(),
            ".*/train lacks images: .*class",
        ),
        (lambda root: (root / "test" / "cow").mkdir(), ".*/test lacks images: .*cow"),
        (
            lambda root: (root / "test" / "dog").rename(root / "test" / "wolf"),
            "only in train: dog; only in test: wolf;",
        ),
    ],
)
def test_a_folder_of_another_layout_is_refused_in_one_line(pictures, change, message):
    change(pictures)
    with pytest.raises(EdkdError, match=message) as caught:
        sources.folder(root=str(pictures), image_size=8)
    one_line(caught)


@pytest.mark.parametrize(("kind", "mode"), [("uint16", "I;16"), ("int32", "I"), ("float32", "F")])
def test_an_image_of_more_than_8_bits_is_refused(pictures, kind, mode):
    path = pictures / "train" / "cat" / "1.tiff"
    Image.fromarray(np.full((30, 20), 1000, kind)).save(path)
    with pytest.raises(EdkdError) as caught:
        sources.folder(root=str(pictures), image_size=8)
    assert one_line(caught) == (
        f"cannot read the image {path}: mode {mode} has more than the 8 bits per channel that are allowed; "
        "repair or remove it"
    )


@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
def test_folder_names_the_image_that_cannot_be_read(pictures, damage):
    path = pictures / "train" / "cat" / "1.png"
    path.write_bytes({"truncated": path.read_bytes()[:200], "text": b"no picture", "empty": b""}[damage])
    with pytest.raises(EdkdError, match=f"cannot read the image {path}: .*; repair or remove it") as caught:
        sources.folder(root=str(pictures), image_size=8)
    one_line(caught)

"""The data sets: each function reads one into `Arrays`, with no validation part (see `edkd.data.arrays.prepare`).

Whatever a user can get wrong about files, formats and networks raises EdkdError.
"""

import http.client
import os
import socket
import ssl
import urllib.error
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from edkd.data import _torchvision
from edkd.data.arrays import Arrays, Split, hold_out
from edkd.data.files import Files, Streamed, read_image
from edkd.errors import EdkdError

TRAIN_IMAGES = {"cifar100": (50_000, 100), "digits": (1_437, 10)}
"""Training images and classes of the sources that hold the same ones wherever they are read, by function."""
NETWORK_TIMEOUT = 30.0  # seconds without an answer; a node whose packets are dropped would otherwise wait for ever
DIGITS_TEST_FRACTION = 0.2
DECODE_BLOCK = 1024  # images decoded between two looks at errors


def cifar100(*, root: str, download: bool) -> Arrays:
    """CIFAR-100 (Krizhevsky 2009): 50,000 and 10,000 images, 32x32, 100 classes, verified and read by torchvision.

    root: the folder that holds cifar-100-python/. download: fetch what is missing or corrupt there; False never touches
    the network. Of several processes that share the folder, one downloads and the others wait for it.
    """
    folder = Path(root).expanduser()
    try:
        return _read_cifar100(folder)
    except EdkdError:
        if not download:
            raise
    _download_cifar100(folder)
    return _read_cifar100(folder)


def _read_cifar100(folder: Path) -> Arrays:
    dataset = _torchvision.load().datasets.CIFAR100
    try:
        with warnings.catch_warnings():
            # The files are pickles of Python 2, whose way to write a dtype newer versions of numpy complain about.
            warnings.simplefilter("ignore")
            train, test = (dataset(str(folder), train=is_train, download=False) for is_train in (True, False))
    except RuntimeError:
        raise EdkdError(_what_is_wrong(folder, dataset)) from None
    except OSError as error:
        raise EdkdError(f"cannot read CIFAR-100 in {folder}: {error}") from None
    parts = [Split(np.ascontiguousarray(part.data), np.asarray(part.targets, dtype=np.int64)) for part in (train, test)]
    return Arrays(train=parts[0], validation=None, test=parts[1], classes=tuple(train.classes))


def _what_is_wrong(folder: Path, dataset: Any) -> str:
    """Why torchvision refused the files in `folder`, and what to do about it: one line."""
    data = folder / dataset.base_folder
    sums = dict([*dataset.train_list, *dataset.test_list, (dataset.meta["filename"], dataset.meta["md5"])])
    missing = [name for name in sums if not (data / name).is_file()]
    if len(missing) == len(sums):
        found = f"CIFAR-100 not found: looked for {data}"
    elif missing:
        found = f"CIFAR-100 is incomplete: {data} has no {', '.join(missing)}"
    else:
        check = _torchvision.load().datasets.utils.check_integrity
        corrupt = [name for name, md5 in sums.items() if not check(data / name, md5)]
        found = f"CIFAR-100 is corrupt: {', '.join(corrupt)} in {data} (wrong MD5 sum)"
    place = f"a folder with {dataset.base_folder}/"
    return f"{found}; dataset.root=DIR names {place}, or dataset.download=true downloads to it"


def _download_cifar100(folder: Path) -> None:
    torchvision = _torchvision.load()
    dataset = torchvision.datasets.CIFAR100
    archive = folder / dataset.filename
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{dataset.filename}.lock"), _downloading(NETWORK_TIMEOUT):
            try:
                # Verifies first, so it finds nothing to do where another process has just done it.
                dataset(str(folder), download=True)
            except BaseException:
                if not torchvision.datasets.utils.check_integrity(archive, dataset.tgz_md5):
                    archive.unlink(missing_ok=True)
                raise
    except (urllib.error.URLError, TimeoutError, ConnectionError, ssl.SSLError, http.client.HTTPException) as error:
        raise EdkdError(
            f"could not download {dataset.url} to {folder}: {error}; without a network, dataset.root=DIR names "
            f"a folder with {dataset.base_folder}/ and dataset.download=false"
        ) from None
    except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
        raise EdkdError(f"cannot write CIFAR-100 to {folder}: {error}; dataset.root=DIR names another folder") from None
    except RuntimeError:
        raise EdkdError(f"{dataset.url} came incomplete (wrong MD5 sum) and was not kept; try again") from None


@contextmanager
def _downloading(seconds: float) -> Iterator[None]:
    """Connections give up after `seconds` of silence; no warning of Python 3.12's tarfile about its future default."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        socket.setdefaulttimeout(before)


def digits(*, image_size: int) -> Arrays:
    """scikit-learn's 1,797 real handwritten digits (Alpaydin and Kaynak 1998, 8x8 grey), enlarged bilinearly, as RGB.

    image_size: the side in pixels, 8 or more. A fixed, stratified fifth is the test set. Needs no file and no network.
    """
    if image_size < 8:
        raise EdkdError(f"image_size of digits is {image_size}; allowed: 8 (their own size) or more pixels")
    from PIL import Image
    from sklearn.datasets import load_digits

    raw, labels = load_digits(return_X_y=True)
    grey = np.rint(raw.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    size = (image_size, image_size)
    large = np.stack([np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)) for image in grey])
    images = np.repeat(large[..., None], 3, axis=3)
    train, test = hold_out(Split(images, labels.astype(np.int64)), DIGITS_TEST_FRACTION, seed=0)
    return Arrays(train=train, validation=None, test=test, classes=tuple(str(digit) for digit in range(10)))


def folder(*, root: str, image_size: int) -> Arrays:
    """Your own images: root/train/<class>/* and root/test/<class>/*, found as torchvision's ImageFolder finds them.

    Each is read as RGB, resized so that its shorter side is `image_size` pixels, and cropped to the central square.
    """
    train, test = _find_splits(root, image_size)
    splits = [Split(_decode(found.samples, image_size), np.asarray(found.targets, np.int64)) for found in (train, test)]
    return Arrays(train=splits[0], validation=None, test=splits[1], classes=tuple(train.classes))


def imagefolder(*, root: str, image_size: int, workers: int) -> Streamed:
    """Your own images as `folder`, but left in their files and read anew in every epoch by `workers` processes."""
    if workers < 0:
        raise EdkdError(f"workers of imagefolder is {workers}; allowed: 0 (this process reads) or more")
    found = _find_splits(root, image_size)
    train, test = (Files(Path(split.root), tuple(split.samples)) for split in found)
    return Streamed(train, test, tuple(found[0].classes), image_size, workers)


def _find_splits(root: str, image_size: int) -> tuple[Any, Any]:
    """What torchvision finds below root/train and root/test: the same classes in both."""
    if image_size < 1:
        raise EdkdError(f"dataset.image_size is {image_size}; allowed: 1 or more pixels")
    train, test = (_find_images(Path(root).expanduser() / name) for name in ("train", "test"))
    if train.classes != test.classes:
        only_train, only_test = sorted({*train.classes} - {*test.classes}), sorted({*test.classes} - {*train.classes})
        raise EdkdError(
            f"the classes of {train.root} and {test.root} differ: only in train: {', '.join(only_train) or 'none'}; "
            f"only in test: {', '.join(only_test) or 'none'}; both need a folder, with images, for every class"
        )
    return train, test


def _find_images(path: Path) -> Any:
    layout = "dataset.root=DIR names a folder with train/<class>/* and test/<class>/* images"
    if not path.is_dir():
        raise EdkdError(f"no folder {path}; {layout}")
    try:
        return _torchvision.load().datasets.ImageFolder(str(path))
    except OSError as error:
        raise EdkdError(f"no images in {path}: {error}; {layout}".replace("\n", " ")) from None


def _decode(samples: list[tuple[str, int]], size: int) -> np.ndarray:
    """The images at the paths of `samples`: uint8 [N, size, size, 3]."""
    transforms = _torchvision.load().transforms.functional
    images = np.empty((len(samples), size, size, 3), dtype=np.uint8)

    def decode(position: int) -> None:
        image = read_image(samples[position][0])
        images[position] = transforms.center_crop(transforms.resize(image, size), size)

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(samples), DECODE_BLOCK):
            list(pool.map(decode, range(start, min(start + DECODE_BLOCK, len(samples)))))
    return images

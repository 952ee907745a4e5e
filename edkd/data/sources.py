"""The data sets: each function reads one into `Arrays`, with no validation part (see `edkd.data.arrays.prepare`).

Whatever a user can get wrong about files, formats and networks raises EdkdError.
"""

import http.client
import os
import socket
import ssl
import urllib.error
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from filelock import FileLock
from pydantic import Field, NonNegativeInt, PositiveInt

from edkd.data import _torchvision
from edkd.data.arrays import Arrays, Split, hold_out
from edkd.data.files import Augmentation, Broken, Files, Streamed, read_image
from edkd.errors import EdkdError

TRAIN_IMAGES = {
    "cifar100": (50_000, 100),
    "digits": (1_437, 10),
    "imagenet": (1_281_167, 1000),
    "tiny_imagenet": (100_000, 200),
}
"""The numbers of training images and classes of the sources whose contents are fixed, by function."""
NETWORK_TIMEOUT = 30.0  # seconds without an answer; a node whose packets are dropped would otherwise wait for ever
DIGITS_TEST_FRACTION = 0.2
_UNPACKED = "is the archive unpacked whole?"
DECODE_BLOCK = 1024  # images decoded between two checks for errors


def cifar100(*, root: str, download: bool) -> Arrays:
    """CIFAR-100 (Krizhevsky 2009): 50,000 and 10,000 images, 32x32, 100 classes, verified and read by torchvision.

    root: the folder that holds cifar-100-python/. download: fetch what is missing or corrupt there; False never touches
    the network. If several processes share the folder, one downloads and the others wait for it.
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
            # The files are pickles of Python 2; newer versions of numpy warn about the form of their dtypes.
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
        lock = FileLock(folder / f".{dataset.filename}.lock", fallback_to_soft=False)
        with lock, _downloading(NETWORK_TIMEOUT):
            try:
                # Verifies first, so it does nothing if another process has just downloaded the files.
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
    except OSError as error:
        raise EdkdError(f"cannot write CIFAR-100 to {folder}: {error}; dataset.root=DIR names another folder") from None
    except RuntimeError:
        raise EdkdError(f"{dataset.url} came incomplete (wrong MD5 sum) and was not kept; try again") from None


@contextmanager
def _downloading(seconds: float) -> Iterator[None]:
    """Connections time out after `seconds` of silence; Python 3.12's tarfile does not warn of its future default."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        socket.setdefaulttimeout(before)


def digits(*, image_size: Annotated[int, Field(ge=8)]) -> Arrays:
    """scikit-learn's 1,797 real handwritten digits (Alpaydin and Kaynak 1998, 8x8 grey), enlarged bilinearly, as RGB.

    image_size: the side in pixels, at least the images' own. A fixed, stratified fifth is the test set. Needs no file
    and no network.
    """
    from PIL import Image
    from sklearn.datasets import load_digits

    raw, labels = load_digits(return_X_y=True)
    grey = np.rint(raw.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    size = (image_size, image_size)
    large = np.stack([np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)) for image in grey])
    images = np.repeat(large[..., None], 3, axis=3)
    train, test = hold_out(Split(images, labels.astype(np.int64)), DIGITS_TEST_FRACTION, seed=0)
    return Arrays(train=train, validation=None, test=test, classes=tuple(str(digit) for digit in range(10)))


def folder(*, root: str, image_size: PositiveInt) -> Arrays:
    """Your own images: root/train/<class>/* and root/test/<class>/*, found as torchvision's ImageFolder finds them.

    Each is read as RGB, resized so that its shorter side is `image_size` pixels, and cropped to the central square.
    """
    train, test = _find_splits(root)
    splits = [Split(_decode(found.samples, image_size), np.asarray(found.targets, np.int64)) for found in (train, test)]
    return Arrays(train=splits[0], validation=None, test=splits[1], classes=tuple(train.classes))


def imagefolder(*, root: str, image_size: PositiveInt, workers: NonNegativeInt, broken: Broken = "stop") -> Streamed:
    """Your own images as `folder`, but left in their files and read anew in every epoch by `workers` processes.

    broken: see `Streamed`. Its default is here for configurations that were frozen before this option existed.
    """
    return _streamed(*_find_splits(root), image_size, workers, "resized_crop", broken)


def imagenet(*, root: str, image_size: PositiveInt, workers: NonNegativeInt, broken: Broken) -> Streamed:
    """ImageNet (Russakovsky et al., IJCV 2015): root/train/<wnid>/*, root/val/<wnid>/*.

    1,281,167 and 50,000 photographs of 1000 classes. The validation images are the test set. Their archive has them in
    one folder: move them into one folder per class, as is usual.
    """
    return _streamed(*_find_splits(root, "val"), image_size, workers, "resized_crop", broken)


def tiny_imagenet(*, root: str, image_size: PositiveInt, workers: NonNegativeInt, broken: Broken) -> Streamed:
    """Tiny-ImageNet (Le and Yang 2015) as its archive unpacks: 100,000 and 10,000 images of 64x64, 200 classes.

    Training images are root/train/<wnid>/images/*. The validation images, root/val/images/* with their classes in
    root/val/val_annotations.txt, are the test set, because those of the test folder have no published classes.
    image_size: 64; with another number images are resized.
    """
    layout = "dataset.root=DIR names the folder that tiny-imagenet-200.zip unpacks to, with train/ and val/"
    folder = Path(root).expanduser()
    train = _find_images(folder / "train", layout)
    wnids = folder / "wnids.txt"
    if wnids.exists() and (absent := sorted({*wnids.read_text().split()} - {*train.classes})):
        raise EdkdError(f"{wnids} names {_few(absent)}, not among the classes of {train.root}; {_UNPACKED}")
    val = _annotated(folder / "val", train.class_to_idx, layout)
    return _streamed(train, val, image_size, workers, "rotation", broken)


class _Found(NamedTuple):
    """A split, with the attributes of torchvision's ImageFolder that are used here."""

    root: str
    samples: list[tuple[str, int]]


def _annotated(val: Path, labels: Mapping[str, int], layout: str) -> _Found:
    """Tiny-ImageNet's validation images: each line of val_annotations.txt begins with a file's name and its class."""
    path = val / "val_annotations.txt"
    try:
        lines = path.read_text().splitlines()
        there = {each.name for each in (val / "images").iterdir()}
    except (OSError, UnicodeDecodeError) as error:
        raise EdkdError(f"cannot read {path} and {val / 'images'}: {error}; {layout}") from None
    samples, named = [], set()
    for number, line in enumerate(lines, 1):
        name, wnid, *_ = [*line.split("\t"), ""]
        if name not in there or wnid not in labels:
            what = f"no image {name!r} in {val / 'images'}" if name not in there else f"no class {wnid!r} in train"
            raise EdkdError(f"{path}, line {number}: {what}; {_UNPACKED}")
        if name in named:
            raise EdkdError(f"{path}, line {number}: image {name!r} has a line before; {_UNPACKED}")
        named.add(name)
        samples.append((str(val / "images" / name), labels[wnid]))
    if len(samples) < len(there):
        raise EdkdError(f"{path} names {len(samples)} of the {len(there)} images in {val / 'images'}; {_UNPACKED}")
    seen = {label for _, label in samples}
    if absent := sorted(wnid for wnid, label in labels.items() if label not in seen):
        raise EdkdError(f"{path} has no image of {_few(absent)}; {_UNPACKED}")
    return _Found(str(val), samples)


def _streamed(
    train: Any, test: Any, image_size: int, workers: int, augmentation: Augmentation, broken: Broken
) -> Streamed:
    files = [Files.of(split.root, split.samples) for split in (train, test)]
    return Streamed(files[0], files[1], tuple(train.classes), image_size, workers, augmentation, broken)


def _find_splits(root: str, second: str = "test") -> tuple[Any, Any]:
    """What torchvision finds below root/train and root/<second>: the same classes in both."""
    layout = f"dataset.root=DIR names a folder with train/<class>/* and {second}/<class>/* images"
    train, test = (_find_images(Path(root).expanduser() / name, layout) for name in ("train", second))
    if train.classes != test.classes:
        only_train, only_test = sorted({*train.classes} - {*test.classes}), sorted({*test.classes} - {*train.classes})
        raise EdkdError(
            f"the classes of {train.root} and {test.root} differ: only in train: {_few(only_train)}; "
            f"only in {second}: {_few(only_test)}; both need a folder, with images, for every class"
        )
    return train, test


def _few(names: list[str]) -> str:
    """The first of some names, and how many more there are."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return (", ".join(names[:5]) or "none") + more


def _find_images(path: Path, layout: str) -> Any:
    if path.parent.is_file():
        raise EdkdError(f"{path.parent} is a file: unpack it; {layout}")
    if not path.is_dir():
        raise EdkdError(f"no folder {path}; {layout}")
    try:
        return _torchvision.load().datasets.ImageFolder(str(path))
    except OSError as error:
        raise EdkdError(f"{path} lacks images: {error}; {layout}".replace("\n", " ")) from None


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

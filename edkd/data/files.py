"""Image files: reading one, and a data set that stays in its files."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edkd.errors import EdkdError

Augmentation = Literal["resized_crop", "rotation"]
Broken = Literal["stop", "skip"]


def read_image(path: str) -> Any:
    """The image in a file, as Pillow's in RGB. Raises EdkdError if it cannot be read."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):  # Pillow's conversion would cut their values off at 255
                raise ValueError(f"mode {image.mode} has more than the 8 bits per channel that are allowed")
            return image.convert("RGB")
    except Exception as error:  # decoders raise errors of any type, always because of this file
        raise _unreadable(path, error) from None


def _unreadable(path: str, why: object) -> EdkdError:
    line = f"cannot read the image {path}: {why}; repair or remove it".replace("\n", " ")
    return EdkdError(line.encode(errors="backslashreplace").decode())  # names may be no UTF-8, as logs are


@dataclass(frozen=True, eq=False)
class Files:
    """One split: the path and the label of each image.

    They are arrays, since forked workers copy the memory of every Python object that they look at.
    """

    root: Path
    paths: npt.NDArray[np.bytes_]  # [N], as the file system has them
    labels: npt.NDArray[np.int64]  # [N]

    @classmethod
    def of(cls, root: str, samples: Sequence[tuple[str, int]]) -> "Files":
        """The split of these paths and labels, as torchvision finds them below `root`."""
        paths = np.array([os.fsencode(path) for path, _ in samples])
        return cls(Path(root), paths, np.array([label for _, label in samples], np.int64))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[str, int]:
        return os.fsdecode(self.paths[index]), int(self.labels[index])

    def take(self, index: slice | npt.NDArray[np.int64]) -> "Files":
        """The images at `index`, in that order."""
        return Files(self.root, self.paths[index], self.labels[index])


@dataclass(frozen=True, eq=False)
class Streamed:
    """A whole data set in files; `workers` processes read it.

    augmentation: what training does to an image, see `edkd.data.streaming`. broken: what happens if an image
    cannot be read: `stop` ends the run, `skip` leaves it out of its batch.
    """

    train: Files
    test: Files
    classes: tuple[str, ...]
    image_size: int
    workers: int
    augmentation: Augmentation
    broken: Broken

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    def fingerprint(self) -> str:
        """SHA-256, in hex, over the name, size and label of every file; pixels are not read for it.

        Raises EdkdError for a file that is not there, such as the end of a link, unless broken ones are skipped.
        """
        digest = hashlib.sha256(repr((self.classes, self.image_size)).encode())
        for split in (self.train, self.test):
            for path, label in map(split.__getitem__, range(len(split))):
                name = Path(path).relative_to(split.root).as_posix()
                try:
                    size = Path(path).stat().st_size
                except OSError as error:
                    if self.broken == "stop":
                        raise _unreadable(path, error.strerror) from None
                    size = -1
                digest.update(os.fsencode(f"{name} {size} {label}\n"))
        return digest.hexdigest()

"""Image files: reading one, and a data set that stays in its files."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

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
    return EdkdError(f"cannot read the image {path}: {why}; repair or remove it".replace("\n", " "))


@dataclass(frozen=True)
class Files:
    """One split: the path and the label of each image."""

    root: Path
    samples: tuple[tuple[str, int], ...]

    def __len__(self) -> int:
        return len(self.samples)


@dataclass(frozen=True)
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
            for path, label in split.samples:
                name = Path(path).relative_to(split.root).as_posix()
                try:
                    size = Path(path).stat().st_size
                except OSError as error:
                    if self.broken == "stop":
                        raise _unreadable(path, error.strerror) from None
                    size = -1
                digest.update(f"{name} {size} {label}\n".encode())
        return digest.hexdigest()

"""A teachers' archive: a tar file of folders `<network>_vanilla/` with `ckpt_epoch_240.pth` in each.

Nothing is unpacked to a path from the archive. Only the content of plain files with that name is copied, into a folder
that the caller chooses. Links, devices and names that lead out of the archive are refused.
"""

import lzma
import re
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from edkd.errors import EdkdError
from edkd.importers.results import network

_FILE = "ckpt_epoch_240.pth"
_FOLDER = re.compile(r"(?P<network>.+)_vanilla")


class Teacher(NamedTuple):
    """A network of an archive, by our name, and where its checkpoint was copied to."""

    name: str
    file: Path


def unpack(archive: Path, folder: Path) -> Iterator[tuple[str, Teacher | EdkdError]]:
    """Yield each member of an archive that is no folder: its name, and its teacher or the reason why it has none.

    Checkpoints are copied into `folder`, one at a time. Raises EdkdError for a file that is no archive.
    """
    try:
        if not tarfile.is_tarfile(archive):
            raise EdkdError(f"{archive} is no tar archive")
        with tarfile.open(archive) as tar:
            for member in tar:
                if member.isdir():
                    continue
                try:
                    name = _teacher(member)
                except EdkdError as error:
                    yield member.name, error
                    continue
                content = tar.extractfile(member)
                assert content is not None  # every plain file has content
                file = folder / f"{name}.pth"
                with content, file.open("wb") as copy:
                    shutil.copyfileobj(content, copy)
                yield member.name, Teacher(name, file)
                file.unlink()
    except (tarfile.TarError, EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        raise EdkdError(f"{archive} could not be read as a tar archive: {error}") from error


def _teacher(member: tarfile.TarInfo) -> str:
    """The network that a member holds. Raises EdkdError where it is none, or no plain file below the archive's root."""
    path = PurePosixPath(member.name)
    if not member.isreg():
        raise EdkdError("refused: a link or a device, no plain file")
    if path.is_absolute() or ".." in path.parts:
        raise EdkdError("refused: its name leads out of the archive")
    folder = _FOLDER.fullmatch(path.parent.name)
    if path.name != _FILE or folder is None:
        raise EdkdError(f"not known: not named NETWORK_vanilla/{_FILE}")
    return network(folder["network"])

"""Write files atomically: a reader finds the old content or the new, never a part of it."""

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from edkd.errors import EdkdError


def write_text(path: Path, text: str) -> None:
    """Write a small file into an existing folder.

    Several processes may write the same path at once. Raises `OSError`, because the caller knows what would help.
    """
    with _exchanged(path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp"), path, "x", text):
        pass


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Write a file of any size; its folder is made where absent. Otherwise as `replacing`."""
    with replacing(path, data):
        pass


@contextlib.contextmanager
def replacing(path: Path, *parts: bytes | memoryview) -> Iterator[None]:
    """Write ``parts`` to a file beside ``path``, run the block, then rename it; a failure leaves no temporary file.

    A path has one writer at a time: the next one overwrites the temporary file of a killed one. On return the file is
    on the disk under its name. Raises `EdkdError` for an `OSError`, also for one in the block.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _exchanged(path.with_name(f".{path.name}.tmp"), path, "wb", *parts):
            yield
        sync_directory(path.parent)
    except FileExistsError as error:
        raise EdkdError(f"could not save {path}: {path.parent} is not a folder") from error
    except OSError as error:
        room = _free(path.parent) if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise EdkdError(f"could not save {path}: {error.strerror or error}{room}") from error


def sync_directory(path: Path) -> None:
    """Return when the names in a folder are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _exchanged(temporary: Path, path: Path, mode: str, *parts: str | bytes | memoryview) -> Iterator[None]:
    """Fill ``temporary``, run the block, then rename it to ``path``; on any failure ``temporary`` is removed."""
    try:
        with temporary.open(mode) as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        yield
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _free(folder: Path) -> str:
    try:
        return f" ({shutil.disk_usage(folder).free / 2**20:.1f} MiB free on that disk)"
    except OSError:
        return ""

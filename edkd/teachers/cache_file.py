"""The file of the teacher cache: entries found by row number, each complete or absent.

The file is sparse; a row that was never written takes no space. An entry is a 64-bit checksum
and its logits, padded to 64-bit words, so it counts only when it is complete: a kill, a power cut, or two processes
that write the same entry leave nothing that is mistaken for a teacher's logits.
"""

import errno
import itertools
import json
import logging
import os
from collections.abc import Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock
from torch import Tensor

LOG = logging.getLogger("edkd.teachers.cache")
HEADER = 4096  # bytes; entries begin on a page of their own
PAGE = 4096  # bytes; what a file system gives to a sparse file at a time
WORD = 8  # bytes
FORMAT = 2  # version of the layout after the header
HOLE = np.uint64(0x9E3779B97F4A7C15)  # added to a checksum, so that a hole, which is all zeros, is no entry

Rows = npt.NDArray[np.int64]


class Table:
    """The file: `rows` entries of `classes` logits each, found by row number; absent until written.

    `key` identifies what the entries were computed from. An empty file replaces one with another key or size,
    at the start and whenever the file was removed, replaced or cut short while in use.
    `__init__`, `read` and `write` raise OSError if the file can be neither opened nor created.
    """

    def __init__(self, path: Path, *, key: Mapping[str, Any], rows: int, classes: int, dtype: torch.dtype) -> None:
        self.path, self.rows, self.classes, self.dtype = path, rows, classes, dtype
        self.width = entry_bytes(classes, dtype) // WORD
        about = {**key, "rows": rows, "classes": classes, "dtype": str(dtype), "format": FORMAT}
        header = json.dumps(about, sort_keys=True).encode()
        if len(header) > HEADER:
            raise ValueError(f"the key takes {len(header)} bytes, more than the {HEADER} of a header")
        self._header = header.ljust(HEADER)
        self._size = HEADER + rows * self.width * WORD
        # Odd multipliers make the checksum depend on every bit and on its place.
        multipliers = np.random.Philox(key=classes).random_raw(self.width - 1)
        self._multipliers = multipliers | np.uint64(1)
        self._open("rb").close()

    def read(self, rows: Rows) -> tuple[Tensor, npt.NDArray[np.bool_]]:
        """The entries of some rows, as words int64 [len(rows), width], and which of them are complete."""
        size = self.width * WORD
        with self._open("rb") as file:
            parts = [os.pread(file.fileno(), size, HEADER + row * size) for row in rows.tolist()]
        if any(len(part) != size for part in parts):
            raise OSError(errno.EIO, f"cut short while it was read: {self.path}")
        words = np.frombuffer(bytearray().join(parts), np.int64).reshape(len(rows), self.width)
        found = words.view(np.uint64)
        return torch.from_numpy(words), self._checksums(found) == found[:, 0]

    def write(self, rows: Rows, words: Tensor) -> None:
        """Store entries made by `encode`. Raises OSError when the disk is full or read-only; what is written stays."""
        order = np.argsort(rows, kind="stable")
        entries = words.numpy()[order]
        with self._open("r+b") as file:
            for first, last in _neighbours(rows[order]):
                data = entries[first:last].tobytes()
                offset = HEADER + int(rows[order[first]]) * self.width * WORD
                if os.pwrite(file.fileno(), data, offset) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def encode(self, logits: Tensor) -> Tensor:
        """Entries that hold the logits [B, K], as words int64 [B, width] in host memory."""
        words = torch.zeros(len(logits), self.width, dtype=torch.int64)
        self.decode(words).copy_(logits)
        raw = words.numpy().view(np.uint64)
        raw[:, 0] = self._checksums(raw)
        return words

    def decode(self, words: Tensor) -> Tensor:
        """The logits [B, K] inside of entries, in the precision in which they are stored: a view, on any device."""
        skip = WORD // self.dtype.itemsize
        return words.view(self.dtype)[:, skip : skip + self.classes]

    def _checksums(self, words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        sums: npt.NDArray[np.uint64] = words[:, 1:] @ self._multipliers
        return sums + HOLE

    def _open(self, mode: Literal["rb", "r+b"]) -> FileIO:
        """Open the file, after replacing it by an empty one if it is absent or not this table."""
        if not self._is_ours():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self.path}.lock", fallback_to_soft=False):
                if not self._is_ours():
                    self._begin_anew()
        return self.path.open(mode, buffering=0)

    def _is_ours(self) -> bool:
        try:
            with self.path.open("rb", buffering=0) as file:
                return os.fstat(file.fileno()).st_size == self._size and file.read(HEADER) == self._header
        except FileNotFoundError:
            return False

    def _begin_anew(self) -> None:
        if self.path.exists():
            LOG.warning("%s is truncated or holds something else: begun anew", self.path)
        # One name for all processes, so what a killed one left there is overwritten.
        fresh = self.path.with_name(f"{self.path.name}.new")
        try:
            with fresh.open("wb") as file:
                file.write(self._header)
                file.truncate(self._size)
                os.fsync(file.fileno())
            fresh.rename(self.path)
        except OSError:
            fresh.unlink(missing_ok=True)
            raise


def key_of(path: Path) -> dict[str, Any]:
    """The header of a table, which holds its key; empty if the file is not a table."""
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(HEADER))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def entry_bytes(classes: int, dtype: torch.dtype) -> int:
    """The size of one entry in the file."""
    return WORD + -(-classes * dtype.itemsize // WORD) * WORD


def disk_bytes(rows: Rows, entry: int) -> int:
    """The disk space, in whole pages, of a file that holds only these rows, of `entry` bytes each."""
    first, last = ((HEADER + rows * entry + end) // PAGE for end in (0, entry - 1))
    return int(np.unique(np.concatenate([first, last])).size) * PAGE + HEADER


def _neighbours(rows: Rows) -> Iterator[tuple[int, int]]:
    """Slices of sorted rows whose numbers have no gap, so that one write serves each slice."""
    ends = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
    return itertools.pairwise(ends)

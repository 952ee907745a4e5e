"""A frozen teacher's logits by (image, view), computed once and shared by every logit method, seed and process.

Padding, cropping and flipping has few outcomes, so what a frozen teacher in eval mode can say about a training set is
a finite table. It is one sparse file beside the teacher; before an epoch the entries that the epoch will use are read,
the missing ones computed and written, and the epoch then finds its logits in a plain [images, classes] tensor.

An entry carries a checksum of its own, so it counts only when it is wholly there: a kill, a power cut, or two processes
writing the same entry leave nothing that could be mistaken for a teacher's answer.
"""

import errno
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock
from torch import Tensor

from edkd.models.base import Prediction

LOG = logging.getLogger("edkd.teacher_cache")
HEADER = 4096  # bytes; entries begin on a page of their own
CHUNK = 64  # (image, view) pairs that go through the teacher at a time

Compute = Callable[[Tensor, Tensor], Tensor]
"""(image index [B], view [B]) -> logits [B, K] in the precision in which the teacher computes."""


class Table:
    """The file: `rows` entries of `classes` logits each, found by row number; absent until written.

    `key` says what the entries are the answer to. A file with another key or another size is set aside and begun anew.
    Raises OSError if the file can be neither opened nor made.
    """

    def __init__(self, path: Path, *, key: Mapping[str, Any], rows: int, classes: int, dtype: torch.dtype) -> None:
        self.path, self.rows, self.torch_dtype = path, rows, dtype
        raw = {torch.float32: "<u4", torch.bfloat16: "<u2", torch.float16: "<u2", torch.float64: "<u8"}[dtype]
        self.entry = np.dtype([("sum", "<u8"), ("logits", raw, (classes,))], align=True)
        header = json.dumps({**key, "rows": rows, "classes": classes, "dtype": str(dtype)}, sort_keys=True).encode()
        assert len(header) < HEADER
        self.header = header.ljust(HEADER)
        # Odd multipliers make the checksum depend on every bit and on its place.
        multipliers = np.random.Generator(np.random.Philox(key=classes)).integers(0, 2**63, classes, dtype=np.uint64)
        self.multipliers = multipliers * np.uint64(2) + np.uint64(1)
        size = HEADER + rows * self.entry.itemsize
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if path.exists() and not self._ours(size):
                aside = path.with_name(f"{path.name}.set-aside-{os.getpid()}")
                path.rename(aside)
                LOG.warning("%s is truncated or holds something else: moved to %s and begun anew", path, aside.name)
            if not path.exists():
                fresh = path.with_name(f"{path.name}.new-{os.getpid()}")
                with fresh.open("wb") as file:
                    file.write(self.header)
                    file.truncate(size)
                    os.fsync(file.fileno())
                fresh.rename(path)
        # Written with pwrite, which reports a full disk; a write into the mapping would end in SIGBUS instead.
        self.file = os.open(path, os.O_RDWR)
        self.entries = np.memmap(path, dtype=self.entry, mode="r", offset=HEADER, shape=(rows,))
        self.writable = True

    def _ours(self, size: int) -> bool:
        with self.path.open("rb") as file:
            return file.read(HEADER) == self.header and self.path.stat().st_size == size

    def read(self, rows: npt.NDArray[np.int64]) -> tuple[Tensor, npt.NDArray[np.bool_]]:
        """The logits [len(rows), K] of some rows, and which of them are there."""
        found = self.entries[rows]
        logits = np.ascontiguousarray(found["logits"])
        return torch.from_numpy(logits.view(_SIGNED[logits.dtype.str])).view(self.torch_dtype), (
            self._sum(logits) == found["sum"]
        )

    def write(self, rows: npt.NDArray[np.int64], logits: Tensor) -> None:
        """Store entries; when the disk is full or read-only the table stays as it is, which is said once."""
        if not self.writable:
            return
        raw = logits.to(self.torch_dtype).contiguous()
        entries = np.zeros(len(rows), self.entry)
        entries["logits"] = raw.view(_INTEGER[self.torch_dtype]).numpy().view(self.entry["logits"].base)
        entries["sum"] = self._sum(entries["logits"])
        try:
            for row, entry in zip(rows.tolist(), entries, strict=True):
                data, offset = entry.tobytes(), HEADER + row * self.entry.itemsize
                if os.pwrite(self.file, data, offset) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self.writable = False
            LOG.warning("%s: %s; training goes on and computes what is missing", self.path, error.strerror)

    def _sum(self, logits: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
        """[B, K] -> a 64-bit checksum each, never 0: a hole in the file is no entry."""
        total: npt.NDArray[np.uint64] = (logits.astype(np.uint64) * self.multipliers).sum(axis=1, dtype=np.uint64)
        return total | np.uint64(1)

    def close(self) -> None:
        """Give the file descriptor back."""
        os.close(self.file)


_INTEGER = {
    torch.float32: torch.int32,
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
    torch.float64: torch.int64,
}
_SIGNED = {"<u2": np.int16, "<u4": np.int32, "<u8": np.int64}


class CachedTeacher:
    """A teacher source that computes each (image, view) at most once: see `trainer.TeacherSource`."""

    def __init__(self, table: Table, compute: Compute, *, views: int, device: torch.device) -> None:
        self.table, self.compute, self.views, self.device = table, compute, views, device
        self.logits: Tensor | None = None  # [images, K] of this epoch, on the device, by image

    def begin_epoch(self, views: Tensor) -> None:
        """Make the logits of an epoch ready, in which training image i is seen as `views[i]`."""
        view = views.cpu().numpy()
        rows = np.arange(len(view), dtype=np.int64) * self.views + view
        logits, present = self.table.read(rows)
        missing = np.flatnonzero(~present)
        # Processes that start together begin at different places, and leave each other what is already there.
        start = os.getpid() * 2654435761 % len(missing) // CHUNK * CHUNK if len(missing) else 0
        for chunk in _chunks(np.roll(missing, -start)):
            late, there = self.table.read(rows[chunk])
            logits[torch.from_numpy(chunk[there])] = late[torch.from_numpy(there)]
            todo = chunk[~there]
            if len(todo):
                asked = torch.from_numpy(todo).to(self.device)
                answer = self.compute(asked, torch.from_numpy(view[todo]).to(self.device)).cpu()
                logits[torch.from_numpy(todo)] = answer.to(logits.dtype)
                self.table.write(rows[todo], answer)
        if self.logits is None:
            self.logits = torch.empty(logits.shape, dtype=torch.float32, device=self.device)
        self.logits.copy_(logits)

    def __call__(self, images: Tensor, index: Tensor, view: Tensor) -> Prediction:
        """The logits of training images `index` [B] in the views of the current epoch; `images` are not looked at."""
        assert self.logits is not None, "begin_epoch comes first"
        return Prediction(self.logits.index_select(0, index))


def _chunks(rows: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
    return [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]

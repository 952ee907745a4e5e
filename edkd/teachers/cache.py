"""A frozen teacher's logits by (image, view), computed once and shared by every logit method, seed and process.

Padding, cropping and flipping has few outcomes, so the logits of a frozen teacher in eval mode for a training set are
a finite table. It is one sparse file beside the teacher (`edkd.teachers.cache_file`). Before an epoch, the entries that
it will use are read, and the missing ones are computed and written; the epoch then finds its logits in a plain
[images, classes] tensor.

A GPU keeps the entries that it has used in its own memory, if that is large enough for the table; then a warm epoch is
one gather there. Otherwise an epoch's entries are read from the file.
"""

import logging
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from edkd.models.base import Prediction
from edkd.teachers.cache_file import Rows, Table
from edkd.teachers.source import TEACHER_BATCH

LOG = logging.getLogger("edkd.teachers.cache")
DEVICE_SHARE = 0.25  # of a GPU's free memory that the table may take; the rest is for the run and for other runs

Compute = Callable[[Tensor, Tensor], Tensor]
"""(image index [B], view [B]) -> logits [B, K] in the precision in which the teacher computes."""


def room_on(device: torch.device, table: Table) -> Tensor | None:
    """Words int64 [rows, width] for a table's entries on a GPU with enough free memory, all holes; None elsewhere."""
    if device.type != "cuda":
        return None
    torch.cuda.empty_cache()  # frees the memory that earlier runs in this process left
    if table.rows * table.width * 8 > DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]:
        return None
    try:
        return torch.zeros(table.rows, table.width, dtype=torch.int64, device=device)
    except torch.cuda.OutOfMemoryError:  # another process was faster
        return None


class CachedTeacher:
    """A teacher source that computes each (image, view) at most once: see `source.TeacherSource`.

    `resident`, if there is room for it, keeps entries on the device, at the same row numbers as in the file.

    `logits` is the epoch's tensor, float32 [images, K] on the device. It keeps its place in memory from epoch to epoch,
    so a captured CUDA graph may read it.
    """

    def __init__(
        self,
        table: Table,
        compute: Compute,
        uncached: Callable[[Tensor], Prediction],
        *,
        views: int,
        device: torch.device,
        resident: Tensor | None = None,
    ) -> None:
        self.table, self.compute, self.uncached = table, compute, uncached
        self.views, self.device, self.resident = views, device, resident
        self.logits: Tensor | None = None
        self._warned = False

    def begin_epoch(self, views: Tensor | None) -> None:
        """Prepare the logits of an epoch in which training image i is seen as `views[i]`, int64 [images]."""
        assert views is not None, "only data whose views are integers can be remembered"
        count = len(views)
        if self.logits is None:
            self.logits = torch.empty(count, self.table.classes, dtype=torch.float32, device=self.device)
        rows = torch.arange(count, device=self.device) * self.views + views.to(self.device)
        if self.resident is None:
            self.logits.copy_(self.table.decode(self._fetch(rows.cpu().numpy())))
            return
        words = self.resident.index_select(0, rows)
        self.logits.copy_(self.table.decode(words))
        late = (words[:, 0] == 0).nonzero().flatten()  # the one synchronisation of a warm epoch
        if len(late):
            rows = rows[late]
            words = self._fetch(rows.cpu().numpy())
            self.logits.index_copy_(0, late, self.table.decode(words).float())
            self.resident.index_copy_(0, rows, words)

    def __call__(self, images: Tensor, index: Tensor) -> Prediction:
        """The logits of training images `index` [B] in the views of the current epoch; `images` are not used."""
        assert self.logits is not None, "begin_epoch comes first"
        return Prediction(self.logits.index_select(0, index))

    def answer(self, rows: Rows) -> Tensor:
        """Entries for rows, computed by the teacher: words int64 [len(rows), width] in host memory."""
        index, view = (torch.from_numpy(part).to(self.device) for part in (rows // self.views, rows % self.views))
        return self.table.encode(self.compute(index, view))

    def _fetch(self, rows: Rows) -> Tensor:
        """The entries of rows, on the device: read if the file has them, else computed and written."""
        try:
            words, there = self.table.read(rows)
        except OSError as error:
            self._warn(error)
            words, there = torch.empty(len(rows), self.table.width, dtype=torch.int64), np.zeros(len(rows), np.bool_)
        missing = np.flatnonzero(~there)
        for done in settle(self.table, rows[missing], self.answer, on_error=self._warn):
            words[torch.from_numpy(missing[done.places])] = done.words
        return words.to(self.device)

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            LOG.warning("%s: %s; training goes on and computes what is missing", self.table.path, error.strerror)
        self._warned = True


class Settled(NamedTuple):
    """Some of the requested rows, whose entries are now known."""

    places: Rows  # positions among the requested rows
    words: Tensor  # int64 [len(places), width]
    computed: bool  # by this process; otherwise another process wrote them meanwhile


def settle(
    table: Table, rows: Rows, answer: Callable[[Rows], Tensor], *, on_error: Callable[[OSError], None]
) -> Iterator[Settled]:
    """Yield the entries of all `rows` in parts, each once: read if the table has it by then, else computed and stored.

    Processes that fill the same table go through it in different orders, so each finds what the others have written.
    If the table cannot be read or written, `on_error` is called, and the table is not used any more.
    """
    full, rest = divmod(len(rows), TEACHER_BATCH)
    blocks = [*np.random.default_rng().permutation(full).tolist(), *([full] if rest else [])]
    sound = True
    for number in blocks:
        part = np.arange(number * TEACHER_BATCH, min((number + 1) * TEACHER_BATCH, len(rows)))
        if sound:
            try:
                words, there = table.read(rows[part])
            except OSError as error:
                sound = False
                on_error(error)
            else:
                if there.any():
                    yield Settled(part[there], words[torch.from_numpy(there)], False)
                part = part[~there]
        if len(part) == 0:
            continue
        words = answer(rows[part])
        if sound:
            try:
                table.write(rows[part], words)
            except OSError as error:
                sound = False
                on_error(error)
        yield Settled(part, words, True)

"""Filling the tables of teacher logits ahead of the runs that will use them: `edkd teachers cache`.

It goes through the same fixed batches under the same key as a run does, so runs find everything. It may be killed and
started again, and several processes share the work.
"""

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from edkd.config.schema import Settings
from edkd.console import counting
from edkd.data.resident import ResidentData
from edkd.data.views import epoch_views
from edkd.errors import EdkdError
from edkd.runs.setup import device_data, teacher_folder, teacher_inputs
from edkd.runs.teacher_source import cached, table_gb
from edkd.teachers import store
from edkd.teachers.cache import CachedTeacher, settle
from edkd.teachers.cache_file import WORD, Rows, Table, disk_bytes
from edkd.teachers.source import OnlineTeacher, Precision

BLOCK = 65536  # entries that are looked at together


@dataclass(frozen=True)
class Wanted:
    """Which entries: those of the first `epochs` epochs of runs with these seeds; without seeds, all there are."""

    seeds: Sequence[int] | None
    epochs: int

    def rows(self, images: int, views: int) -> Rows:
        """The rows of the table, in ascending order."""
        if self.seeds is None:
            return np.arange(images * views)
        drawn = np.zeros(images * views, dtype=np.bool_)
        firsts = np.arange(images) * views
        for seed in self.seeds:
            for epoch in range(1, self.epochs + 1):
                drawn[firsts + epoch_views(seed, epoch, images, views)] = True
        return np.flatnonzero(drawn)

    def describe(self, images: int, views: int) -> str:
        """In words, with the number of times that runs will ask."""
        if self.seeds is None:
            return f"all {views} views of {images:,} images"
        seeds = ("seed " if len(self.seeds) == 1 else "seeds ") + ", ".join(map(str, self.seeds))
        times = len(self.seeds) * self.epochs * images
        return f"{self.epochs} epochs of {images:,} images with {seeds}: {times:,} entries asked for"


def fill(tables: Sequence[Settings], seeds: Sequence[int] | None) -> None:
    """Fill the table of each configuration's teacher, for the epochs of its schedule, and tell on stdout what is done.

    Without seeds the whole table. Raises EdkdError for a teacher that is not in the store (before anything is
    computed), a table above engine.teacher_cache_gb, and a folder or disk that cannot take it.
    """
    for cfg in tables:
        if not cfg.engine.teacher_cache:
            raise EdkdError("engine.teacher_cache=false: runs of this configuration look into no table")
        name, where = cfg.teacher.name, teacher_folder(cfg)
        if store.find(where, cfg.dataset.key, name) is None:
            raise EdkdError(
                f"no teacher {name} of {cfg.dataset.key} in {where}; `python launch.py distiller=vanilla "
                f"student={name}`, with the same dataset options, trains one, `edkd teachers import` adds a file"
            )
    for cfg in tables:
        source, images = _open(cfg)
        try:
            _fill(cfg.teacher.name, source, images, Wanted(seeds, cfg.schedule.epochs))
        except OSError as error:
            raise EdkdError(f"{source.table.path}: {error.strerror or error}") from error


def _open(cfg: Settings) -> tuple[CachedTeacher, int]:
    """The table that runs of a configuration use, and the number of training images."""
    inputs = teacher_inputs(cfg)
    assert inputs.teacher is not None
    device, name, key = inputs.device, cfg.teacher.name, cfg.dataset.key
    data = device_data(inputs.arrays, cfg, device).train
    if not isinstance(data, ResidentData):
        raise EdkdError(f"{key} is streamed: its views have no numbers, so the teacher runs in every step")
    online = OnlineTeacher(inputs.teacher, want_feats=False, precision=Precision(cfg.engine.precision, device))
    size = table_gb(inputs, data, online)
    if size > cfg.engine.teacher_cache_gb:
        raise EdkdError(
            f"the table of teacher {name} for {key} would be {size:.3g} GB, above "
            f"engine.teacher_cache_gb={cfg.engine.teacher_cache_gb:g}: runs do not use it unless that is raised, "
            "here and there"
        )
    try:
        source = cached(cfg, inputs, data, online)
    except OSError as error:
        raise EdkdError(f"no table can be made in {teacher_folder(cfg) / key}: {error.strerror or error}") from error
    threads = torch.get_num_threads()
    where = f"the CPU with {threads} thread{'s' * (threads > 1)}" if device.type == "cpu" else f"device {device}"
    print(f"{name} of {key}: for runs in {cfg.engine.precision} on {where}")
    return source, len(data)


def _fill(name: str, source: CachedTeacher, images: int, wanted: Wanted) -> None:
    table = source.table
    rows = wanted.rows(images, source.views)
    missing = _missing(table, rows)
    needed = disk_bytes(rows, table.width * WORD)
    print(
        f"{wanted.describe(images, source.views)}, {len(rows):,} distinct; {len(rows) - len(missing):,} are there, "
        f"{len(missing):,} to compute; {_size(needed)} on disk then, {_size(_free(table))} free; {table.path}",
        flush=True,
    )
    computed = others = 0

    def give_up(error: OSError) -> None:
        raise EdkdError(
            f"{table.path}: {error.strerror or error}; what was computed ({computed:,}) stays valid, "
            "and the same command continues where that is mended"
        ) from error

    began = time.monotonic()
    try:
        with torch.no_grad(), counting(name, len(missing)) as update:
            for done in settle(table, missing, source.answer, on_error=give_up):
                computed += len(done.places) * done.computed
                others += len(done.places) * (not done.computed)
                update(computed + others)
    except KeyboardInterrupt:
        print(f"stopped: {computed:,} computed and kept; the same command continues")
        raise
    seconds = time.monotonic() - began
    shared = f"; {others:,} by other processes meanwhile" if others else ""
    speed = f" in {seconds:.1f} s, {computed / seconds:,.0f}/s" if computed else ""
    print(f"computed {computed:,}{speed}{shared}; all {len(rows):,} are there")


def _missing(table: Table, rows: Rows) -> Rows:
    parts = [rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK)]
    return np.concatenate([part[~table.read(part)[1]] for part in parts])


def _free(table: Table) -> int:
    return shutil.disk_usage(table.path.parent).free


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e7 else f"{count / 1e6:.2f} MB"

"""Where the teacher's predictions of a run come from: its logits in the cache, or its network in every step.

`fill` computes a cache ahead of the runs (`edkd teachers cache`). It goes through the same fixed batches under the same
key as a run does, so runs find everything. It may be killed and started again, and several processes share the work.
"""

import logging
import shutil
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edkd import __version__
from edkd.config.job import digest
from edkd.config.schema import Settings
from edkd.console import counted, counting, duration, size
from edkd.data.base import TrainData
from edkd.data.resident import ResidentData
from edkd.data.views import epoch_views, n_views
from edkd.errors import EdkdError
from edkd.runs.inputs import Inputs, device_data, find_teacher, load_arrays, load_teacher, teacher_code, teacher_folder
from edkd.teachers.cache import CachedTeacher, room_on, settle
from edkd.teachers.cache_file import WORD, Rows, Table, disk_bytes, entry_bytes
from edkd.teachers.source import TEACHER_BATCH, OnlineTeacher, Precision, TeacherSource
from edkd.teachers.tables import path_of
from edkd.training import hardware
from edkd.training.device import pick_device, set_up

LOG = logging.getLogger("edkd")
BLOCK = 65536  # entries of a table that are read together


def teacher_source(cfg: Settings, inputs: Inputs, data: TrainData, needs_feats: bool) -> TeacherSource:
    """The teacher of a run: its cache where logits suffice and the table fits, else the network itself."""
    assert inputs.teacher is not None
    precision = Precision(cfg.engine.precision, inputs.device)
    online = OnlineTeacher(inputs.teacher, want_feats=needs_feats, precision=precision)
    if needs_feats or not cfg.engine.teacher_cache or not isinstance(data, ResidentData):
        return online
    try:
        source = cached(cfg, inputs, data, online)
        source.resident = room_on(inputs.device, source.table)
        return source
    except (EdkdError, OSError) as error:
        LOG.warning("no teacher cache: %s; the teacher runs in every step", error)
        return online


def cached(cfg: Settings, inputs: Inputs, data: TrainData, online: OnlineTeacher) -> CachedTeacher:
    """The teacher with its table of logits for these data.

    Raises EdkdError if the data or the size limit allow no table, and OSError if its file cannot be opened or made.
    """
    assert inputs.teacher_record is not None
    if not isinstance(data, ResidentData):
        raise EdkdError(f"{cfg.dataset.key} is streamed: its views have no numbers")
    views, classes, dtype = n_views(data.padding, data.flip), inputs.arrays.num_classes, _stored(online, data)
    needed = len(data) * views * entry_bytes(classes, dtype) / 1e9
    if needed > cfg.engine.teacher_cache_gb:
        raise EdkdError(
            f"the table of teacher {cfg.teacher.name} for {cfg.dataset.key} would be {needed:.3g} GB, above "
            f"engine.teacher_cache_gb={cfg.engine.teacher_cache_gb:g}"
        )
    key = table_key(cfg, inputs.teacher_record["sha256"], inputs.data_sha256, inputs.device)
    path = path_of(teacher_folder(cfg), cfg.dataset.key, cfg.teacher.name, digest(key))
    table = Table(path, key=key, rows=len(data) * views, classes=classes, dtype=dtype)

    def compute(index: Tensor, view: Tensor) -> Tensor:
        return online.raw(data.augmented(index, view)).logits

    return CachedTeacher(table, compute, online.uncached, views=views, device=inputs.device)


def table_key(cfg: Settings, teacher_sha256: str, data_sha256: str, device: torch.device) -> dict[str, Any]:
    """All that the bits of a table depend on; its number of rows and of classes follows from that.

    A CPU's matrix products add in an order that depends on the number of threads.
    """
    cuda = device.type == "cuda"
    computer = [hardware.device_name(device)] if cuda else [hardware.cpu_model(), torch.get_num_threads()]
    libraries = [torch.version.cuda, torch.backends.cudnn.version()] if cuda else []
    return {
        **teacher_code(cfg),
        "teacher": teacher_sha256,
        "model": cfg.teacher.model,
        "data": data_sha256,
        "normalisation": [cfg.dataset.mean, cfg.dataset.std],
        "views": [cfg.dataset.padding, cfg.dataset.flip],
        "engine": {name: value for name, value in vars(cfg.engine).items() if name not in _NEUTRAL},
        "batch": TEACHER_BATCH,
        "machine": [device.type, *computer],
        "versions": [__version__, torch.__version__, *libraries],
    }


_NEUTRAL = (  # they change no logit
    "device", "devices", "sync_batch_norm", "threads", "teacher_cache", "teacher_cache_gb", "compile", "capture",
    "checkpoint_every_minutes",
)  # fmt: skip


def _stored(online: OnlineTeacher, data: ResidentData) -> torch.dtype:
    """The type of the stored logits: the one in which the network computes them."""
    if online.precision.name == "fp32":
        return torch.float32
    first = torch.zeros(1, dtype=torch.int64, device=online.precision.device)
    return online.raw(data.plain(first)).logits.dtype  # a head that is fp32 by itself stays so under autocast


def wanted_rows(seeds: Sequence[int] | None, epochs: int, *, images: int, views: int) -> Rows:
    """The rows of a table, ascending, that the first epochs of runs with these seeds use; without seeds, all."""
    if seeds is None:
        return np.arange(images * views)
    drawn = np.zeros(images * views, dtype=np.bool_)
    firsts = np.arange(images) * views
    for seed in seeds:
        for epoch in range(1, epochs + 1):
            drawn[firsts + epoch_views(seed, epoch, images, views)] = True
    return np.flatnonzero(drawn)


def fill(tables: Sequence[Settings], seeds: Sequence[int] | None) -> None:
    """Fill the table of each configuration's teacher, for the epochs of its schedule, and print what is done.

    Without seeds, the whole table is filled. Raises EdkdError for a teacher that is not in the store (before anything
    is computed), a table above engine.teacher_cache_gb, and a folder or disk that cannot hold it.
    """
    for cfg in tables:
        if not cfg.engine.teacher_cache:
            raise EdkdError("engine.teacher_cache=false: runs of this configuration look into no table")
        find_teacher(cfg)
    for cfg in tables:
        try:
            source, images = _open(cfg)
            _fill(cfg, source, images, seeds)
        except OSError as error:
            where = teacher_folder(cfg) / cfg.dataset.key
            raise EdkdError(f"no teacher cache in {where}: {error.strerror or error}") from error


def _open(cfg: Settings) -> tuple[CachedTeacher, int]:
    """The table that runs of a configuration use, and the number of training images."""
    set_up(cfg.engine)
    arrays, sha256 = load_arrays(cfg)
    device, entry = pick_device(cfg.engine.device), find_teacher(cfg)
    network = load_teacher(cfg, entry, arrays.num_classes, device)
    inputs = Inputs(arrays, sha256, device, network, {"id": entry.id, "sha256": entry.sha256})
    data = device_data(arrays, cfg, device).train
    online = OnlineTeacher(network, want_feats=False, precision=Precision(cfg.engine.precision, device))
    source = cached(cfg, inputs, data, online)
    threads = counted(torch.get_num_threads(), "thread")
    where = f"the CPU with {threads}" if device.type == "cpu" else f"device {device}"
    print(f"{entry.name} of {cfg.dataset.key}: for runs in {cfg.engine.precision} on {where}")
    return source, len(data)


def _fill(cfg: Settings, source: CachedTeacher, images: int, seeds: Sequence[int] | None) -> None:
    table, epochs = source.table, cfg.schedule.epochs
    rows = wanted_rows(seeds, epochs, images=images, views=source.views)
    asked = f"all {source.views} views of {images:,} images"
    if seeds is not None:
        asked = f"{epochs} epochs of {images:,} images with seeds {', '.join(map(str, seeds))}"
        asked += f": {len(seeds) * epochs * images:,} entries asked for"
    parts = [rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK)]
    missing = np.concatenate([part[~table.read(part)[1]] for part in parts])
    free = shutil.disk_usage(table.path.parent).free
    print(
        f"{asked}, {len(rows):,} distinct; {len(rows) - len(missing):,} are there, "
        f"{len(missing):,} to compute; {size(disk_bytes(rows, table.width * WORD))} on disk then, {size(free)} free; "
        f"{table.path}",
        flush=True,
    )
    computed = others = 0

    def give_up(error: OSError) -> None:
        raise EdkdError(
            f"{table.path}: {error.strerror or error}; {computed:,} computed entries are kept; "
            "the same command continues when that is mended"
        ) from error

    began = time.monotonic()
    try:
        with torch.no_grad(), counting(cfg.teacher.name, len(missing)) as update:
            for done in settle(table, missing, source.answer, on_error=give_up):
                computed += len(done.places) * done.computed
                others += len(done.places) * (not done.computed)
                update(computed + others)
    except KeyboardInterrupt:
        print(f"stopped: {computed:,} computed and kept; the same command continues")
        raise
    seconds = time.monotonic() - began
    shared = f"; {others:,} by other processes meanwhile" if others else ""
    speed = f" in {duration(seconds)}, {computed / seconds:,.0f}/s" if computed else ""
    print(f"computed {computed:,}{speed}{shared}; all {len(rows):,} are there")

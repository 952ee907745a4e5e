"""Where the teacher's predictions of a run come from: its logits in the cache, or its network in every step."""

import logging
from typing import Any

import torch
from torch import Tensor

from edkd import __version__
from edkd.config.job import digest
from edkd.config.schema import Settings
from edkd.data.base import TrainData
from edkd.data.resident import ResidentData
from edkd.data.views import n_views
from edkd.runs.setup import Inputs, teacher_folder
from edkd.teachers.cache import CachedTeacher, Resident
from edkd.teachers.cache_file import Table, entry_bytes
from edkd.teachers.source import TEACHER_BATCH, OnlineTeacher, Precision, TeacherSource
from edkd.training import hardware

LOG = logging.getLogger("edkd")


def teacher_source(
    cfg: Settings, inputs: Inputs, data: TrainData, precision: Precision, needs_feats: bool
) -> TeacherSource:
    """The teacher of a run: its cache where logits suffice and the table fits, else the network itself."""
    assert inputs.teacher is not None
    online = OnlineTeacher(inputs.teacher, want_feats=needs_feats, precision=precision)
    if needs_feats or not cfg.engine.teacher_cache or not isinstance(data, ResidentData):
        return online
    size = table_gb(inputs, data, online)
    if size > cfg.engine.teacher_cache_gb:
        LOG.info("no teacher cache: %.1f GB, above engine.teacher_cache_gb=%g", size, cfg.engine.teacher_cache_gb)
        return online
    try:
        source = cached(cfg, inputs, data, online)
        source.resident = Resident.where_it_fits(source.table, inputs.device)
        return source
    except OSError as error:
        LOG.warning("no teacher cache: %s; the teacher runs in every step", error)
        return online


def cached(cfg: Settings, inputs: Inputs, data: ResidentData, online: OnlineTeacher) -> CachedTeacher:
    """The teacher behind its table for these data. Raises OSError if the file can be neither opened nor made."""
    assert inputs.taught_by is not None
    views = n_views(data.padding, data.flip)
    key = table_key(cfg, inputs.taught_by["sha256"], inputs.data_sha256, inputs.device)
    table = Table(
        teacher_folder(cfg) / cfg.dataset.key / f"{cfg.teacher.name}.{digest(key)}.logits",
        key=key,
        rows=len(data) * views,
        classes=inputs.arrays.num_classes,
        dtype=_stored(online, data),
    )

    def compute(index: Tensor, view: Tensor) -> Tensor:
        return online.raw(data.augmented(index, view)).logits

    return CachedTeacher(table, compute, views=views, device=inputs.device)


def table_key(cfg: Settings, teacher_sha256: str, data_sha256: str, device: torch.device) -> dict[str, Any]:
    """All that the bits of a table depend on; its number of rows and of classes follows from that.

    A CPU's matrix products add in an order that depends on the number of threads.
    """
    cuda = device.type == "cuda"
    computer = [hardware.device_name(device)] if cuda else [hardware.cpu_model(), torch.get_num_threads()]
    libraries = [torch.version.cuda, torch.backends.cudnn.version()] if cuda else []
    return {
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


_NEUTRAL = ("device", "threads", "teacher_cache", "teacher_cache_gb", "compile", "capture")  # they change no logit


def table_gb(inputs: Inputs, data: ResidentData, online: OnlineTeacher) -> float:
    """The size of a whole table, in gigabytes."""
    rows = len(data) * n_views(data.padding, data.flip)
    return rows * entry_bytes(inputs.arrays.num_classes, _stored(online, data)) / 1e9


def _stored(online: OnlineTeacher, data: ResidentData) -> torch.dtype:
    """The precision in which logits are stored: that in which the network computes them."""
    if online.precision.name == "fp32":
        return torch.float32
    first = torch.zeros(1, dtype=torch.int64, device=online.precision.device)
    return online.raw(data.plain(first)).logits.dtype  # autocast leaves a head that is fp32 by itself as it is

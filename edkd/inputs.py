"""What a run needs before its first step, found and verified: data and teacher."""

import functools
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edkd import config, teachers
from edkd.config import Settings
from edkd.data.arrays import Arrays, prepare
from edkd.data.batches import DeviceData
from edkd.data.views import n_views
from edkd.engine import pick_device, to_device
from edkd.errors import EdkdError
from edkd.teacher_cache import CachedTeacher, Table
from edkd.trainer import OnlineTeacher, Precision, Splits, TeacherSource, evaluate

LOG = logging.getLogger("edkd")


@dataclass(frozen=True)
class Inputs:
    """Data and teacher of a run."""

    arrays: Arrays
    data_sha256: str
    device: torch.device
    teacher: nn.Module | None
    taught_by: dict[str, Any] | None  # the journal's note on the teacher


def gather(given: Settings, teacher_id: str | None) -> Inputs:
    """Read and verify all that a run needs: data, device, teacher."""
    arrays, sha256 = load_arrays(given)
    device = pick_device(given.engine.device)
    if not given.needs_teacher:
        return Inputs(arrays, sha256, device, None, None)
    entry = teachers.find(store(given), given.dataset.key, given.teacher.name)
    if entry is None:
        raise teachers.missing(given.dataset.key, given.teacher.name, store(given))
    if teacher_id is not None and entry.id != teacher_id:
        raise EdkdError(
            f"teacher {entry.name} in {entry.path.parent} is {entry.id}, but the run was planned with {teacher_id}: "
            "start the same command again to plan anew"
        )
    network = config.build(given.teacher.model, "teacher.model", num_classes=arrays.num_classes)
    teachers.load(entry, network)
    network = to_device(network, given.engine, device)
    measured = teachers.accuracy_for(entry, sha256)
    if measured is None:
        measured = {**evaluate(network, device_data(arrays, given, device).test, Precision("fp32", device))}
        teachers.record_accuracy(entry, measured, sha256)
    note = {"id": entry.id, "sha256": entry.sha256, "top1": measured["top1"]}
    return Inputs(arrays, sha256, device, network, note)


def teacher_source(
    given: Settings, inputs: Inputs, data: DeviceData, precision: Precision, needs_feats: bool
) -> TeacherSource:
    """The teacher of a run: its cache where logits suffice and the table fits, else the network itself."""
    assert inputs.teacher is not None
    online = OnlineTeacher(inputs.teacher, want_feats=needs_feats, precision=precision)
    if needs_feats or not given.engine.teacher_cache:
        return online
    views = n_views(data.padding, data.flip)
    try:
        table = open_table(given, inputs, rows=len(data) * views)
    except OSError as error:
        LOG.warning("no teacher cache: %s; the teacher runs in every step", error)
        return online
    if table is None:
        return online

    def compute(index: Tensor, view: Tensor) -> Tensor:
        return online.raw(data.augmented(index, view)).logits

    return CachedTeacher(table, compute, views=views, device=inputs.device)


def open_table(given: Settings, inputs: Inputs, *, rows: int) -> Table | None:
    """The cache file for a teacher on these data, in this precision; None where it would be too large."""
    assert inputs.taught_by is not None
    dtype = torch.bfloat16 if given.engine.precision == "bf16" else torch.float32
    size = rows * (inputs.arrays.num_classes * dtype.itemsize + 8) / 1e9
    if size > given.engine.teacher_cache_gb:
        LOG.info("no teacher cache: %.1f GB, above engine.teacher_cache_gb=%g", size, given.engine.teacher_cache_gb)
        return None
    key = {
        "teacher": inputs.taught_by["sha256"],
        "data": inputs.data_sha256,
        "normalisation": [given.dataset.mean, given.dataset.std],
        "views": [given.dataset.padding, given.dataset.flip],
        "computed": [inputs.device.type, given.engine.precision, given.engine.channels_last],
    }
    folder = store(given) / given.dataset.key
    path = folder / f"{given.teacher.name}.{config.digest(key)}.logits"
    return Table(path, key=key, rows=rows, classes=inputs.arrays.num_classes, dtype=dtype)


def store(given: Settings) -> Path:
    """The teacher store of a configuration."""
    return Path(given.output) / "teachers"


def load_arrays(given: Settings) -> tuple[Arrays, str]:
    """The data set of a configuration and its fingerprint; the last one stays in memory for the next run."""
    arguments = {name: getattr(given.dataset, name) for name in _PREPARED}
    return _load_arrays(json.dumps(given.dataset.source, sort_keys=True), json.dumps(arguments))


_PREPARED = ("train_per_class", "test_per_class", "validation", "validation_seed")


@functools.lru_cache(maxsize=1)
def _load_arrays(source: str, arguments: str) -> tuple[Arrays, str]:
    arrays = prepare(config.build(json.loads(source), "dataset.source"), **json.loads(arguments))
    return arrays, arrays.fingerprint()


def device_data(arrays: Arrays, given: Settings, device: torch.device) -> Splits:
    """The splits resident on the device; only training images are padded and augmented."""

    def make(split: Any, padding: int, flip: bool) -> DeviceData:
        return DeviceData(
            split,
            mean=given.dataset.mean,
            std=given.dataset.std,
            padding=padding,
            flip=flip,
            device=device,
            channels_last=given.engine.channels_last,
        )

    return Splits(
        train=make(arrays.train, given.dataset.padding, given.dataset.flip),
        validation=make(arrays.validation, 0, False) if arrays.validation is not None else None,
        test=make(arrays.test, 0, False),
    )

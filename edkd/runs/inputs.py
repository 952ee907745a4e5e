"""The inputs of a run, found and verified: its data and its teacher."""

import contextlib
import functools
import json
import logging
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edkd.config.instantiate import build, target
from edkd.config.job import digest, directory_of, training_run
from edkd.config.schema import Settings
from edkd.data.arrays import Arrays, Split, UnfitError, prepare
from edkd.data.files import Streamed
from edkd.data.resident import ResidentData
from edkd.data.streaming import StreamedData
from edkd.errors import EdkdError
from edkd.rundir import journal, provenance
from edkd.runs.pretrained import publish_weights
from edkd.teachers import store
from edkd.teachers.source import Precision
from edkd.training.device import pick_device, to_device
from edkd.training.distributed import part
from edkd.training.evaluation import evaluate
from edkd.training.trainer import Splits

LOG = logging.getLogger("edkd")
_AS_GOOD = 1.0  # points of top-1 by which a teacher's accuracy here may differ from that in its store entry


@dataclass(frozen=True)
class Inputs:
    """Data and teacher of a run."""

    arrays: Arrays | Streamed
    data_sha256: str
    device: torch.device
    teacher: nn.Module | None
    teacher_record: dict[str, Any] | None  # of the teacher, for the journal


def find_inputs(cfg: Settings, teacher_id: str | None) -> tuple[Arrays | Streamed, str, store.Entry | None]:
    """The data of a run, their fingerprint and its teacher, downloaded where they are not here; on no device yet."""
    arrays, sha256 = load_arrays(cfg)
    if not cfg.needs_teacher:
        return arrays, sha256, None
    entry = find_teacher(cfg, trained_by=training_run(teacher_id))
    if teacher_id is not None and entry.id != teacher_id:
        raise EdkdError(
            f"teacher {entry.name} in {entry.path.parent} is {entry.id}, but the run was planned with {teacher_id}: "
            "start the same command again to plan anew"
        )
    return arrays, sha256, entry


def gather(cfg: Settings, teacher_id: str | None) -> Inputs:
    """Read and verify all that a run needs: data, device, teacher."""
    arrays, sha256, entry = find_inputs(cfg, teacher_id)
    device = pick_device(cfg.engine.device)
    if entry is None:
        return Inputs(arrays, sha256, device, None, None)
    network = load_teacher(cfg, entry, arrays.num_classes, device)
    shown = digest({"data": sha256, "mean": cfg.dataset.mean, "std": cfg.dataset.std, **teacher_code(cfg)})
    measured = entry.measured.get(shown)
    if measured is None:
        measured = {**evaluate(network, device_data(arrays, cfg, device).test, Precision("fp32", device))}
        store.record_accuracy(entry, measured, shown)
    top1, before = measured["top1"], (entry.test or {}).get("top1")
    if top1 is not None and before is not None and abs(top1 - before) > _AS_GOOD:
        LOG.warning(
            "teacher %s has %.2f %% on the test set of this run and had %.2f %% when it came into the store "
            "(%s): another normalisation (dataset.mean, dataset.std) or image size?",
            entry.name, top1, before, entry.path,
        )  # fmt: skip
    note = {"id": entry.id, "sha256": entry.sha256, "top1": top1}
    return Inputs(arrays, sha256, device, network, note)


def teacher_code(cfg: Settings) -> dict[str, Any]:
    """The code on which a teacher's outputs depend: its own (see `provenance.own_code`), ours, and the libraries'."""
    versions = {}
    for library in ("torchvision", "timm"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[library] = metadata.version(library)
    code = provenance.own_code({"teacher": cfg.teacher.model})
    return {"code": code, "source": provenance.source(_TEACHING), "libraries": versions}


_TEACHING = ("models/*.py", "data/resident.py", "data/views.py", "training/cpu_kernels.py", "teachers/source.py")


def find_teacher(cfg: Settings, trained_by: str = "") -> store.Entry:
    """The stored teacher of a configuration; one that comes with weights is put into the store first.

    Raises EdkdError if there is none, with the state of run `trained_by`, which was to train it, if that is known.
    """
    entry = store.find(teacher_folder(cfg), cfg.dataset.key, cfg.teacher.name)
    if entry is not None:
        return entry
    if cfg.teacher.weights is not None:
        return publish_weights(cfg, teacher_folder(cfg), load_arrays(cfg)[0])
    directory = directory_of(trained_by, cfg) if trained_by else None
    if directory is None:
        raise store.missing(cfg.dataset.key, cfg.teacher.name, teacher_folder(cfg), cfg.teacher_seed)
    state = journal.state(directory)
    became = "failed" if state.status == "failed" else f"is {state.status} after epoch {state.epoch}"
    raise EdkdError(
        f"teacher {cfg.teacher.name} is not in {teacher_folder(cfg)}: its run {directory} {became}; "
        "`edkd retry`, or the same command again, trains it first"
    )


def load_teacher(cfg: Settings, entry: store.Entry, num_classes: int, device: torch.device) -> nn.Module:
    """The verified network of a stored teacher, frozen, on the device. Raises EdkdError if the file does not fit."""
    network = build(cfg.teacher.model, "teacher.model", num_classes=num_classes)
    return to_device(store.load(entry, network), cfg.engine, device)


def teacher_folder(cfg: Settings) -> Path:
    """The teacher store of a configuration."""
    return Path(cfg.output) / "teachers"


def load_arrays(cfg: Settings) -> tuple[Arrays | Streamed, str]:
    """The data set of a configuration and its fingerprint; the last one stays in memory for the next run."""
    parts = {name: getattr(cfg.dataset, name) for name in _PARTS}
    return _load_arrays(json.dumps([cfg.dataset.source, parts], sort_keys=True))


_PARTS = ("train_per_class", "test_per_class", "validation", "validation_seed")


@functools.lru_cache(maxsize=1)
def _load_arrays(asked: str) -> tuple[Arrays | Streamed, str]:
    source, parts = json.loads(asked)
    try:
        arrays = build(source, "dataset.source")
        if not isinstance(arrays, (Arrays, Streamed)):
            raise UnfitError(f"returned {type(arrays).__name__}, expected Arrays or Streamed")
    except UnfitError as error:
        raise EdkdError(f"dataset.source: {source['_target_']}: {error}; see docs/extending.md, Data") from error
    if not isinstance(arrays, Streamed):
        arrays = prepare(arrays, **parts)
    elif any(parts[name] for name in _PARTS[:3]):
        raise EdkdError("train_per_class, test_per_class and validation need data in memory: dataset=folder")
    return arrays, arrays.fingerprint()


def device_data(arrays: Arrays | Streamed, cfg: Settings, device: torch.device) -> Splits:
    """The splits, resident on the device or streamed to it; only training images are augmented.

    Each of several processes holds all training images and uses its part in an epoch; of other splits it holds a part.
    """
    data = cfg.dataset
    shown = {"mean": data.mean, "std": data.std, "device": device, "channels_last": cfg.engine.channels_last}
    strong_view = target(cfg.distiller, "distiller").needs_strong_view
    if isinstance(arrays, Streamed):
        train, test = (
            StreamedData(
                files,
                size=arrays.image_size,
                workers=arrays.workers,
                augmentation=arrays.augmentation,
                flip=data.flip,
                broken=arrays.broken,
                **shown,  # type: ignore[arg-type]
            )
            for files in (arrays.train, arrays.test.take(part(len(arrays.test))))
        )
        return Splits(train, None, test)

    def make(split: Any, padding: int, flip: bool, strong_view: bool = False) -> ResidentData:
        return ResidentData(split, padding=padding, flip=flip, strong_view=strong_view, **shown)  # type: ignore[arg-type]

    def evaluated(split: Split) -> ResidentData:
        own = part(len(split))
        return make(Split(split.images[own], split.labels[own]), 0, False)

    return Splits(
        train=make(arrays.train, data.padding, data.flip, strong_view),
        validation=evaluated(arrays.validation) if arrays.validation is not None else None,
        test=evaluated(arrays.test),
    )

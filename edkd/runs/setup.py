"""What a run needs before its first step: data and teacher, found and verified, and a student with its method."""

import functools
import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import torch
from torch import Tensor, nn

from edkd.config.instantiate import build, target
from edkd.config.job import digest, directory_of, training_run
from edkd.config.schema import Settings
from edkd.data.arrays import Arrays, Split, prepare
from edkd.data.files import Streamed
from edkd.data.resident import ResidentData
from edkd.data.sources import TRAIN_IMAGES
from edkd.data.streaming import StreamedData
from edkd.distillers.base import Distiller, Shapes, Spec
from edkd.errors import EdkdError
from edkd.models.base import Classifier, Prediction
from edkd.rundir import journal
from edkd.runs.pretrained import publish_weights
from edkd.teachers import store
from edkd.teachers.source import Precision
from edkd.training import distributed
from edkd.training.device import compile_network, pick_device, to_device
from edkd.training.distributed import part
from edkd.training.evaluation import evaluate
from edkd.training.step import Trainable
from edkd.training.trainer import Splits, TrainState, seeded

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


def gather(cfg: Settings, teacher_id: str | None) -> Inputs:
    """Read and verify all that a run needs: data, device, teacher."""
    arrays, sha256 = load_arrays(cfg)
    device = pick_device(cfg.engine.device)
    if not cfg.needs_teacher:
        return Inputs(arrays, sha256, device, None, None)
    entry = find_teacher(cfg, trained_by=training_run(teacher_id))
    if teacher_id is not None and entry.id != teacher_id:
        raise EdkdError(
            f"teacher {entry.name} in {entry.path.parent} is {entry.id}, but the run was planned with {teacher_id}: "
            "start the same command again to plan anew"
        )
    network = load_teacher(cfg, entry, arrays.num_classes, device)
    shown = digest({"data": sha256, "mean": cfg.dataset.mean, "std": cfg.dataset.std})
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
        raise store.missing(cfg.dataset.key, cfg.teacher.name, teacher_folder(cfg))
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


def new_state(cfg: Settings, inputs: Inputs) -> TrainState:
    """Student, method and optimiser of a run before its first step.

    Runs of one seed share the student's initial weights; a method's own parameters come from another stream.
    """
    device, precision = inputs.device, Precision(cfg.engine.precision, inputs.device)
    with seeded(cfg.seed, 0, device):
        student = build(cfg.student.model, "student.model", num_classes=inputs.arrays.num_classes)
    with seeded(cfg.seed, -1, device):
        distiller = make_method(cfg, student, inputs.teacher, inputs.arrays)
    student = to_device(student, cfg.engine, device)
    if cfg.engine.compile:
        compile_network(student, device)
    trainable = Trainable(student, distiller.to(device), precision)
    if distributed.size() > 1 and cfg.engine.sync_batch_norm:
        nn.SyncBatchNorm.convert_sync_batchnorm(trainable)
    return TrainState(trainable, _optimizer(cfg, trainable, device))


def _optimizer(cfg: Settings, network: nn.Module, device: torch.device) -> Any:
    return build(
        cfg.optimizer,
        "optimizer",
        params=list(network.parameters()),
        lr=torch.tensor(cfg.schedule.lr, dtype=torch.float32, device=device),
        momentum=cfg.schedule.momentum,
        weight_decay=cfg.schedule.weight_decay,
    )


def make_method(cfg: Settings, student: nn.Module, teacher: nn.Module | None, arrays: Arrays | Streamed) -> Distiller:
    """The method of a run with its modules, made for these two networks."""
    distiller: Distiller = build(cfg.distiller, "distiller")
    if type(distiller).setup is not Distiller.setup:
        size = arrays.image_size
        of_teacher = None if teacher is None else _traits(teacher, size)
        distiller.setup(_spec(_traits(student, size), of_teacher, arrays.num_classes, len(arrays.train)))
    return distiller


class _Traits(NamedTuple):
    """What a method may know of a network."""

    shapes: Shapes
    classifier: Classifier
    norms: tuple[tuple[Tensor, Tensor], ...]


def _spec(student: _Traits, teacher: _Traits | None, num_classes: int, train_images: int) -> Spec:
    """What a method knows when it makes its own modules."""
    if teacher is None:
        return Spec(student.shapes, None, num_classes, train_images)
    return Spec(student.shapes, teacher.shapes, num_classes, train_images, teacher.classifier, teacher.norms)


def _traits(network: nn.Module, size: int) -> _Traits:
    """The shapes of a network's features for one image of this size, its classifier and its stages' batch norms."""
    training = network.training
    image = torch.zeros(1, 3, size, size, device=next(network.parameters()).device)
    with torch.no_grad():
        made: Prediction = network.eval()(image, want_feats=True)
    network.train(training)
    if made.pooled_feat is None or made.last_map is None or made.classifier is None:
        raise EdkdError(
            f"{type(network).__name__} gives no pooled_feat, last_map and classifier with its features, which this "
            "method needs: edkd.models.base.classify makes such a prediction"
        )

    def size_of(feat: Tensor) -> tuple[int, int, int]:
        return feat.shape[1], feat.shape[2], feat.shape[3]

    def kept(tensor: Tensor) -> Tensor:
        return tensor.detach() if tensor.is_meta else tensor.detach().cpu()

    feats, preact_feats = (tuple(map(size_of, each)) for each in (made.feats, made.preact_feats))
    return _Traits(
        Shapes(feats, preact_feats, made.pooled_feat.shape[1], size_of(made.last_map)),
        Classifier(*map(kept, made.classifier)),
        tuple((kept(norm.weight), kept(norm.bias)) for norm in getattr(network, "stage_norms", ())),
    )


def check_method(cfg: Settings) -> None:
    """Raise EdkdError for a method that refuses the networks of a run, before data and teacher are needed.

    Also raised for an optimiser that refuses its values, and a method that needs strong views of streamed images. The
    method's `setup` runs on PyTorch's meta device, where tensors have shapes but no memory. The number of classes is
    not known yet and assumed to be large; so is the number of images if only the files give it.
    """
    method = target(cfg.distiller, "distiller")
    if method.needs_strong_view and get_type_hints(target(cfg.dataset.source, "dataset.source"))["return"] is Streamed:
        raise EdkdError(
            f"distiller={cfg.method} needs strong views, which only data in memory have, not {cfg.dataset.name}"
        )
    _optimizer(cfg, nn.Linear(1, 1), torch.device("cpu"))
    if method.setup is Distiller.setup:
        return
    teacher = cfg.teacher.model if cfg.needs_teacher else None
    # Data sets whose images have another size than CIFAR's give image_size.
    size = cfg.dataset.source.get("image_size", 32)
    refused = _refusal(json.dumps([cfg.distiller, cfg.student.model, teacher, size, _train_images(cfg)]))
    if refused is not None:
        raise EdkdError(f"distiller={cfg.method} on {cfg.pair}: {refused}")


def _train_images(cfg: Settings) -> int:
    """The number of training images by the configuration of a run; off by a few if a share is held out."""
    data = cfg.dataset
    images, classes = TRAIN_IMAGES.get(data.source["_target_"].removeprefix("edkd.data.sources."), (50_000, 100))
    if data.train_per_class is not None:
        images = min(images, data.train_per_class * classes)
    return round(images * (1 - data.validation))


@functools.cache
def _refusal(asked: str) -> str | None:
    method, student, teacher, size, train_images = json.loads(asked)
    try:
        with torch.device("meta"):
            traits = [None if each is None else _traits_on_meta(json.dumps(each), size) for each in (student, teacher)]
            assert traits[0] is not None
            build(method, "distiller").setup(_spec(traits[0], traits[1], 1000, train_images))
    except EdkdError as error:
        return str(error)
    except Exception:  # a user's class that fails on the meta device: its run will report the error
        return None
    return None


@functools.cache
def _traits_on_meta(model: str, size: int) -> _Traits:
    return _traits(build(json.loads(model), "model", num_classes=1000), size)


def weights_size(cfg: Settings) -> int:
    """The bytes of the student's weights; 0 for a user's class that fails on PyTorch's meta device."""
    return _size_on_meta(json.dumps(cfg.student.model))


@functools.cache
def _size_on_meta(model: str) -> int:
    try:
        with torch.device("meta"):
            network = build(json.loads(model), "student.model", num_classes=100)
    except Exception:  # its run will report the error
        return 0
    return sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())


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
    arrays = build(source, "dataset.source")
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
                broken=arrays.broken,
                **shown,  # type: ignore[arg-type]
            )
            for files in (arrays.train, replace(arrays.test, samples=arrays.test.samples[part(len(arrays.test))]))
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

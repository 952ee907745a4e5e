"""The student of a run with its method and optimiser; and whether a method accepts the networks of a run."""

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from edkd.config.instantiate import build, hints_of, target
from edkd.config.job import thaw
from edkd.config.schema import Settings
from edkd.data.arrays import Arrays
from edkd.data.files import Streamed
from edkd.data.sources import TRAIN_IMAGES
from edkd.distillers.base import Distiller, Shapes, Spec
from edkd.errors import EdkdError
from edkd.models.base import Classifier, Prediction
from edkd.rundir import checkpoint
from edkd.rundir.paths import RunDir, checkpoints
from edkd.runs.inputs import Inputs
from edkd.teachers.source import Precision
from edkd.training import distributed
from edkd.training.device import compile_network, to_device
from edkd.training.step import Trainable
from edkd.training.trainer import TrainState, seeded


def new_state(cfg: Settings, inputs: Inputs) -> TrainState:
    """Student, method and optimiser of a run before its first step.

    Runs of one seed share the student's initial weights; a method's own parameters come from another stream.
    """
    device, precision = inputs.device, Precision(cfg.engine.precision, inputs.device)
    with seeded(cfg.seed, 0, device):
        student = build(cfg.student.model, "student.model", num_classes=inputs.arrays.num_classes)
    for network in (student, inputs.teacher):
        if network is not None:
            probe(network, inputs.arrays.image_size, inputs.arrays.num_classes)
    with seeded(cfg.seed, -1, device):
        distiller = make_method(cfg, student, inputs.teacher, inputs.arrays)
    student = to_device(student, cfg.engine, device)
    if cfg.engine.compile:
        compile_network(student, device)
    trainable = Trainable(student, distiller.to(device), precision)
    if distributed.size() > 1 and cfg.engine.sync_batch_norm:
        nn.SyncBatchNorm.convert_sync_batchnorm(trainable)
    return TrainState(trainable, _optimizer(cfg, trainable, device))


def probe(network: nn.Module, size: int, num_classes: int | None = None, *, want_feats: bool = False) -> Prediction:
    """What a network makes of one black image of this size, in evaluation.

    Raises EdkdError if it fails, or returns no Prediction, or logits of other than `num_classes`, if they are known.
    """
    name, training = type(network).__name__, network.training
    image = torch.zeros(1, 3, size, size, device=next(network.parameters()).device)
    try:
        with torch.no_grad():
            made = network.eval()(image, want_feats=want_feats)
    except EdkdError:
        raise
    except Exception as error:  # whatever a user's or a library's network raises
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise EdkdError(
            f"{name} fails on images of {size}x{size}: {reason} (it is called as network(images, want_feats="
            f"{want_feats}); see docs/extending.md)"
        ) from error
    network.train(training)
    if not isinstance(made, Prediction):
        raise EdkdError(
            f"{name} returned {type(made).__name__}; a network returns an edkd.models.Prediction, as "
            "edkd.models.base.classify makes it (docs/extending.md)"
        )
    if num_classes is not None and made.logits.shape != (1, num_classes):
        raise EdkdError(
            f"{name} returned logits of shape {list(made.logits.shape)} for one image of {num_classes} classes; a "
            "network is made for its argument num_classes (docs/extending.md)"
        )
    return made


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
        needed = distiller.needs_feats
        of_teacher = None if teacher is None else _traits(teacher, size, needed)
        distiller.setup(_spec(_traits(student, size, needed), of_teacher, arrays.num_classes, len(arrays.train)))
    return distiller


def load_method(cfg: Settings, file: Path, student: nn.Module, arrays: Arrays | Streamed) -> Distiller | None:
    """The method in a student's weights file, with its weights; None for a student that does not end in one.

    It is the method of `cfg`, else of the run in whose directory the file lies. Raises EdkdError if neither has a
    method that students end in, or if the weights do not fit.
    """
    frozen = RunDir(file.parent).config
    if not checkpoint.ends_in_method(file):
        own = thaw(frozen)[0].settings if file in checkpoints(file.parent) and frozen.exists() else cfg
        if target(own.distiller, "distiller").predict is not Distiller.predict:
            raise EdkdError(
                f"{file}: the student of distiller={own.method} ends in modules of its method, which this file does "
                f"not have under `distiller`: name {RunDir(file.parent).best.name}, which a run writes after an epoch"
            )
        return None
    if target(cfg.distiller, "distiller").predict is Distiller.predict and frozen.exists():
        cfg = thaw(frozen)[0].settings
    if target(cfg.distiller, "distiller").predict is Distiller.predict:
        raise EdkdError(
            f"{file}: the student ends in modules of its method (`distiller` in the file), and lies in no run's "
            "directory: name the method and its teacher, such as distiller=simkd teacher=resnet32x4"
        )
    teacher = build(cfg.teacher.model, "teacher.model", num_classes=arrays.num_classes)  # for its shapes alone
    distiller = make_method(cfg, student, teacher, arrays)
    checkpoint.load_into(distiller, checkpoint.read(file)["distiller"], f"{file} (distiller)")
    return distiller


class _Traits(NamedTuple):
    """What a method may know of a network."""

    shapes: Shapes
    classifier: Classifier | None
    norms: tuple[tuple[Tensor, Tensor], ...]


def _spec(student: _Traits, teacher: _Traits | None, num_classes: int, train_images: int) -> Spec:
    """What a method knows when it makes its own modules."""
    if teacher is None:
        return Spec(student.shapes, None, num_classes, train_images)
    return Spec(student.shapes, teacher.shapes, num_classes, train_images, teacher.classifier, teacher.norms)


def _traits(network: nn.Module, size: int, needed: bool) -> _Traits:
    """The shapes of a network's features for one image of this size, its classifier and its stages' batch norms.

    Raises EdkdError for a network that gives none, if they are `needed`; otherwise such a network has zeros.
    """
    made = probe(network, size, want_feats=True)
    if made.pooled_feat is None or made.last_map is None or made.classifier is None:
        if not needed:
            return _Traits(Shapes((), (), 0, (0, 0, 0)), None, ())
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

    Also raised for a student that fails on one image, for an optimiser that refuses its values, for padding of streamed
    images, and for a method that needs strong views of such images, or without a teacher. The method's `setup` runs on
    PyTorch's meta device, where tensors have shapes but no memory. The number of classes is not known yet and assumed
    to be large; so is the number of images if only the files give it.
    """
    method = target(cfg.distiller, "distiller")
    if method.needs_strong_view and streams(cfg):
        raise EdkdError(
            f"distiller={cfg.method} needs strong views, which only data in memory have, not {cfg.dataset.name}"
        )
    if method.needs_strong_view and not method.needs_teacher:
        raise EdkdError(f"distiller={cfg.method} needs strong views, which only methods with a teacher have")
    if cfg.dataset.padding and streams(cfg):
        raise EdkdError("dataset.padding needs data in memory, as of dataset=folder; streamed images have other crops")
    try:
        _optimizer(cfg, nn.Linear(1, 1), torch.device("cpu"))
    except (ValueError, TypeError) as error:  # of one's own class
        raise EdkdError(f"optimizer: {' '.join(str(error).split())}; see conf/optimizer") from error
    # Data sets whose images have another size than CIFAR's give image_size.
    size = cfg.dataset.source.get("image_size", 32)
    ours = str(cfg.dataset.source["_target_"]).startswith("edkd.data.sources.")  # another's may omit it
    refused = _student_refusal(json.dumps(cfg.student.model), size if ours else None)
    if refused is not None:
        raise EdkdError(f"student={cfg.student.name}: {refused}")
    if method.setup is Distiller.setup:
        return
    teacher = cfg.teacher.model if cfg.needs_teacher else None
    refused = _refusal(json.dumps([cfg.distiller, cfg.student.model, teacher, size, _train_images(cfg)]))
    if refused is not None:
        raise EdkdError(f"distiller={cfg.method} on {cfg.pair}: {refused}")


def streams(cfg: Settings) -> bool:
    """Whether a run's images are streamed, as far as the type hint of its data source says."""
    return hints_of(target(cfg.dataset.source, "dataset.source")).get("return") is Streamed


def _train_images(cfg: Settings) -> int:
    """The number of training images by the configuration of a run; off by a few if a share is held out."""
    data = cfg.dataset
    images, classes = TRAIN_IMAGES.get(data.source["_target_"].removeprefix("edkd.data.sources."), (50_000, 100))
    if data.train_per_class is not None:
        images = min(images, data.train_per_class * classes)
    return round(images * (1 - data.validation))


@functools.cache
def _student_refusal(model: str, size: int | None) -> str | None:
    """Why a network cannot be a student of images of this size; None if it can, as far as can be seen now.

    What fails on PyTorch's meta device, where it costs little, is tried again as a run would do it.
    """
    refused = None
    for device in ("meta", "cpu"):
        try:
            with torch.device(device):
                network = build(json.loads(model), "student.model", num_classes=100)
            if size is not None:
                probe(network, size)
        except Exception as error:
            refused = str(error) if isinstance(error, EdkdError) else f"{type(error).__name__}: {error}"
        else:
            return None
    return refused


@functools.cache
def _refusal(asked: str) -> str | None:
    method, student, teacher, size, train_images = json.loads(asked)
    try:
        with torch.device("meta"):
            distiller = build(method, "distiller")
            of_student = _traits_on_meta(json.dumps(student), size, distiller.needs_feats)
            of_teacher = None if teacher is None else _traits_on_meta(json.dumps(teacher), size, distiller.needs_feats)
            distiller.setup(_spec(of_student, of_teacher, 1000, train_images))
    except EdkdError as error:
        return str(error)
    except Exception:  # a user's class that fails on the meta device: its run will report the error
        return None
    return None


@functools.cache
def _traits_on_meta(model: str, size: int, needed: bool) -> _Traits:
    return _traits(build(json.loads(model), "model", num_classes=1000), size, needed)


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

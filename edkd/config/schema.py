"""The allowed values of a configuration: its groups as typed values, checked together.

Works on the resolved configuration as plain dicts.
"""

import inspect
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from edkd.config.instantiate import check_call, target, typed
from edkd.errors import EdkdError, did_you_mean
from edkd.rundir.paths import NAME

if TYPE_CHECKING:
    from edkd.distillers.base import Distiller

SGD = {"_target_": "edkd.training.optimizers.SGD"}  # the optimiser of runs that name none
Seed = Annotated[int, Field(ge=0, lt=2**32)]


def _check_name(key: str, name: str) -> None:
    """Raise ValueError for a name that is no valid file name, or leads to another folder."""
    if not NAME.fullmatch(name):
        raise ValueError(
            f"{key}={name}: a name has up to 100 letters, digits, '_', '-' and '.', and begins with none of '-', '.'"
        )


@dataclass(frozen=True)
class Dataset:
    """The part of a data set's configuration that is the same for all; its source has arguments of its own."""

    name: str
    source: dict[str, Any]
    mean: list[float]
    std: list[float]
    padding: NonNegativeInt
    flip: bool
    train_per_class: PositiveInt | None
    test_per_class: PositiveInt | None
    validation: Annotated[float, Field(ge=0, lt=1)]
    validation_seed: Seed

    def __post_init__(self) -> None:
        _check_name("name", self.name)
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(f"mean and std need three numbers each, std above 0; got {self.mean} and {self.std}")
        if min(self.mean) < 0 or max(*self.mean, *self.std) > 1:
            raise ValueError(f"mean and std are of pixels between 0 and 1, not 0 and 255; got {self.mean}, {self.std}")

    @property
    def key(self) -> str:
        """The name of the set of training and test images, which separates teachers and runs by their data."""
        key = self.name
        if self.train_per_class is not None:
            key += f"-{self.train_per_class}perclass"
        if self.test_per_class is not None:
            key += f"-test{self.test_per_class}"
        if self.validation:
            key += f"-val{self.validation:g}" + (f"s{self.validation_seed}" if self.validation_seed else "")
        return key


@dataclass(frozen=True)
class Network:
    """A teacher or a student: its name and how it is built."""

    name: str
    model: dict[str, Any]
    weights: str | None = None  # pretrained weights of a teacher: a name in its library, or a file

    def __post_init__(self) -> None:
        _check_name("name", self.name)


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train: SGD with step-wise decay (the recipe is in conf/schedule)."""

    epochs: PositiveInt
    batch_size: PositiveInt
    lr: PositiveFloat
    momentum: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: NonNegativeFloat
    milestones: list[float]  # as given; whole epochs once resolved
    gamma: PositiveFloat
    warmup_epochs: NonNegativeInt

    def __post_init__(self) -> None:
        given = self.milestones
        in_order = all(low < high for low, high in itertools.pairwise(given))
        fractions = all(0 < milestone < 1 for milestone in given)
        if not in_order or not (fractions or all(milestone >= 1 and milestone % 1 == 0 for milestone in given)):
            raise ValueError(
                f"milestones={given}: must be epochs, or fractions of the epochs above 0 and below 1, each above the "
                "one before"
            )
        if fractions:  # with few epochs, two may coincide or fall on the end
            resolved = {round(milestone * self.epochs) for milestone in given} - {0, self.epochs}
        else:
            resolved = {int(milestone) for milestone in given}
        object.__setattr__(self, "milestones", sorted(resolved))

    def rate(self, epoch: int) -> float:
        """Learning rate of an epoch (from 1): `milestones: [150]` makes epoch 151 the first at the lower rate."""
        return self.lr * self.gamma ** sum(epoch > milestone for milestone in self.milestones)


@dataclass(frozen=True)
class Engine:
    """How a run computes. Only the precision, and several devices, belong to its identity (`config.job.identity`)."""

    device: str
    precision: Literal["fp32", "bf16"]
    channels_last: bool
    deterministic: bool
    compile: bool
    capture: bool
    cpu_kernels: bool
    threads: Annotated[int, Field(gt=0, le=1024)] | None
    teacher_cache: bool
    teacher_cache_gb: NonNegativeFloat
    # The defaults are for configurations that were frozen before these keys existed.
    devices: PositiveInt = 1
    sync_batch_norm: bool = False
    checkpoint_every_minutes: PositiveFloat | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise ValueError(f"device={self.device}: allowed: auto, cpu, cuda, cuda:N")


@dataclass(frozen=True)
class Tracking:
    """Where MLflow is; without a URI the journal is the only record until `edkd sync`."""

    uri: str | None
    artifacts: str | None
    experiment: str

    def __post_init__(self) -> None:
        if self.uri is not None and self.uri.startswith("sqlite:") and "?" in self.uri:
            raise ValueError(f"uri={self.uri}: a SQLite file's path may hold no '?'; output=DIR sets another folder")


@dataclass(frozen=True)
class Settings:
    """A whole configuration, typed."""

    seed: Seed
    teacher_seed: Seed
    allow_weak_teacher: bool
    output: str
    dataset: Dataset
    teacher: Network
    student: Network
    distiller: dict[str, Any]
    schedule: Schedule
    optimizer: dict[str, Any]
    engine: Engine
    tracking: Tracking
    teacher_recipe: Literal["any", "warn", "strict"]
    method: str  # the name of the distiller's configuration file

    def __post_init__(self) -> None:
        _check_name("distiller", self.method)
        if not self.output:
            raise ValueError("output is empty: it must name a folder")
        if self.student.weights is not None:
            raise ValueError(f"student.weights={self.student.weights}: students start from fresh weights")

    @property
    def needs_teacher(self) -> bool:
        """Whether the method distils at all."""
        return bool(target(self.distiller, "distiller").needs_teacher)

    @property
    def looks_into_table(self) -> bool:
        """Whether the run reads its teacher's logits from the teacher cache, unless its images are streamed."""
        return self.needs_teacher and self.engine.teacher_cache and not target(self.distiller, "distiller").needs_feats

    @property
    def pair(self) -> str:
        """`teacher-student`; the student's name where it trains alone."""
        return f"{self.teacher.name}-{self.student.name}" if self.needs_teacher else self.student.name


def settings(config: Mapping[str, Any], method: str) -> Settings:
    """Check a resolved configuration and give it types. Raises EdkdError naming the key, the value and what fits."""
    if config.get("pairs") is not None:
        raise EdkdError("several pairs are a sweep: add -m, or name one pair (see conf/pair)")
    values = {name: value for name, value in config.items() if name != "pairs"}
    values |= {
        name: typed(cls, values.get(name), name, others="ignore" if name in _OPEN else "forbid")
        for name, cls in _GROUPS.items()
    }
    values |= {"distiller": _distiller(values.get("distiller")), "optimizer": _optimizer(values.get("optimizer"))}
    trained = target(values["distiller"], "distiller")
    if (reason := misfit_of(values["optimizer"], trained)) is not None:
        raise EdkdError(f"distiller={method} has the losses {', '.join(trained.loss_names)}: {reason}")
    if values["engine"].devices > 1 and not getattr(target(values["optimizer"], "optimizer"), "adds_gradients", False):
        raise EdkdError(
            f"engine.devices={values['engine'].devices}: the optimiser {values['optimizer']['_target_']} does not add "
            "the gradients of several processes (adds_gradients in edkd/training/optimizers.py); use engine.devices=1"
        )
    if values["engine"].devices > values["schedule"].batch_size:
        raise EdkdError(
            f"engine.devices={values['engine'].devices}: each takes a part of a batch, which has "
            f"schedule.batch_size={values['schedule'].batch_size} images"
        )
    check_call(values["dataset"].source, "dataset.source")
    for role in ("teacher", "student"):
        check_call(values[role].model, f"{role}.model", "num_classes")
    return typed(Settings, values, "", method=method)


_GROUPS: dict[str, type] = {
    "dataset": Dataset,
    "teacher": Network,
    "student": Network,
    "schedule": Schedule,
    "engine": Engine,
    "tracking": Tracking,
}
_OPEN = {  # groups that may have further values: those of their source or model, and others that are referred to
    "dataset": ("source", [field.name for field in fields(Dataset)]),
    "teacher": ("model", [field.name for field in fields(Network)]),
    "student": ("model", ["lr", *(field.name for field in fields(Network))]),
}


def refuse_unused(text: str, resolved: Mapping[Any, Any]) -> None:
    """Raise EdkdError for a value of a data set or network that nothing uses, such as a mistyped key.

    text: the configuration with its interpolations, as YAML; resolved: the same without them.
    """
    for group, (inner, own) in _OPEN.items():
        node = resolved.get(group)
        if not (isinstance(node, Mapping) and isinstance(node.get(inner), Mapping)):
            continue  # an error of its own
        allowed = sorted({*own, *node[inner]} - {"_target_"})
        for key in (str(each) for each in node if each not in allowed):
            if not re.search(rf"\${{[^}}]*\b{group}\.{re.escape(key)}\b", text):
                raise EdkdError(
                    f"{group}.{key}: nothing uses such a value{did_you_mean(key, allowed)}; "
                    f"allowed: {', '.join(allowed)}"
                )


LABELS = ("title", "family", "year")
"""Keys of a method's YAML file that only tables use; neither the method nor a run's identity has them."""


def _distiller(node: Any) -> dict[str, Any]:
    """The checked node of a method. The method is constructed to see whether it refuses one of the values."""
    from edkd.distillers.base import Distiller  # loads torch, which help and completion do not need

    method = target(node, "distiller")
    if not (inspect.isclass(method) and issubclass(method, Distiller)):
        raise EdkdError(f"distiller._target_: {node['_target_']} is no subclass of edkd.distillers.Distiller")
    values = check_call({name: value for name, value in node.items() if name not in LABELS}, "distiller")
    try:
        method(**values)
    except EdkdError:
        raise
    except Exception as error:  # of one's own class
        kind = "" if isinstance(error, (ValueError, TypeError)) else f"{type(error).__name__}: "
        raise EdkdError(f"distiller: {kind}{' '.join(str(error).split())}; see conf/distiller") from error
    return {"_target_": node["_target_"], **values}


def _optimizer(node: Any) -> dict[str, Any]:
    """The optimiser's node, checked against its signature; the run gives parameters, rate, momentum and decay."""
    from torch.optim import Optimizer  # takes seconds, which help and completion do not have

    given = ("params", "lr", "momentum", "weight_decay")
    found = target(node, "optimizer")
    parameters = inspect.signature(found).parameters
    takes = {*given} <= {*parameters} or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if not (takes and inspect.isclass(found) and issubclass(found, Optimizer) and hasattr(found, "minimise")):
        raise EdkdError(
            f"optimizer._target_: {node['_target_']} must be a subclass of torch.optim.Optimizer with a method "
            f"minimise(losses) and the arguments {', '.join(given)} (docs/extending.md)"
        )
    return {**check_call(node, "optimizer", *given), "_target_": node["_target_"]}


def misfit_of(optimizer: Mapping[str, Any], method: "type[Distiller]") -> str | None:
    """Why an optimiser cannot serve a method's losses; None if it can, or if it declares no `misfit`."""
    declared = getattr(target(optimizer, "optimizer"), "misfit", None)
    return None if declared is None else declared(method)

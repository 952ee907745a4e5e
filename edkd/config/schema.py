"""What a composed configuration means: what it may say, with which types, and its identity.

Works on the resolved configuration as plain dicts, so it serves the composition root, the sweep and their tests alike.
"""

import hashlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from edkd.config.instantiate import STRICT, check_call, target, typed
from edkd.distillers.base import Distiller
from edkd.errors import EdkdError

SGD = {"_target_": "edkd.training.optimizers.SGD"}  # the optimiser of runs that name none
PositiveInt = Annotated[int, Field(gt=0)]
NaturalInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NaturalFloat = Annotated[float, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
_OPEN = STRICT | {"extra": "ignore"}  # the group has values for other groups to refer to


def folder() -> Path:
    """Where the configuration groups are: beside the package in a checkout, inside it when installed as a wheel."""
    package = Path(__file__).parents[1]
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


@dataclass(frozen=True, config=_OPEN)
class Dataset:
    """The part of a data set's configuration that is the same for all; its source has arguments of its own."""

    name: str
    source: dict[str, Any]
    mean: list[float]
    std: list[float]
    padding: NaturalInt
    flip: bool
    train_per_class: PositiveInt | None
    test_per_class: PositiveInt | None
    validation: Annotated[float, Field(ge=0, lt=1)]
    validation_seed: int

    def __post_init__(self) -> None:
        if not self.name or set(self.name) - set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-."):
            raise ValueError(f"name must consist of letters, digits, '-', '_' and '.', not {self.name!r}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(f"mean and std need three numbers each, std above 0; got {self.mean} and {self.std}")

    @property
    def key(self) -> str:
        """Names the images that are trained and tested on: teachers and runs are kept apart by it."""
        key = self.name
        if self.train_per_class is not None:
            key += f"-{self.train_per_class}perclass"
        if self.test_per_class is not None:
            key += f"-test{self.test_per_class}"
        if self.validation:
            key += f"-val{self.validation:g}" + (f"s{self.validation_seed}" if self.validation_seed else "")
        return key


@dataclass(frozen=True, config=_OPEN)
class Network:
    """A teacher or a student: its name and how it is built."""

    name: str
    model: dict[str, Any]


@dataclass(frozen=True, config=STRICT)
class Schedule:
    """How long and how fast to train: SGD with step-wise decay (the recipe is in conf/schedule)."""

    epochs: PositiveInt
    batch_size: PositiveInt
    lr: PositiveFloat
    momentum: NaturalFloat
    weight_decay: NaturalFloat
    milestones: list[int]
    gamma: PositiveFloat
    warmup_epochs: NaturalInt

    def rate(self, epoch: int) -> float:
        """Learning rate of an epoch (from 1): `milestones: [150]` makes epoch 151 the first at the lower rate."""
        return self.lr * self.gamma ** sum(epoch > milestone for milestone in self.milestones)


@dataclass(frozen=True, config=STRICT)
class Engine:
    """How a run computes. Only the precision belongs to its identity."""

    device: str
    precision: Literal["fp32", "bf16"]
    channels_last: bool
    deterministic: bool
    compile: bool
    capture: bool
    cpu_kernels: bool
    threads: PositiveInt | None
    teacher_cache: bool
    teacher_cache_gb: NaturalFloat


@dataclass(frozen=True, config=STRICT)
class Tracking:
    """Where MLflow is; without a URI the journal is the only record until `edkd sync`."""

    uri: str | None
    artifacts: str | None
    experiment: str

    def __post_init__(self) -> None:
        if self.uri is not None and self.uri.startswith("sqlite:") and "?" in self.uri:
            raise ValueError(f"uri={self.uri}: a SQLite file's path may hold no '?'; output=DIR sets another folder")


@dataclass(frozen=True, config=STRICT)
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
    method: str  # the name of the distiller's configuration file

    def __post_init__(self) -> None:
        if not self.output:
            raise ValueError("output is empty: it must name a folder")

    @property
    def needs_teacher(self) -> bool:
        """Whether the method distils at all."""
        return bool(target(self.distiller, "distiller").needs_teacher)

    @property
    def pair(self) -> str:
        """`teacher-student`; the student's name where it trains alone."""
        return f"{self.teacher.name}-{self.student.name}" if self.needs_teacher else self.student.name


def settings(config: Mapping[str, Any], method: str) -> Settings:
    """Check a resolved configuration and give it types. Raises EdkdError naming the key, the value and what fits."""
    if config.get("pairs") is not None:
        raise EdkdError("several pairs are a sweep: add -m, or name one pair (see conf/pair)")
    known = {field.name for field in fields(Settings)} - {"method"}
    values = {name: value for name, value in config.items() if name != "pairs"}
    if surplus := sorted(set(values) - known):
        raise EdkdError(f"{surplus[0]}: not a key of the configuration; allowed: {', '.join(sorted(known))}")
    parts: dict[str, Any] = {name: typed(cls, values[name], name) for name, cls in _PARTS.items() if name in values}
    if "distiller" in values:
        parts["distiller"] = _distiller(values["distiller"])
    if "optimizer" in values:
        parts["optimizer"] = _optimizer(values["optimizer"])
    cfg = typed(Settings, {**values, **parts, "method": method}, "")
    check_call(cfg.dataset.source, "dataset.source", {})
    for role, network in {"teacher": cfg.teacher, "student": cfg.student}.items():
        check_call(network.model, f"{role}.model", {"num_classes": 2})
    return cfg


_PARTS: dict[str, type] = {
    "dataset": Dataset,
    "teacher": Network,
    "student": Network,
    "schedule": Schedule,
    "engine": Engine,
    "tracking": Tracking,
}
_accepted: set[tuple[type, str]] = set()  # methods, and values that they have accepted


LABELS = ("title", "family", "year")
"""What a method's YAML file says for tables, of which nothing enters the method or the identity of a run."""


def _distiller(node: Mapping[str, Any]) -> dict[str, Any]:
    """The checked node of a method, which is constructed once with these values, for it may refuse one."""
    method = target(node, "distiller")
    if not (inspect.isclass(method) and issubclass(method, Distiller)):
        raise EdkdError(f"distiller._target_: {node['_target_']} is no subclass of edkd.distillers.Distiller")
    values = check_call({name: value for name, value in node.items() if name not in LABELS}, "distiller", {})
    content = method, json.dumps(values, sort_keys=True)
    if content not in _accepted:
        try:
            method(**values)
        except (ValueError, TypeError) as error:
            raise EdkdError(f"distiller: {' '.join(str(error).split())}; see conf/distiller") from error
        _accepted.add(content)
    return {"_target_": node["_target_"], **values}


def identity(cfg: Settings, teacher_id: str | None) -> dict[str, Any]:
    """All that can change a run's result, and nothing else: no paths, no tracking, no launcher, no device.

    `teacher_id` says which weights teach: the hash of the run that trained them, or of the file they came from.
    """
    dataset = {field.name: getattr(cfg.dataset, field.name) for field in fields(Dataset)}
    dataset["source"] = {k: v for k, v in cfg.dataset.source.items() if k not in ("root", "download", "workers")}
    teacher = None
    if cfg.needs_teacher:
        teacher = {"name": cfg.teacher.name, "model": cfg.teacher.model, "id": teacher_id}
    identified = {
        "seed": cfg.seed,
        "dataset": dataset,
        "teacher": teacher,
        "student": {"name": cfg.student.name, "model": cfg.student.model},
        "distiller": {"method": cfg.method, **cfg.distiller},
        "schedule": {field.name: getattr(cfg.schedule, field.name) for field in fields(Schedule)},
        "precision": cfg.engine.precision,
    }
    return identified if cfg.optimizer == SGD else {**identified, "optimizer": cfg.optimizer}


def _optimizer(node: Any) -> dict[str, Any]:
    """The optimiser's node, checked against its signature; the run gives parameters, rate, momentum and decay."""
    if not isinstance(node, Mapping):
        raise EdkdError(f"optimizer={node!r}: must be an option of conf/optimizer, such as sgd")
    given = dict.fromkeys(("params", "lr", "momentum", "weight_decay"))
    return {"_target_": node["_target_"], **check_call(node, "optimizer", given)}


def digest(value: Any) -> str:
    """16 hexadecimal digits that name a value made of dicts, lists and scalars."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def recipe(identified: Mapping[str, Any]) -> str:
    """Names what one table must have in common: data, schedule without its learning rate, precision."""
    schedule = {name: value for name, value in identified["schedule"].items() if name != "lr"}
    common = digest([identified["dataset"], schedule, identified["precision"]])[:8]
    return f"{schedule['epochs']}ep-b{schedule['batch_size']}-{identified['precision']}-{common}"


def cell(identified: Mapping[str, Any]) -> str:
    """Names what the runs of one table cell must have in common: everything but the seed."""
    return digest({name: value for name, value in identified.items() if name != "seed"})

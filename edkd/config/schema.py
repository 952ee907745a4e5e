"""What a composed configuration means: what it may say, with which types, and its identity.

Works on the resolved configuration as plain dicts, so it serves the composition root, the sweep and their tests alike.
"""

import hashlib
import inspect
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from edkd.config.instantiate import build, check_call, convert, target, typed
from edkd.distillers.base import Distiller
from edkd.errors import EdkdError

SGD = {"_target_": "edkd.training.optimizers.SGD"}  # the optimiser of runs that name none


def folder() -> Path:
    """Where the configuration groups are: beside the package in a checkout, inside it when installed as a wheel."""
    package = Path(__file__).parents[1]
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


@dataclass(frozen=True)
class Dataset:
    """The part of a data set's configuration that is the same for all; its source has arguments of its own."""

    name: str
    source: dict[str, Any]
    mean: list[float]
    std: list[float]
    padding: int
    flip: bool
    train_per_class: int | None
    test_per_class: int | None
    validation: float
    validation_seed: int

    def __post_init__(self) -> None:
        if not self.name or set(self.name) - set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-."):
            raise ValueError(f"name must consist of letters, digits, '-', '_' and '.', not {self.name!r}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(f"mean and std need three numbers each, std above 0; got {self.mean} and {self.std}")
        if not 0 <= self.validation < 1:
            raise ValueError(f"validation must be at least 0 and below 1, not {self.validation}")
        for name, count in {"train_per_class": self.train_per_class, "test_per_class": self.test_per_class}.items():
            if count is not None and count < 1:
                raise ValueError(f"{name} must be 1 or more, or null for all, not {count}")
        if self.padding < 0:
            raise ValueError(f"padding must be 0 or more, not {self.padding}")

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


@dataclass(frozen=True)
class Network:
    """A teacher or a student: its name and how it is built."""

    name: str
    model: dict[str, Any]


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train: SGD with step-wise decay (the recipe is in conf/schedule)."""

    epochs: int
    batch_size: int
    lr: float
    momentum: float
    weight_decay: float
    milestones: list[int]
    gamma: float
    warmup_epochs: int

    def __post_init__(self) -> None:
        positive = {"epochs": self.epochs, "batch_size": self.batch_size, "lr": self.lr, "gamma": self.gamma}
        for name, value in positive.items():
            if not value > 0 or math.isinf(value):
                raise ValueError(f"{name} must be above 0, not {value}")
        for name, value in {"momentum": self.momentum, "weight_decay": self.weight_decay}.items():
            if not value >= 0:
                raise ValueError(f"{name} must be 0 or more, not {value}")
        if self.warmup_epochs < 0:
            raise ValueError(f"warmup_epochs must be 0 or more, not {self.warmup_epochs}")

    def rate(self, epoch: int) -> float:
        """Learning rate of an epoch (from 1): `milestones: [150]` makes epoch 151 the first at the lower rate."""
        return self.lr * self.gamma ** sum(epoch > milestone for milestone in self.milestones)


@dataclass(frozen=True)
class Engine:
    """How a run computes. Only the precision belongs to its identity."""

    device: str
    precision: Literal["fp32", "bf16"]
    channels_last: bool
    deterministic: bool
    compile: bool
    capture: bool
    cpu_kernels: bool
    threads: int | None
    teacher_cache: bool
    teacher_cache_gb: float

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be 1 or more, or null for all cores, not {self.threads}")
        if not self.teacher_cache_gb >= 0:
            raise ValueError(f"teacher_cache_gb must be 0 or more, not {self.teacher_cache_gb}")


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

    seed: int
    teacher_seed: int
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
    if surplus := sorted(set(config) - known - {"pairs"}):
        raise EdkdError(f"{surplus[0]}: not a key of the configuration; allowed: {', '.join(sorted(known))}")
    if absent := sorted(known - set(config)):
        raise EdkdError(f"{absent[0]} is missing from the configuration; see conf/config.yaml")
    dataset = typed(Dataset, config["dataset"], "dataset", surplus=True)
    check_call(dataset.source, "dataset.source", {})
    networks = {}
    for role in ("teacher", "student"):
        networks[role] = typed(Network, config[role], role, surplus=True)
        check_call(networks[role].model, f"{role}.model", {"num_classes": 2})
    method_class = target(config["distiller"], "distiller")
    if not (inspect.isclass(method_class) and issubclass(method_class, Distiller)):
        raise EdkdError(
            f"distiller._target_: {config['distiller']['_target_']} is no subclass of edkd.distillers.Distiller"
        )
    distiller = {"_target_": config["distiller"]["_target_"], **check_call(config["distiller"], "distiller", {})}
    try:
        build(distiller, "distiller")  # a value that the method refuses is told now, not when its run starts
    except (ValueError, TypeError) as error:
        raise EdkdError(f"distiller: {' '.join(str(error).split())}; see conf/distiller") from error
    return Settings(
        seed=_natural(config["seed"], "seed"),
        teacher_seed=_natural(config["teacher_seed"], "teacher_seed"),
        allow_weak_teacher=convert(config["allow_weak_teacher"], bool, "allow_weak_teacher"),
        output=_text(config["output"], "output"),
        dataset=dataset,
        teacher=networks["teacher"],
        student=networks["student"],
        distiller=distiller,
        schedule=typed(Schedule, config["schedule"], "schedule"),
        optimizer=_optimizer(config["optimizer"]),
        engine=typed(Engine, config["engine"], "engine"),
        tracking=typed(Tracking, config["tracking"], "tracking"),
        method=method,
    )


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


def _text(value: Any, where: str) -> str:
    text: str = convert(value, str, where)
    if not text:
        raise EdkdError(f"{where} is empty: it must name a folder")
    return text


def _natural(value: Any, where: str) -> int:
    number: int = convert(value, int, where)
    if not 0 <= number < 2**32:
        raise EdkdError(f"{where}={number}: must be 0 or more, and below 2^32")
    return number

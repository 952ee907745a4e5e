"""What a composed configuration means: its types checked, its objects built, its identity.

Works on the resolved configuration as plain dicts, so it serves the composition root, the sweep and their tests alike.
Every value that goes into a constructor is checked against that constructor's type hints, whoever wrote it: a method
added by a user gets the same errors as ours.
"""

import functools
import hashlib
import importlib
import inspect
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

from edkd.distillers.base import Distiller
from edkd.errors import EdkdError
from edkd.trainer import Schedule

T = TypeVar("T")


def folder() -> Path:
    """Where the configuration groups are: beside the package in a checkout, inside it when installed as a wheel."""
    package = Path(__file__).parent
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
        raise EdkdError("pair=all is a sweep of seven pairs: add -m, or name one pair (see conf/pair)")
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
        engine=typed(Engine, config["engine"], "engine"),
        tracking=typed(Tracking, config["tracking"], "tracking"),
        method=method,
    )


def identity(given: Settings, teacher_id: str | None) -> dict[str, Any]:
    """All that can change a run's result, and nothing else: no paths, no tracking, no launcher, no device.

    `teacher_id` says which weights teach: the hash of the run that trained them, or of the file they came from.
    """
    dataset = {field.name: getattr(given.dataset, field.name) for field in fields(Dataset)}
    dataset["source"] = {k: v for k, v in given.dataset.source.items() if k not in ("root", "download")}
    teacher = None
    if given.needs_teacher:
        teacher = {"name": given.teacher.name, "model": given.teacher.model, "id": teacher_id}
    return {
        "seed": given.seed,
        "dataset": dataset,
        "teacher": teacher,
        "student": {"name": given.student.name, "model": given.student.model},
        "distiller": {"method": given.method, **given.distiller},
        "schedule": {field.name: getattr(given.schedule, field.name) for field in fields(Schedule)},
        "precision": given.engine.precision,
    }


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


def target(node: Mapping[str, Any], where: str) -> Any:
    """The class or function that a node's `_target_` names. Raises EdkdError if there is none."""
    path = node.get("_target_") if isinstance(node, Mapping) else None
    if not isinstance(path, str) or "." not in path:
        raise EdkdError(f"{where}._target_ must be the dotted path of a class or function, not {path!r}")
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise EdkdError(f"{where}._target_: cannot import {path}: {error}; is it on PYTHONPATH?") from error
    if not callable(found):
        raise EdkdError(f"{where}._target_: {path} is no class or function")
    return found


def build(node: Mapping[str, Any], where: str, **extra: Any) -> Any:
    """Call a node's `_target_` with its checked values and `extra`."""
    return target(node, where)(**check_call(node, where, extra), **extra)


def check_call(node: Mapping[str, Any], where: str, extra: Mapping[str, Any]) -> dict[str, Any]:
    """A node's values, converted to what its `_target_` declares; `extra` are arguments that the code gives itself."""
    found = target(node, where)
    given = {name: value for name, value in node.items() if name != "_target_"}
    hints, parameters = _declared(found)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    allowed = [name for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    for name in given:
        if name in extra or (name not in allowed and not open_ended):
            valid = ", ".join(n for n in allowed if n not in extra) or "none"
            raise EdkdError(f"{where}.{name}: {node['_target_']} takes no such value; allowed: {valid}")
    for name in allowed:
        if name not in given and name not in extra and parameters[name].default is inspect.Parameter.empty:
            raise EdkdError(f"{where}.{name} is missing: {node['_target_']} needs it")
    return {name: convert(value, hints.get(name, Any), f"{where}.{name}") for name, value in given.items()}


@functools.cache
def _declared(found: Any) -> tuple[dict[str, Any], Mapping[str, inspect.Parameter]]:
    """The type hints and the parameters of a class or function."""
    return _hints(found.__init__ if inspect.isclass(found) else found), inspect.signature(found).parameters


@functools.cache
def _hints(found: Any) -> dict[str, Any]:
    return typing.get_type_hints(found)


def typed(cls: type[T], values: Any, where: str, *, surplus: bool = False) -> T:
    """Make a dataclass of a node, each value checked; with `surplus`, keys that it does not declare are left out."""
    if not isinstance(values, Mapping):
        raise EdkdError(f"{where} must be a group of values, not {values!r}; see conf/{where}")
    hints = _hints(cls)  # type: ignore[arg-type]
    declared = {field.name: field for field in fields(cls)}  # type: ignore[arg-type]
    if not surplus and (unknown := sorted(set(values) - set(declared))):
        raise EdkdError(f"{where}.{unknown[0]}: no such value; allowed: {', '.join(declared)}")
    for name, field in declared.items():
        if name not in values and field.default is MISSING:
            raise EdkdError(f"{where}.{name} is missing; see conf/{where}")
    made = {name: convert(values[name], hints[name], f"{where}.{name}") for name in declared if name in values}
    try:
        return cls(**made)
    except ValueError as error:
        raise EdkdError(f"{where}.{error}; see conf/{where}") from error


def convert(value: Any, hint: Any, where: str) -> Any:
    """`value` as the type that `hint` names (an int passes for a float). Raises EdkdError naming `where`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or isinstance(hint, TypeVar):
        return value
    if value == "???":
        raise EdkdError(f"{where} has no value yet: set {where}=…")
    if origin in (typing.Union, types.UnionType):
        for option in arguments:
            try:
                return convert(value, option, where)
            except EdkdError:
                continue
    elif origin is Literal:
        for option in arguments:
            if type(option) is type(value) and option == value:  # True is no 1
                return option
        raise EdkdError(f"{where}={value}: must be one of {', '.join(map(str, arguments))}")
    elif origin in (list, tuple, Sequence) and arguments:
        if isinstance(value, list | tuple):
            items = [convert(item, arguments[0], f"{where}[{i}]") for i, item in enumerate(value)]
            return tuple(items) if origin is tuple else items
    elif origin is dict or hint is dict:
        if isinstance(value, Mapping):
            return dict(value)
    elif hint is type(None):
        if value is None:
            return None
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if math.isnan(value):
            raise EdkdError(f"{where}={value}: must be a number")
        return float(value)
    elif inspect.isclass(hint) and isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise EdkdError(f"{where}={value}: must be {_words(hint)}")


def _words(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_words(option) for option in arguments)
    if origin in (list, tuple) and arguments:
        return f"a list, each of it {_words(arguments[0])}"
    return names.get(hint) or str(getattr(hint, "__name__", hint))


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

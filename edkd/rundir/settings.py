"""The parameters in which configurations of runs differ, as tables and lists show them: `temperature=2`."""

from collections.abc import Hashable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import yaml

from edkd import CONF

# Parameters that change no result: where and how a run was made, and what its method is called.
_INCIDENTAL = (
    *("engine.", "tracking.", "output", "seed", "dataset.root", "dataset.download", "dataset.workers"),
    *("dataset.source.", "distiller.title", "distiller.family", "distiller.year"),
)
DEVICES = ("engine.devices", "engine.sync_batch_norm")  # these do: each process sees a part of a batch
_SHOWN = ("distiller.", "optimizer.", "schedule.", "dataset.", "student.model.")
_TARGET = "._target_"
_Run = TypeVar("_Run", bound=Hashable)


class Setting(NamedTuple):
    """A parameter and its value: `temperature`, `2`. Values of a parameter sort by size, texts after numbers."""

    name: str
    size: float
    value: str

    def __str__(self) -> str:
        return f"{self.name}={self.value}"


def setting(name: str, value: str) -> Setting:
    """The setting of a parameter, named by the last part of its dotted name; a class `….model._target_` as `model`."""
    if name.endswith(_TARGET):
        return Setting(name.removesuffix(_TARGET).split(".")[-1], float("inf"), value.split(".")[-1])
    short = name.split(".")[-1]
    try:
        return Setting(short, float(value), f"{float(value):g}")
    except ValueError:
        return Setting(short, float("inf"), value)


def leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a nested configuration by their dotted names."""
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def dataset_overrides(params: Mapping[str, str]) -> list[str]:
    """The overrides that choose the data set of a run, which is given by its parameters.

    They name its source, which has an option of that name, and the values that are not the option's. There are none for
    a data set of the user's own, whose option nothing records.
    """
    source = params.get("dataset.source._target_", "")
    name = source.rsplit(".", 1)[-1]
    path = CONF / "dataset" / f"{name}.yaml"
    usual = yaml.safe_load(path.read_bytes()) if path.is_file() else {}
    if usual.get("source", {}).get("_target_") != source:
        return []
    words = [f"dataset={name}"]
    parts = ("train_per_class", "test_per_class", "validation", "validation_seed")
    for key in ("name", "root", "image_size", "mean", "std", *parts, "padding", "flip"):
        value, default = params.get(f"dataset.{key}"), str(usual.get(key))
        where = key == "root" and default != "???"  # where it lies on this machine
        if value is not None and key in usual and value != default and "$" not in default and not where:
            words.append(f"dataset.{key}={value.replace(', ', ',')}")
    return words


def without_swapped(names: list[str], params: list[Mapping[str, str]]) -> list[str]:
    """`names` without the arguments of a differing class that some runs lack: the name of the class is enough."""
    swapped = tuple(name.removesuffix(_TARGET) for name in names if name.endswith(_TARGET))
    return [name for name in names if not (name.startswith(swapped) and any(name not in each for each in params))]


def labels(runs: Mapping[_Run, tuple[Hashable, Mapping[str, Any]]]) -> dict[_Run, str]:
    """For each run, the settings that distinguish it from others of its group, such as "temperature=2"; may be empty.

    A run is given by its group, such as its pair and method, and its configuration.
    """
    groups: dict[Hashable, dict[_Run, Mapping[str, str]]] = {}
    for run, (group, config) in runs.items():
        shown = {name: str(value) for name, value in leaves(config) if _is_shown(name)}
        groups.setdefault(group, {})[run] = of_devices(shown)
    found = {}
    for members in groups.values():
        params = list(members.values())
        names = sorted({name for each in params for name in each})
        varied = without_swapped([name for name in names if len({each.get(name) for each in params}) > 1], params)
        for run, each in members.items():
            found[run] = " ".join(str(setting(name, each[name])) for name in varied if name in each)
    return found


def of_devices(params: Mapping[str, str]) -> Mapping[str, str]:
    """The parameters without those of `DEVICES` that are usual, as older runs lack them, and that have no effect."""
    alone = params.get("engine.devices", "1") == "1"
    return {n: value for n, value in params.items() if not (n in DEVICES and (alone or value == "False"))}


def is_incidental(name: str) -> bool:
    """Whether a parameter, given by its dotted name, changes no result."""
    return name.startswith(_INCIDENTAL) and name not in DEVICES


def _is_shown(name: str) -> bool:
    return (name.startswith(_SHOWN) and not is_incidental(name)) or name in ("engine.precision", *DEVICES)

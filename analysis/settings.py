"""Which row and column of the table a run belongs to, where the runs of one method have several configurations."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import pandas as pd
import yaml

from edkd import CONF
from edkd.errors import EdkdError
from edkd.rundir.settings import DEVICES, Setting, is_incidental, leaves, of_devices, setting, without_swapped

METHOD, PAIR = ("method", "distiller"), ("pair",)  # names of the plain row and column, without parameters
_OPTIMIZER, _SGD = "optimizer", "edkd.training.optimizers.SGD"
_HYPER_PARAMETERS = ("distiller.", "optimizer.", "schedule.", *DEVICES)


def place(runs: pd.DataFrame, *, rows: Sequence[str] | None, columns: Sequence[str]) -> pd.DataFrame:
    """The runs with their row as `method` and their column as `pair`: "kd temperature=2", "vgg13-vgg8 beta=4".

    `rows` and `columns` are names of parameters such as distiller.temperature. By default, `rows` are the parameters of
    distiller, optimizer, schedule and devices in which the runs of one method on one pair differ. The settings are also
    in the columns `row` and `column`; the column `changed` has what `changed` returns. A run that lacks a parameter has
    no setting of it, and a student alone has no setting of `columns`. Raises EdkdError for a parameter that no run has.
    """
    runs = runs.assign(params=pd.Series(map(of_devices, runs["params"]), runs.index, dtype=object))
    rows = None if rows is None else [name for name in rows if name not in METHOD]
    columns = [name for name in columns if name not in PAIR]
    names = {name for params in runs["params"] for name in params if _is_hyper_parameter(name)}
    for option, wanted, always in (("--rows", rows or (), METHOD), ("--columns", columns, PAIR)):
        absent = [name for name in wanted if name not in names]
        if absent:
            known = ", ".join([*always, *sorted(names)])
            raise EdkdError(f"{option} names {absent[0]!r}, which is no parameter of the runs here; there are: {known}")
    by_method = {
        str(method): [name for name in _varied(group) if name not in columns] if rows is None else rows
        for method, group in runs.groupby("distiller")
    }
    row = [_settings(params, by_method[method]) for method, params in zip(runs["distiller"], runs["params"])]
    column = [() if alone else _settings(params, columns) for alone, params in zip(runs["alone"], runs["params"])]
    keys = zip(runs["distiller"], runs["pair"], runs["dataset"], runs["params"])
    return runs.assign(
        changed=pd.Series([changed(*key) for key in keys], runs.index, dtype=object),
        row=pd.Series(row, runs.index, dtype=object),
        column=pd.Series(column, runs.index, dtype=object),
        method=[" ".join(map(str, (method, *found))) for method, found in zip(runs["distiller"], row)],
        pair=[" ".join(map(str, (pair, *found))) for pair, found in zip(runs["pair"], column)],
    )


def changed(method: str, pair: str, dataset: str, params: Mapping[str, str]) -> tuple[str, ...]:
    """Overrides for the values of a run's method and its optimiser that are not those of conf/, which has the defaults.

    A method without a file there has no such values.
    """
    kind = dataset.split("-")[0]
    optimizer = params.get("optimizer._target_", _SGD).rsplit(".", 1)[-1].lower()
    usual, usual_optimizer = _of_conf(method, pair, kind, optimizer)
    found = []
    for name, value in sorted(params.items()) if usual else ():
        if name.startswith(("distiller.", "optimizer.")) and name != "optimizer._target_" and not is_incidental(name):
            if name not in usual:
                found.append(f"++{name}={value}")
                continue
            default = usual[name]
            if default.startswith("${"):  # a value of the schedule
                default = params.get(default[2:-1], value)
            if setting(name, value) != setting(name, default):
                found.append(f"{name}={value}".replace(", ", ","))
    return (*found, *([f"optimizer={optimizer}"] if usual and optimizer != usual_optimizer else []))


@cache
def _of_conf(method: str, pair: str, dataset: str, optimizer: str) -> tuple[dict[str, str], str]:
    """The values of a method and of an optimiser in conf/, with those for the pair and the data set, as parameters of a
    run, and the name of the method's usual optimiser.
    """
    values = _in_file("distiller", method)
    if not values:
        return {}, ""
    usual_optimizer = values.pop(_OPTIMIZER)
    values |= _in_file(f"tweak/{method}", dataset) | _in_file(f"tweak/{method}", pair)
    of_optimizer = _in_file("optimizer", optimizer) | _in_file(f"tweak/{method}/{optimizer}", pair)
    both = {"distiller": values, _OPTIMIZER: of_optimizer}
    return {name: str(value) for name, value in leaves(both)}, usual_optimizer


def _in_file(group: str, option: str) -> dict[str, Any]:
    """The values of an option of conf/ with those of the options that it begins with; empty if there is none."""
    path = CONF / group / f"{option}.yaml"
    values: dict[str, Any] = (yaml.safe_load(path.read_bytes()) or {}) if path.is_file() else {}
    found: dict[str, Any] = {_OPTIMIZER: "sgd"} if group == "distiller" and values else {}
    for each in values.pop("defaults", ()):
        if isinstance(each, dict):
            for chosen, name in each.items():
                if _OPTIMIZER in chosen:
                    found[_OPTIMIZER] = name
        elif each != "_self_":
            found |= _in_file(group, each)
    return found | values


def differing(group: pd.DataFrame) -> list[str]:
    """Names of the parameters that differ between the cells of a group but not within any cell."""
    if group["cell"].nunique() == 1:
        return []
    by_cell = [list(params) for _, params in group.groupby("cell", sort=False)["params"]]
    names = sorted({n for cell in by_cell for params in cell for n in params if not is_incidental(n)})
    values = {name: [{params.get(name) for params in cell} for cell in by_cell] for name in names}
    return [name for name, v in values.items() if all(len(s) == 1 for s in v) and len(set.union(*v)) > 1]


def _is_hyper_parameter(name: str) -> bool:
    return name.startswith(_HYPER_PARAMETERS) and not is_incidental(name)


def _varied(runs: pd.DataFrame) -> list[str]:
    """The hyper-parameters in which the runs of one method differ on any pair."""
    names = sorted({name for _, group in runs.groupby("pair") for name in differing(group)})
    return without_swapped([name for name in names if _is_hyper_parameter(name)], list(runs["params"]))


def _settings(params: Mapping[str, str], names: Sequence[str]) -> tuple[Setting, ...]:
    return tuple(setting(name, params[name]) for name in names if name in params)

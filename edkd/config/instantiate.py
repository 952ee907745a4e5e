"""From a node of the configuration to a typed value or an object.

Every value that goes into a constructor is checked against that constructor's type hints, whoever wrote it: a method
added by a user gets the same errors as ours. `where` is the dotted key of a node, which every error begins with.
"""

import functools
import importlib
import inspect
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any, Literal, TypeVar

from edkd.errors import EdkdError

T = TypeVar("T")


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
    cfg = {name: value for name, value in node.items() if name != "_target_"}
    hints, parameters = _declared(found)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    allowed = [name for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    for name in cfg:
        if name in extra or (name not in allowed and not open_ended):
            valid = ", ".join(n for n in allowed if n not in extra) or "none"
            raise EdkdError(f"{where}.{name}: {node['_target_']} takes no such value; allowed: {valid}")
    for name in allowed:
        if name not in cfg and name not in extra and parameters[name].default is inspect.Parameter.empty:
            raise EdkdError(f"{where}.{name} is missing: {node['_target_']} needs it")
    return {name: convert(value, hints.get(name, Any), f"{where}.{name}") for name, value in cfg.items()}


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

"""From a node of the configuration to a typed value or an object.

Every value that goes into a constructor is checked against that constructor's type hints, whoever wrote it: a method
added by a user gets the same errors as ours. `where` is the dotted key of a node, which every error begins with.
"""

import functools
import importlib
import inspect
import types
import typing
from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Strict, TypeAdapter, ValidationError
from typing_extensions import NotRequired, TypedDict

from edkd.errors import EdkdError

T = TypeVar("T")
# Strict: an int passes for a float, a bool for no number, a text for itself alone.
STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True)

_FITTING = {  # by pydantic's name of an error
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a text",
    "none_required": "null",
    "list_type": "a list",
    "tuple_type": "a list",
    "sequence_str": "a list",
    "dict_type": "a group of values",
    "literal_error": "one of {expected}",
    "greater_than": "above {gt:.15g}",
    "greater_than_equal": "{ge:.15g} or more",
    "less_than": "below {lt:.15g}",
}


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
    hints, arguments = _arguments(target(node, where), frozenset(extra))
    values = {name: value for name, value in node.items() if name != "_target_"}
    try:
        return arguments.validate_python(values)
    except ValidationError as error:
        raise EdkdError(_line(error, values, where, hints)) from error


def typed(cls: type[T], values: Any, where: str) -> T:
    """Make a pydantic dataclass of a node. Raises EdkdError for a value that does not fit."""
    if not isinstance(values, Mapping):
        raise EdkdError(f"{where} must be a group of values, not {values!r}; see conf/{where}")
    try:
        return cls(**values)
    except ValidationError as error:
        hints = typing.get_type_hints(cls)
        declared = {field.name: hints[field.name] for field in fields(cls)}  # type: ignore[arg-type]
        raise EdkdError(_line(error, values, where, declared)) from error


@functools.cache
def _arguments(found: Any, given: frozenset[str]) -> tuple[dict[str, Any], TypeAdapter[Any]]:
    """The arguments of a class or function with their type hints, but for those that are given already."""
    parameters = inspect.signature(found).parameters.values()
    hints = typing.get_type_hints(found.__init__ if inspect.isclass(found) else found)
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in given]
    declared = {p.name: hints.get(p.name, Any) for p in named}
    required = {p.name for p in named if p.default is p.empty}
    return declared, adapter(declared, required, any(p.kind is p.VAR_KEYWORD for p in parameters))


def adapter(hints: Mapping[str, Any], required: set[str], open_ended: bool) -> TypeAdapter[Any]:
    """What checks a mapping whose values have these type hints; `open_ended`: others may be there too."""
    accepted = {name: _listed(hint) for name, hint in hints.items()}
    made = TypedDict("made", {n: h if n in required else NotRequired[h] for n, h in accepted.items()})  # type: ignore
    made.__pydantic_config__ = STRICT | {"extra": "allow" if open_ended else "forbid"}  # type: ignore
    return TypeAdapter(made)


def _listed(hint: Any) -> Any:
    """A type hint whose tuples accept a list: YAML has no tuples."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return typing.Union[tuple(map(_listed, arguments))]  # noqa: UP007
    if origin is list:
        return list[_listed(arguments[0])]  # type: ignore[misc]
    return Annotated[hint, Strict(False)] if origin is tuple else hint


def _line(error: ValidationError, values: Mapping[str, Any], where: str, hints: Mapping[str, Any]) -> str:
    """One line for a user about the first value that does not fit: its key, itself and what is allowed."""
    errors = error.errors(include_url=False)
    prefix = f"{where}." if where else ""
    see = f"see conf/{where.partition('.')[0] or 'config.yaml'}"
    for each in errors:
        if each["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            return f"{prefix}{each['loc'][0]}: no such value; allowed: {', '.join(hints) or 'none'}"
    for each in errors:
        if each["type"] == "missing":
            return f"{prefix}{each['loc'][0]} is missing; {see}"
        if each["type"] == "value_error":
            return f"{prefix}{each['ctx']['error']}; {see}"
    path, value = _place(values, errors[0]["loc"])
    fitting = [_fitting(each) for each in errors if _place(values, each["loc"])[0] == path]
    if len(path) == 1 and type(None) in typing.get_args(hints[str(path[0])]):
        fitting.append("null")
    key = prefix + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)[1:]
    return f"{key}={value}: must be {' or '.join(dict.fromkeys(fitting))}"


def _place(values: Any, loc: tuple[int | str, ...]) -> tuple[tuple[int | str, ...], Any]:
    """Where an error's value lies, and the value; pydantic's location may go on with the option of a union."""
    for depth, part in enumerate(loc):
        if not ((isinstance(values, Mapping) and part in values) or isinstance(part, int)):
            return loc[:depth], values
        values = values[part]
    return loc, values


def _fitting(error: Any) -> str:
    """What would have been accepted instead."""
    if error["type"] not in _FITTING:
        return str(error["msg"]).removeprefix("Input should be ")
    context = dict(error.get("ctx", {}))
    if "expected" in context:
        context["expected"] = context["expected"].replace("'", "").replace(" or ", ", ")
    return _FITTING[error["type"]].format(**context)

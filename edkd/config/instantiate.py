"""Build objects from nodes of a configuration, with one-line errors for values that do not fit.

Every value that goes into a constructor is checked against that constructor's type hints, whoever wrote it: a method
added by a user gets the same errors as ours. `where` is the dotted key of a node, which every error begins with.
"""

import functools
import importlib
import inspect
import re
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import ConfigDict, Strict, TypeAdapter, ValidationError
from typing_extensions import NotRequired, TypedDict

from edkd.errors import EdkdError

T = TypeVar("T")
Others = Literal["forbid", "ignore"]
# Strict: an int is accepted as a float, a bool not as a number, a text only as a text.
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
    "less_than_equal": "{le:.15g} or less",
}


def target(node: Any, where: str) -> Any:
    """The class or function that a node's `_target_` names. Raises EdkdError if there is none."""
    path = node.get("_target_") if isinstance(node, Mapping) else None
    if not isinstance(path, str) or "." not in path:
        raise EdkdError(f"{where}._target_ must be the dotted path of a class or function, not {path!r}")
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        hint = "" if isinstance(error, AttributeError) else "; is it on PYTHONPATH?"
        raise EdkdError(f"{where}._target_: cannot import {path}: {error}{hint}") from error
    except Exception as error:  # whatever a module of the user's raises as it is imported
        raise EdkdError(f"{where}._target_: importing {module} fails: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise EdkdError(f"{where}._target_: {path} is no class or function")
    return found


def build(node: Mapping[str, Any], where: str, **extra: Any) -> Any:
    """Call a node's `_target_` with its checked values and `extra`."""
    return target(node, where)(**check_call(node, where, *extra), **extra)


def check_call(node: Mapping[str, Any], where: str, *given: str) -> dict[str, Any]:
    """A node's values, converted to what its `_target_` declares; `given`: arguments that the code gives itself."""
    values = {name: value for name, value in node.items() if name != "_target_"}
    return _checked(target(node, where), values, where, frozenset(given), "forbid")


def typed(cls: type[T], values: Any, where: str, *, others: Others = "forbid", **extra: Any) -> T:
    """Make a dataclass of a node and `extra`. Raises EdkdError for a value that does not fit.

    others: whether the node may have values that are no field of the dataclass.
    """
    group = where or "config.yaml"
    if not isinstance(values, Mapping):
        raise EdkdError(f"{where} must be a group of values, not {values!r}; see conf/{group}")
    checked = _checked(cls, values, where, frozenset(extra), others)
    try:
        return cls(**checked, **extra)
    except ValueError as error:
        raise EdkdError(f"{where}{'.' if where else ''}{error}; see conf/{group}") from error


def _checked(
    found: Any, values: Mapping[str, Any], where: str, given: frozenset[str], others: Others
) -> dict[str, Any]:
    hints, arguments = _arguments(found, given, others)
    try:
        return arguments.validate_python(values)
    except ValidationError as error:
        raise EdkdError(_misfit(error, values, where, hints)) from error


@functools.cache
def _arguments(found: Any, given: frozenset[str], others: Others) -> tuple[dict[str, Any], TypeAdapter[Any]]:
    """The type hints of the arguments of a class or function, except those already `given`.

    Also returns the adapter that checks a mapping of these arguments.
    """
    parameters = inspect.signature(found).parameters.values()
    hints = hints_of(found.__init__ if inspect.isclass(found) else found)
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in given]
    declared = {p.name: hints.get(p.name, Any) for p in named}
    required = {p.name for p in named if p.default is p.empty}
    extra = "allow" if any(p.kind is p.VAR_KEYWORD for p in parameters) else others
    accepted = {name: _listed(hint) for name, hint in declared.items()}
    made = TypedDict("made", {n: h if n in required else NotRequired[h] for n, h in accepted.items()})  # type: ignore
    made.__pydantic_config__ = STRICT | {"extra": extra}  # type: ignore
    return declared, TypeAdapter(made)


def hints_of(found: Any) -> dict[str, Any]:
    """The type hints of a function. Raises EdkdError for one that cannot be evaluated."""
    try:
        return typing.get_type_hints(found, include_extras=True)
    except NameError as error:
        raise EdkdError(
            f"{found.__module__}.{found.__qualname__}: {error} in its type hints, by which the configuration is "
            "checked: import it outside `if TYPE_CHECKING:`"
        ) from error


def _listed(hint: Any) -> Any:
    """A type hint whose tuples accept a list: YAML has no tuples."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return typing.Union[tuple(map(_listed, arguments))]  # noqa: UP007
    if origin is list:
        return list[_listed(arguments[0])]  # type: ignore[misc]
    return Annotated[hint, Strict(False)] if origin is tuple else hint


def _misfit(error: ValidationError, values: Mapping[str, Any], where: str, hints: Mapping[str, Any]) -> str:
    """One line about the first value that does not fit; `where` is the dotted key of the node that holds `values`."""
    errors = error.errors(include_url=False)
    prefix = f"{where}." if where else ""
    for each in errors:
        if each["type"] == "extra_forbidden":
            return f"{prefix}{each['loc'][0]}: no such value; allowed: {', '.join(hints) or 'none'}"
        if each["type"] == "invalid_key":
            return f"{prefix}{each['loc'][0]}: a key is a text, which a number or a truth value is in quotes alone"
    for each in errors:
        if each["type"] == "missing":
            return f"{prefix}{each['loc'][0]} is missing; see conf/{where.partition('.')[0] or 'config.yaml'}"
    path, value = _place(values, errors[0]["loc"])
    fitting = [_fitting(each) for each in errors if _place(values, each["loc"])[0] == path]
    if len(path) == 1 and type(None) in typing.get_args(hints[str(path[0])]):
        fitting.append("null")
    key = prefix + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)[1:]
    range_of = re.fullmatch(r"(\d+)\.\.(\d+)", value) if isinstance(value, str) else None
    hint = ""
    if range_of is not None:
        several = ",".join(map(str, range(int(range_of[1]), min(int(range_of[2]), int(range_of[1]) + 9) + 1)))
        hint = f"; several values, with -m, are {key}={several}"
    return f"{key}={value}: must be {' or '.join(dict.fromkeys(fitting))}{hint}"


def _place(values: Any, loc: tuple[int | str, ...]) -> tuple[tuple[int | str, ...], Any]:
    """The path of an error's value, and the value. An option of a union that ends pydantic's location is dropped."""
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

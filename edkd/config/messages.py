"""What a user reads about a value that does not fit: its key, itself and what is allowed, in one line."""

import re
import typing
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

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


def misfit(error: ValidationError, values: Mapping[str, Any], where: str, hints: Mapping[str, Any]) -> str:
    """One line about the first value that does not fit; `where` is the dotted key of the node that holds `values`."""
    errors = error.errors(include_url=False)
    prefix = f"{where}." if where else ""
    for each in errors:
        if each["type"] == "extra_forbidden":
            return f"{prefix}{each['loc'][0]}: no such value; allowed: {', '.join(hints) or 'none'}"
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

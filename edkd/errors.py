"""The one exception that users see as a single line, and parts of such lines."""

import difflib
import importlib
from collections.abc import Sequence
from typing import Any


class EdkdError(Exception):
    """A mistake in the input or the environment: its message says what was wrong, what is allowed, where to look.

    Command-line entry points print the message alone (no traceback) and exit with code 1.
    """


def did_you_mean(name: str, options: Sequence[str]) -> str:
    """A guess at what a mistyped name was to be, for a message; empty where no option is close to it."""
    close = difflib.get_close_matches(name, options, n=1)
    return f", did you mean {close[0]}?" if close else ""


def import_extra(module: str, extra: str) -> Any:
    """A module of an optional package, imported late. Raises EdkdError, which names the extra, if it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise EdkdError(f"{name} cannot be imported ({error}); pip install 'edkd[{extra}]' brings it") from error

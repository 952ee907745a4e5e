"""The one exception that users see as a single line."""


class EdkdError(Exception):
    """A mistake in the input or the environment: its message says what was wrong, what is allowed, where to look.

    Command-line entry points print the message alone (no traceback) and exit with code 1.
    """

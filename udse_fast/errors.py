"""The one exception type that users meet: one line that says what was expected, what came, what to do."""

from __future__ import annotations

import sys


class UdseError(ValueError):
    """Bad input, file, setting or environment. The command line prints it and exits with 2."""


def first_line(error: BaseException) -> str:
    """The first line of an exception's text: user-facing errors are one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def reason(error: BaseException) -> str:
    """What a library says, without the path, which soundfile mentions in some errors."""
    return " ".join(str(getattr(error, "error_string", error)).split()).rstrip(".") or type(error).__name__


def report_error(message: object) -> None:
    """What the command line does with an error: one line on stderr."""
    notice(f"error: {' '.join(str(message).split())}")


def notice(text: str) -> None:
    """A line on stderr; none where that is closed, for which `print` would take stdout."""
    if sys.stderr is not None:
        print(f"udse-fast: {text}", file=sys.stderr)

"""The one exception type that users meet: one line that says what was expected, what came, what to do."""

from __future__ import annotations

import sys


class UdseError(ValueError):
    """Bad input, file, setting or environment. The command line prints it and exits with 2."""


def report_error(message: object) -> None:
    """What the command line does with an error: one line on stderr."""
    print(f"udse-fast: error: {' '.join(str(message).split())}", file=sys.stderr)

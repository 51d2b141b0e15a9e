"""The one exception type that users meet: its text is a single line that says what was expected, what came, what to do."""


class UdseError(ValueError):
    """Bad input, file, setting or environment. The command line prints it as one line and exits with status 2."""

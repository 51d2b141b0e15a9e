"""Where results go: files that appear whole or not at all, and pipes, devices and links, which stay what they are."""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from udse_fast.atomic import atomic_write
from udse_fast.errors import UdseError

STDOUT = Path("/dev/stdout")
"""What `-` means as an output."""
READER_SECONDS = 10.0
"""So long a named pipe may wait for somebody who reads it."""


def is_special(path: Path) -> bool:
    """Whether the output is standard output, a pipe or a device, which is written into and not replaced."""
    if path == STDOUT:
        return True
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


@contextmanager
def result_file(path: Path) -> Iterator[Path]:
    """A temporary file that becomes `path` at the end; what a link points to is written, not the link.

    Raises:
        UdseError: it cannot be written there.
    """
    if not is_special(path):
        with atomic_write(path.resolve() if path.is_symlink() else path) as temporary:
            yield temporary
        return
    with tempfile.NamedTemporaryFile(prefix="udse-fast-", suffix=path.suffix) as file:
        yield Path(file.name)
        with open(file.name, "rb") as written:
            descriptor = _opened(path)
            with os.fdopen(descriptor, "wb") as target:
                shutil.copyfileobj(written, target, 1 << 20)


def _opened(path: Path) -> int:
    if path == STDOUT:
        if sys.stdout is None:
            raise UdseError("expected a file or pipe on standard output, got none: it is closed")
        sys.stdout.flush()
        return os.dup(sys.stdout.fileno())
    if not stat.S_ISFIFO(path.stat().st_mode):
        return os.open(path, os.O_WRONLY)
    give_up = time.monotonic() + READER_SECONDS
    while True:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK)  # else it would wait for a reader for ever
        except OSError as error:
            if time.monotonic() > give_up:
                raise UdseError(
                    f"{path}: expected a pipe that somebody reads, got none for {READER_SECONDS:g} s"
                ) from error
            time.sleep(0.02)
        else:
            os.set_blocking(descriptor, True)
            return descriptor

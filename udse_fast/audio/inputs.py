"""What a user names as input, a file, standard input or a pipe, as an open file that can be searched.

Without a buffer of Python: libsndfile reads the same open file by its number.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

from udse_fast.errors import UdseError

STDIN = Path("/dev/stdin")
"""What `-` means as an input."""
WRITER_SECONDS = 10.0
"""So long a named pipe may wait for somebody who writes to it."""


def is_pipe(path: Path) -> bool:
    """Whether the input can be read only once: standard input that is no file, a named pipe, `<(command)`."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode if path == STDIN and sys.stdin is not None else path.stat().st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def opened(path: Path) -> IO[bytes]:
    """Open a file for reading; a pipe is read to its end into an unnamed temporary file first.

    Raises:
        UdseError: a folder, a device, a terminal, a pipe that nobody writes to.
        OSError: no such file, no permission.
    """
    if path == STDIN:
        return _standard_input()
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise UdseError(f"{path}: expected an audio file, got a folder")
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        raise UdseError(f"{path}: expected an audio file or a pipe, got a device; `udse-fast live` takes microphones")
    if not stat.S_ISFIFO(mode):
        return open(path, "rb", buffering=0)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # else it would wait for a writer for ever
    try:
        first = _first_bytes(path, descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    os.set_blocking(descriptor, True)
    return _kept(descriptor, first)


def _standard_input() -> IO[bytes]:
    if sys.stdin is None:
        raise UdseError("expected audio on standard input, got none: it is closed")
    if os.isatty(sys.stdin.fileno()):
        raise UdseError("expected audio on standard input, got a terminal; e.g. cat in.wav | udse-fast enhance - -o -")
    mode = os.fstat(sys.stdin.fileno()).st_mode
    descriptor = os.dup(sys.stdin.fileno())
    if stat.S_ISREG(mode) and os.lseek(descriptor, 0, os.SEEK_CUR) == 0:
        return os.fdopen(descriptor, "rb", buffering=0)
    return _kept(descriptor, b"")


def _first_bytes(path: Path, descriptor: int) -> bytes:
    """What comes first out of a pipe in non-blocking mode; empty where the writer is there and has not begun."""
    give_up = time.monotonic() + WRITER_SECONDS
    while True:
        try:
            if received := os.read(descriptor, 1 << 16):
                return received
        except BlockingIOError:
            return b""  # somebody has it open
        if time.monotonic() > give_up:
            raise UdseError(f"{path}: expected a pipe that somebody writes to, got none for {WRITER_SECONDS:g} s")
        time.sleep(0.02)


def _kept(descriptor: int, first: bytes) -> IO[bytes]:
    """All of a pipe: its writer is never cut off, and decoders may search."""
    with os.fdopen(descriptor, "rb") as pipe, tempfile.TemporaryFile(prefix="udse-fast-") as kept:
        try:
            kept.write(first)
            shutil.copyfileobj(pipe, kept, 1 << 20)
            kept.flush()
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise UdseError(
                f"no room in {tempfile.gettempdir()} for what comes through the pipe; set TMPDIR to a larger disk"
            ) from None
        return os.fdopen(os.dup(kept.fileno()), "rb", buffering=0)

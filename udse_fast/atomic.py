"""Files that appear whole or not at all."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from udse_fast.errors import UdseError, first_line

_numbers = itertools.count()


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary name next to `path`, renamed to it at the end, or removed after an error.

    Raises:
        UdseError: the file cannot be written there.
    """
    path = Path(path)
    # short, as a name may have 255 bytes in all; with the ending, by which some programs go
    temporary = path.with_name(f".{os.getpid()}-{next(_numbers)}.partial{path.suffix[:16]}")
    try:
        with suppress(FileNotFoundError):
            path.lstat()  # a name that cannot be is told now, not after the work
        if path.is_dir():
            raise IsADirectoryError(None, "Is a directory")
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors makes its own file, which only the owner may read
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise UdseError(f"cannot write {path}: {reason}; give a file in a folder that can be written") from error
    finally:
        with suppress(OSError):
            temporary.unlink()

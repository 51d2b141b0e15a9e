"""Read the tensors of a PyTorch file, of the zip format or of the one before 1.6, without running its pickles."""

from __future__ import annotations

import mmap
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from udse_fast.checkpoints.lightning import UNREADABLE, Placeholder, StoredTensor, interpret, mapping_of, read_tensor
from udse_fast.errors import UdseError

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
LONGEST_COUNT = 8
"""Bytes of the number of elements that stands before each storage of the older format."""


def read_tensors(path: Path, section: str) -> dict[str, Tensor]:
    """Tensors by name, in float32: of a section of the file, or of the file if it has none.

    Raises:
        UdseError: damaged, or no PyTorch file.
    """
    try:
        with open(path, "rb") as file:
            if zipfile.is_zipfile(path):
                return _of_zip(path, section)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:  # never reads more than there is
                return _of_stream(data, section)
    except UNREADABLE as error:
        raise UdseError(
            f"expected a PyTorch file, got a damaged or foreign one ({type(error).__name__}: {error}); "
            "download or copy it again"
        ) from error


def _section(checkpoint: Any, section: str) -> dict[str, StoredTensor]:
    content = mapping_of(checkpoint)
    content = mapping_of(content.get(section)) or content
    return {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, StoredTensor)}


def _tensors_in(content: Any) -> Iterator[StoredTensor]:
    """Wherever they are: a storage of the older format says what it holds in its tensors only."""
    rest, seen = [content], set[int]()
    while rest:
        value = rest.pop()
        if id(value) in seen:  # also of a list that holds itself
            continue
        seen.add(id(value))
        if isinstance(value, StoredTensor):
            yield value
        elif isinstance(value, dict):
            rest += value.values()
        elif isinstance(value, (list, tuple)):
            rest += value
        elif isinstance(value, Placeholder):
            rest += [value.arguments, value.state, value.items, value.elements]


def _of_zip(path: Path, section: str) -> dict[str, Tensor]:
    with zipfile.ZipFile(path) as archive:
        root = next(name for name in archive.namelist() if name.endswith("/data.pkl"))[: -len("data.pkl")]
        stored = _section(interpret(archive.read(root + "data.pkl")), section)
        return {
            name: read_tensor(archive.read(f"{root}data/{tensor.storage.key}"), tensor)
            for name, tensor in stored.items()
        }


def _of_stream(file: mmap.mmap, section: str) -> dict[str, Tensor]:
    """Pickles one after the other: magic, protocol, the machine, the content, the order of the storages that follow."""
    if interpret(file) != MAGIC or interpret(file) != PROTOCOL:
        raise ValueError("no PyTorch file")
    interpret(file)
    content = interpret(file)
    stored = _section(content, section)
    sizes = {tensor.storage.key: tensor.storage.dtype.itemsize for tensor in _tensors_in(content)}
    storages: dict[str, bytes] = {}
    for key in interpret(file):
        size = int.from_bytes(file.read(LONGEST_COUNT), "little") * sizes[key]
        if size > len(file) - file.tell():  # before memory is taken for it
            raise EOFError(f"a storage of {size} bytes where {len(file) - file.tell()} are left")
        storages[key] = file.read(size)
    return {name: read_tensor(storages[tensor.storage.key], tensor) for name, tensor in stored.items()}

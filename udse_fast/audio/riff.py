"""Chunks of WAV files (RIFF and RF64): what the header says of the data, and what stands beside it.

Everything is read by position: whoever decodes the same open file is not disturbed.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import IO

HEADER_BYTES = 12
_OWN = {b"fmt ", b"data", b"fact", b"PEAK", b"ds64", b"JUNK", b"junk", b"FLLR", b"PAD "}
"""Chunks that belong to the samples: whoever writes them writes these."""
_KEPT_BYTES = 64 << 20
_FEWEST, _MOST = 0x20, 0x7E  # printable ASCII


@dataclass(frozen=True)
class Chunk:
    """A chunk of a RIFF file; `start` and `size` of its content in bytes."""

    name: bytes
    start: int
    size: int


def is_wave(head: bytes) -> bool:
    """Whether a file that begins with these 12 bytes is a WAV file, of little-endian numbers."""
    return head[:4] in (b"RIFF", b"RF64", b"BW64") and head[8:12] == b"WAVE"


def wave_chunks(file: IO[bytes]) -> list[Chunk]:
    """Chunks of a WAV file as far as they are whole, the data chunk even if it is cut; none of another file."""
    descriptor = file.fileno()
    end = os.fstat(descriptor).st_size
    if not is_wave(os.pread(descriptor, HEADER_BYTES, 0)):
        return []
    chunks: list[Chunk] = []
    data_bytes: int | None = None
    position = HEADER_BYTES
    while position + 8 <= end and len(chunks) < 10_000:
        name, size = struct.unpack("<4sI", os.pread(descriptor, 8, position))
        position += 8
        if name == b"ds64" and size >= 24 and position + 24 <= end:
            data_bytes = struct.unpack("<QQQ", os.pread(descriptor, 24, position))[1]
        if name == b"data" and size == 0xFFFFFFFF and data_bytes is not None:
            size = data_bytes
        if not all(_FEWEST <= byte <= _MOST for byte in name):
            break
        if name == b"data" or position + size <= end:
            chunks.append(Chunk(name, position, size))
        position += size + size % 2
    return chunks


def data_of_unknown_size(file: IO[bytes]) -> bool:
    """Whether the data chunk says 0 bytes although samples follow: the header of a program that wrote to a pipe."""
    end = os.fstat(file.fileno()).st_size
    chunks = wave_chunks(file)
    numbers = [number for number, chunk in enumerate(chunks) if chunk.name == b"data"]
    if not numbers or chunks[numbers[0]].size != 0:
        return False
    following = chunks[numbers[0]].start
    for chunk in chunks[numbers[0] + 1 :]:  # an empty recording may have tags behind it
        if chunk.start - 8 == following:
            following = chunk.start + chunk.size + chunk.size % 2
    return following < end


def other_chunks(file: IO[bytes]) -> list[Chunk]:
    """What stands in a WAV file beside the samples: bext, iXML, cue, LIST, smpl and the like."""
    return [chunk for chunk in wave_chunks(file) if chunk.name not in _OWN and chunk.size <= _KEPT_BYTES]


def append_chunks(path: Path, source: IO[bytes], chunks: list[Chunk]) -> bool:
    """Copy chunks of `source` to the end of the WAV file `path`; False where its header could not count them."""
    with open(path, "r+b") as file:
        head = file.read(HEADER_BYTES)
        end = file.seek(0, os.SEEK_END)
        added = end % 2 + sum(8 + chunk.size + chunk.size % 2 for chunk in chunks)
        if head[:4] == b"RIFF" and end + added - 8 > 0xFFFFFFFF:
            return False
        file.write(b"\0" * (end % 2))
        for chunk in chunks:
            content = os.pread(source.fileno(), chunk.size, chunk.start)
            file.write(struct.pack("<4sI", chunk.name, chunk.size) + content + b"\0" * (chunk.size % 2))
        if head[:4] == b"RIFF":
            file.seek(4)
            file.write(struct.pack("<I", end + added - 8))
        else:
            file.seek(HEADER_BYTES + 8)  # ds64 comes first
            file.write(struct.pack("<Q", end + added - 8))
    return True

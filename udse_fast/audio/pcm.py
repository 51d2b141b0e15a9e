"""Samples as bytes: the formats of raw streams, and the headers that show that a stream is none."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from udse_fast.audio.riff import is_wave
from udse_fast.errors import UdseError

SNIFF_BYTES = 12
_MP3_KBITS = {  # MPEG version 1 (True) or 2 and 2.5, of layer III; index 0 is "free", 15 is not allowed
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_MP3_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
MP3_BYTES = 1500
"""Longest frame of MP3, with the header of the next."""


@dataclass(frozen=True)
class PcmFormat:
    """A format of interleaved samples.

    `decode` gives an array (n,) of a dtype that streams take; `encode` takes such an array back to bytes.
    """

    width: int
    decode: Callable[[bytes], NDArray[Any]]
    encode: Callable[[NDArray[Any]], bytes]


def _plain(dtype: str) -> PcmFormat:
    stored = np.dtype(dtype)
    native = stored.newbyteorder("=")
    return PcmFormat(
        stored.itemsize,
        lambda data: np.frombuffer(data, stored).astype(native),
        lambda samples: samples.astype(stored, copy=False).tobytes(),
    )


def _decode_24(data: bytes) -> NDArray[np.int32]:
    """As the upper three bytes of 32-bit integers."""
    triples = np.frombuffer(data, np.uint8).reshape(-1, 3)
    words = np.zeros((len(triples), 4), np.uint8)
    words[:, 1:] = triples
    return words.view("<i4")[:, 0].astype(np.int32)


def _encode_24(samples: NDArray[Any]) -> bytes:
    rounded = np.minimum(samples.astype(np.int64) + 128, 2**31 - 1) >> 8
    return rounded.astype("<i4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes()


def _mu_law() -> NDArray[np.int16]:
    """Value of every byte, ITU-T G.711: sign, three bits of the segment, four of the step, all inverted."""
    code = ~np.arange(256, dtype=np.int32) & 0xFF
    magnitude = (((code & 0x0F) << 3) + 132 << ((code & 0x70) >> 4)) - 132
    return np.where(code & 0x80, -magnitude, magnitude).astype(np.int16)


def _a_law() -> NDArray[np.int16]:
    """Value of every byte, ITU-T G.711: every other bit inverted, the lowest two segments of one step."""
    code = np.arange(256, dtype=np.int32) ^ 0x55
    segment, step = (code & 0x70) >> 4, (code & 0x0F) << 4
    magnitude = np.where(segment == 0, step + 8, (step + 0x108) << np.maximum(segment - 1, 0))
    return np.where(code & 0x80, magnitude, -magnitude).astype(np.int16)


def _companded(table: NDArray[np.int16]) -> PcmFormat:
    """One byte a sample; encoded as the byte with the nearest value."""
    order = np.argsort(table, kind="stable")
    values = table[order].astype(np.int32)
    between = (values[1:] + values[:-1] + 1) // 2
    return PcmFormat(
        1,
        lambda data: table[np.frombuffer(data, np.uint8)],
        lambda samples: (
            order[np.searchsorted(between, samples.astype(np.int32), side="right")].astype(np.uint8).tobytes()
        ),
    )


FORMATS = {
    **{"s16le": _plain("<i2"), "f32le": _plain("<f4"), "s32le": _plain("<i4"), "u8": _plain("|u1")},
    **{"f64le": _plain("<f8"), "s24le": PcmFormat(3, _decode_24, _encode_24)},
    **{"mulaw": _companded(_mu_law()), "alaw": _companded(_a_law())},
}
"""FFmpeg's name -> format."""


def header_of(start: bytes) -> str | None:
    """What a stream is that begins with these bytes, if it is no raw PCM: 12 of them, `MP3_BYTES` for some of MP3."""
    if start[:4] in (b"RIFF", b"RIFX", b"RF64") and start[8:12] == b"WAVE":
        return "a RIFF header (WAV)"
    for magic, name in ((b"fLaC", "a FLAC"), (b"OggS", "an Ogg"), (b"ID3", "an MP3 (ID3)"), (b"FORM", "an AIFF")):
        if start.startswith(magic) and (magic != b"FORM" or start[8:11] == b"AIF"):
            return f"{name} header"
    if start[4:8] == b"ftyp":
        return "an MP4 header"
    length = mp3_frame_bytes(start)
    if length and mp3_frame_bytes(start[length:]):
        return "an MP3 header"
    return None


def mp3_frame_bytes(start: bytes) -> int:
    """Length of the MP3 frame whose header these bytes begin with, 0 if that is none."""
    if len(start) < 4 or start[0] != 0xFF or start[1] & 0xE6 not in (0xE2, 0xE3):  # layer III
        return 0
    version, rate, bits = start[1] >> 3 & 3, start[2] >> 2 & 3, start[2] >> 4
    if version == 1 or rate == 3 or bits in (0, 15):
        return 0
    kbits = _MP3_KBITS[version == 3][bits]
    return (144 if version == 3 else 72) * kbits * 1000 // _MP3_RATES[version][rate] + (start[2] >> 1 & 1)


@dataclass(frozen=True)
class WaveHeader:
    """What stands before the samples of a WAV stream. `data_bytes` is None where it does not know."""

    content: bytes
    pcm: PcmFormat
    sample_rate: int
    channels: int
    data_bytes: int | None


_OF_WAVE = {
    **{(1, 8): "u8", (1, 16): "s16le", (1, 24): "s24le", (1, 32): "s32le", (3, 32): "f32le", (3, 64): "f64le"},
    **{(6, 8): "alaw", (7, 8): "mulaw"},
}
"""(format tag, bits) -> name in FORMATS."""


def read_wave_header(read: Callable[[int], bytes]) -> WaveHeader:
    """The header of a WAV stream.

    Args:
        read: returns so many bytes, less at the end of the stream only.

    Raises:
        UdseError: no WAV, damaged, or samples that are no PCM.
    """
    content = read(SNIFF_BYTES)
    if not is_wave(content):
        raise UdseError(f"--format wav: expected a RIFF header on stdin, got {header_of(content) or 'none'}")
    described = None
    long_bytes = None
    while True:
        head = read(8)
        content += head
        if len(head) < 8:
            raise UdseError("--format wav: expected a data chunk, got the end of stdin")
        name, size = struct.unpack("<4sI", head)
        if name == b"data":
            break
        if size > 1 << 20:
            raise UdseError(f"--format wav: expected a small header, got a chunk {name!r} of {size} bytes")
        chunk = read(size + size % 2)
        content += chunk
        if name == b"fmt " and len(chunk) >= 16:
            described = struct.unpack("<HHIIHH", chunk[:16])
            if described[0] == 0xFFFE and len(chunk) >= 26:  # WAVE_FORMAT_EXTENSIBLE: the tag is in its GUID
                described = (struct.unpack("<H", chunk[24:26])[0], *described[1:])
        if name == b"ds64" and len(chunk) >= 16:
            long_bytes = struct.unpack("<Q", chunk[8:16])[0]
    if described is None or (described[0], described[5]) not in _OF_WAVE:
        got = "none" if described is None else f"format {described[0]} of {described[5]} bits"
        raise UdseError(f"--format wav: expected a fmt chunk of PCM, float, mu-law or A-law, got {got}")
    pcm = FORMATS[_OF_WAVE[described[0], described[5]]]
    unknown = size in (0, 0xFFFFFFFF) or size >= 0x7FFFF000
    return WaveHeader(content, pcm, described[2], described[1], long_bytes if unknown else size)

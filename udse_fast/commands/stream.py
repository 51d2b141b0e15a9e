"""`udse-fast stream`: raw PCM or WAV on stdin to the same on stdout."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from udse_fast.commands.options import add_enhancer_arguments, enhancer_settings
from udse_fast.errors import UdseError, notice

if TYPE_CHECKING:
    from udse_fast.streaming.stream import Stream

FORMATS = ("s16le", "f32le", "s24le", "s32le", "u8", "f64le", "mulaw", "alaw", "wav")
READ_BYTES = 1 << 16
BLOCKS = ("block_frames", "block_seconds", "overlap_seconds")
"""Settings that have options of their own here."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add = parser.add_argument
    add("--format", choices=FORMATS, default="s16le",
        help="of the samples; wav: rate, channels and format are in its header (default: %(default)s)")  # fmt: skip
    add("--rate", type=int, default=16000, metavar="HZ", help="sample rate (default: %(default)s)")
    add("--channels", type=int, default=1, metavar="N", help="interleaved (default: %(default)s)")
    add_block_arguments(parser)
    add("--quiet", action="store_true", help="no latency and real-time factor on stderr")
    add_enhancer_arguments(parser)


def add_block_arguments(parser: argparse.ArgumentParser) -> None:
    """Length of the blocks, hence the latency."""
    add = parser.add_argument
    add("--block-frames", type=int, metavar="K",
        help="1 to 8 frames of 16 ms at a time, latency K + 1 of them (causal priors, as the built-in)")  # fmt: skip
    add("--block-seconds", type=float, metavar="S",
        help="overlapping blocks of this length, which is the latency, for any prior (its default: 2)")  # fmt: skip
    add("--overlap-seconds", type=float, metavar="S",
        help="that neighbouring overlapping blocks share (its default: 0.25)")  # fmt: skip


def open_block_stream(arguments: argparse.Namespace) -> Stream:
    """The stream that the options ask for."""
    from udse_fast.enhancer import Enhancer

    settings, cut = enhancer_settings(arguments), block_settings(arguments)
    cut |= {name: settings.pop(name) for name in (*BLOCKS, "batch_blocks") if name in settings}  # of --set
    return Enhancer(**settings).open_stream(arguments.rate, arguments.channels, **cut)


def block_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """How the options want a stream to be cut into blocks."""
    asked = {name: getattr(arguments, name) for name in BLOCKS}
    given = {name: value for name, value in asked.items() if value is not None}
    if "block_frames" in given and len(given) > 1:
        raise UdseError("expected --block-frames (causal) or --block-seconds and --overlap-seconds, got both")
    return given


class _Input:
    """The bytes of stdin, of which the first may be looked at before they are taken."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._held = descriptor, b""

    def peek(self, count: int) -> bytes:
        """The next bytes; fewer than `count` only where the input ends."""
        while len(self._held) < count and (received := os.read(self._descriptor, READ_BYTES)):
            self._held += received
        return self._held[:count]

    def take(self, count: int) -> bytes:
        """So many bytes; fewer only where the input ends."""
        taken = self.peek(count)
        self._held = self._held[count:]
        return taken

    def parts(self, most: int | None) -> Iterator[bytes]:
        """What comes as it comes, `most` bytes in all."""
        left = most
        while left is None or left > 0:
            part = self._held or os.read(self._descriptor, READ_BYTES)
            if not part:
                return
            part, self._held = part[:left], part[left:] if left is not None else b""
            left = None if left is None else left - len(part)
            yield part


def _refuse_headers(source: _Input) -> None:
    """Files that are not raw PCM are no sound when they are taken for it."""
    from udse_fast.audio.pcm import MP3_BYTES, SNIFF_BYTES, header_of, mp3_frame_bytes

    start = source.peek(SNIFF_BYTES)
    if mp3_frame_bytes(start):
        start = source.peek(MP3_BYTES)
    if found := header_of(start):
        remedy = "give --format wav" if "RIFF" in found else "decode it first, or give the file to udse-fast enhance -"
        raise UdseError(f"expected raw PCM on stdin, got {found}; {remedy}")


def run(arguments: argparse.Namespace) -> int:
    """Until the end of stdin."""
    import numpy as np

    from udse_fast.audio.pcm import FORMATS as PCM_FORMATS
    from udse_fast.audio.pcm import read_wave_header

    if sys.stdin is None or sys.stdout is None:
        raise UdseError("expected raw PCM on stdin and a pipe or file on stdout, got one of them closed")
    target = sys.stdout.fileno()
    if os.isatty(sys.stdin.fileno()) or os.isatty(target):
        raise UdseError(
            "expected raw PCM on stdin and a pipe or file on stdout, got a terminal; e.g. "
            "sox in.wav -t raw -e signed -b 16 -r 16000 -c 1 - | udse-fast stream | ..."
        )
    source, header = _Input(sys.stdin.fileno()), None
    if arguments.format == "wav":
        header = read_wave_header(source.take)
        arguments.rate, arguments.channels, pcm = header.sample_rate, header.channels, header.pcm
    else:
        _refuse_headers(source)
        pcm = PCM_FORMATS[arguments.format]
    stream = open_block_stream(arguments)
    if not arguments.quiet:
        notice(f"{arguments.rate} Hz, {arguments.channels} channel(s), latency {stream.latency_seconds:.3f} s")
    frame_bytes = pcm.width * arguments.channels

    def put(data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(target, rest) :]

    if header is not None:
        put(header.content)
    rest = b""
    frames = 0
    for received in source.parts(None if header is None else header.data_bytes):
        data = rest + received
        whole = len(data) // frame_bytes * frame_bytes
        rest = data[whole:]
        chunk = pcm.decode(data[:whole]).reshape(-1, arguments.channels).T
        frames += chunk.shape[1]
        put(pcm.encode(np.ascontiguousarray(stream.process(chunk).T).reshape(-1)))
    factor = stream.real_time_factor
    put(pcm.encode(np.ascontiguousarray(stream.flush().T).reshape(-1)))
    if header is not None:
        for following in source.parts(None):  # tags behind the samples
            put(following)
    if rest:
        notice(
            f"{len(rest)} bytes at the end are less than a sample of every channel, left out; "
            "do --format and --channels fit?"
        )
    if not arguments.quiet:
        notice(f"{frames / arguments.rate:.2f} s, real-time factor {factor:.2f}")
    return 0

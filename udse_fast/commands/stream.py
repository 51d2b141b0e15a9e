"""`udse-fast stream`: raw PCM on stdin to raw PCM on stdout."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any

from udse_fast.commands.options import add_enhancer_arguments, enhancer_settings
from udse_fast.errors import UdseError, notice

if TYPE_CHECKING:
    from udse_fast.streaming.stream import Stream

FORMATS = {"s16le": "<i2", "f32le": "<f4"}
READ_BYTES = 1 << 16
BLOCKS = ("block_frames", "block_seconds", "overlap_seconds")
"""Settings that have options of their own here."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add = parser.add_argument
    add("--format", choices=list(FORMATS), default="s16le", help="of the samples (default: %(default)s)")
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


def run(arguments: argparse.Namespace) -> int:
    """Until the end of stdin."""
    import numpy as np

    if sys.stdin is None or sys.stdout is None:
        raise UdseError("expected raw PCM on stdin and a pipe or file on stdout, got one of them closed")
    source, target = sys.stdin.fileno(), sys.stdout.fileno()
    if os.isatty(source) or os.isatty(target):
        raise UdseError(
            "expected raw PCM on stdin and a pipe or file on stdout, got a terminal; e.g. "
            "sox in.wav -t raw -e signed -b 16 -r 16000 -c 1 - | udse-fast stream | ..."
        )
    stream = open_block_stream(arguments)
    if not arguments.quiet:
        notice(f"{arguments.rate} Hz, {arguments.channels} channel(s), latency {stream.latency_seconds:.3f} s")
    dtype = np.dtype(FORMATS[arguments.format])
    frame_bytes = dtype.itemsize * arguments.channels

    def give_out(samples: Any) -> None:
        data = memoryview(np.ascontiguousarray(samples.T).astype(dtype, copy=False).tobytes())
        while data:
            data = data[os.write(target, data) :]

    rest = b""
    frames = 0
    while received := os.read(source, READ_BYTES):
        data = rest + received
        whole = len(data) // frame_bytes * frame_bytes
        rest = data[whole:]
        chunk = np.frombuffer(data[:whole], dtype).reshape(-1, arguments.channels).T
        frames += chunk.shape[1]
        give_out(stream.process(chunk.astype(dtype.newbyteorder("="))))
    factor = stream.real_time_factor
    give_out(stream.flush())
    if rest:
        notice(
            f"{len(rest)} bytes at the end are less than a sample of every channel, left out; "
            "do --format and --channels fit?"
        )
    if not arguments.quiet:
        notice(f"{frames / arguments.rate:.2f} s, real-time factor {factor:.2f}")
    return 0

"""`udse-fast serve`: a websocket server with a page to try it."""

from __future__ import annotations

import argparse
import asyncio
import gc
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from udse_fast.commands.options import add_enhancer_arguments, make_enhancer
from udse_fast.commands.stream import add_block_arguments, block_settings
from udse_fast.errors import UdseError, notice

if TYPE_CHECKING:
    import ssl

    from udse_fast.serving.server import Server

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    add = parser.add_argument
    add("--host", default="localhost", help="address to listen on (default: %(default)s, this machine only)")
    add("--port", type=int, default=8765, help="0: any that is free (default: %(default)s)")
    add("--token-file", type=Path, metavar="FILE", help="tokens, one a line: clients must bring one of them")
    add("--certificate", type=Path, metavar="FILE", help="of TLS, PEM with its chain; with --key")
    add("--key", type=Path, metavar="FILE", help="of the certificate, PEM")
    add("--streams", default="auto", metavar="N",
        help="channels served at once, more are refused (default: what is measured at the start)")  # fmt: skip
    add("--max-message-bytes", type=int, default=1 << 18, metavar="N", help="(default: %(default)s)")
    add("--max-speed", type=float, default=1.25, metavar="X",
        help="times real time that a client is read at, after 2 s at any speed (default: %(default)s)")  # fmt: skip
    add("--max-channels", type=int, default=2, metavar="N", help="of a stream (default: %(default)s)")
    add("--idle-seconds", type=float, default=30.0, metavar="S",
        help="a client that sends nothing for so long is closed (default: %(default)s)")  # fmt: skip
    add("--stall-seconds", type=float, default=10.0, metavar="S",
        help="a client that reads nothing for so long is closed (default: %(default)s)")  # fmt: skip
    add("--batch-wait", type=float, default=4.0, metavar="MS",
        help="that a batch waits for other streams, at most (default: %(default)s)")  # fmt: skip
    add("--shutdown-seconds", type=float, default=10.0, metavar="S",
        help="in which streams get their rest on SIGTERM (default: %(default)s)")  # fmt: skip
    add_block_arguments(parser)
    add_enhancer_arguments(parser)


def read_tokens(path: Path) -> list[str]:
    """The tokens in a file: one a line; empty lines and those that start with # are left out.

    Raises:
        UdseError: a file that cannot be read or has none, or a token that does not fit into a header.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UdseError(f"--token-file: cannot read {path}: {error}") from None
    tokens = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not tokens or not all(token.isascii() and token.isprintable() and " " not in token for token in tokens):
        raise UdseError(f"--token-file: expected ASCII tokens without blanks, one a line, in {path}")
    return tokens


def run(arguments: argparse.Namespace) -> int:
    """Until SIGINT, SIGTERM or SIGHUP, which let streams end."""
    try:
        import websockets  # noqa: F401
    except ImportError:
        raise UdseError("serve needs websockets; install it with: pip install 'udse-fast[serve]'") from None
    from udse_fast.serving.capacity import real_time_streams
    from udse_fast.serving.limits import Limits
    from udse_fast.serving.server import Server, tls_context

    if (arguments.certificate is None) != (arguments.key is None):
        raise UdseError("expected --certificate and --key together, got one of them")
    if not (arguments.batch_wait >= 0 and arguments.shutdown_seconds >= 0):
        raise UdseError("--batch-wait and --shutdown-seconds: expected numbers >= 0")
    if not 0 <= arguments.port <= 65535:
        raise UdseError(f"--port: expected 0 to 65535, got {arguments.port}")
    limits = Limits(
        message_bytes=arguments.max_message_bytes,
        speed=arguments.max_speed,
        idle_seconds=arguments.idle_seconds,
        stall_seconds=arguments.stall_seconds,
        channels=arguments.max_channels,
    )
    tls = None if arguments.certificate is None else tls_context(arguments.certificate, arguments.key)
    tokens = [] if arguments.token_file is None else read_tokens(arguments.token_file)
    capacity = None if arguments.streams == "auto" else _whole(arguments.streams)
    enhancer, cut = make_enhancer(arguments), block_settings(arguments)
    latency = enhancer.open_stream(16000, **cut).latency_seconds  # tells unfit settings now
    if capacity is None:
        notice("measuring how many streams this machine computes in real time ...")
        capacity = real_time_streams(enhancer, **cut)
    server = Server(enhancer, capacity, limits, tokens, arguments.batch_wait / 1000, cut)
    notice(f"{capacity} streams at once, latency {latency:.3f} s, {'tokens' if tokens else 'no tokens'}")
    # What is loaded stays, 180,000 objects: a collection need not look at them, 80 ms in which no stream gets on
    gc.collect()
    gc.freeze()
    asyncio.run(_serve(server, arguments, tls))
    return 0


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 100_000):
        raise UdseError(f"--streams: expected a whole number from 1 to 99999, or auto, got {text!r}")
    return int(text)


async def _serve(server: Server, arguments: argparse.Namespace, tls: ssl.SSLContext | None) -> None:
    stop = asyncio.Event()
    for number in SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with server.listening(arguments.host, arguments.port, tls, arguments.shutdown_seconds) as port:
        host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
        print(f"{'https' if tls else 'http'}://{host}:{port}/", flush=True)
        await stop.wait()
        notice("going down; streams get their rest")

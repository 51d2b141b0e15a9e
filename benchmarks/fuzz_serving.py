"""Malformed clients for `udse-fast serve`: requests, frames and messages, mutated from valid ones.

python benchmarks/fuzz_serving.py --count 20000

Starts a server, and says how many were tried; fails where the server ends, writes a traceback, hangs a client for more
than ten seconds, keeps a stream, or does not serve a valid client afterwards.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import websockets

REQUEST = (
    b"GET /stream?rate=16000&channels=1&format=s16le HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
HANG_SECONDS = 10.0
AT_ONCE = 20


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """Bytes changed, left out, doubled, put in, or cut off; up to four times."""
    for _ in range(rng.integers(1, 5)):
        at, length = int(rng.integers(0, len(data) + 1)), int(rng.integers(1, 9))
        change = rng.integers(0, 5)
        if change == 0:
            data = data[:at] + rng.bytes(length) + data[at + length :]
        elif change == 1:
            data = data[:at] + data[at + length :]
        elif change == 2:
            data = data[:at] + data[at : at + length] * int(rng.integers(2, 50)) + data[at + length :]
        elif change == 3:
            data = data[:at] + rng.bytes(length) + data[at:]
        else:
            data = data[:at]
    return data


def frame(payload: bytes, rng: np.random.Generator) -> bytes:
    """A masked binary frame of a client."""
    mask = rng.bytes(4)
    size = len(payload)
    head = struct.pack("!BB", 0x82, 0x80 | size) if size < 126 else struct.pack("!BBH", 0x82, 0x80 | 126, size)
    masked = bytes(np.frombuffer(payload, np.uint8) ^ np.resize(np.frombuffer(mask, np.uint8), size))
    return head + mask + masked


async def raw(host: str, port: int, data: bytes) -> None:
    """Send bytes, and read what comes until the server closes or nothing more comes."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(data)
        await writer.drain()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(reader.read(1 << 16), 0.2)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def malformed_request(host: str, port: int, rng: np.random.Generator) -> None:
    """A request that was valid."""
    await raw(host, port, mutated(REQUEST, rng))


async def malformed_frames(host: str, port: int, rng: np.random.Generator) -> None:
    """A valid request, and frames that were valid."""
    frames = b"".join(frame(rng.bytes(2 * int(rng.integers(0, 300))), rng) for _ in range(3))
    await raw(host, port, REQUEST + mutated(frames, rng))


async def malformed_messages(host: str, port: int, rng: np.random.Generator) -> None:
    """Valid frames with messages of any kind and length, and an address of any kind."""
    query = mutated(b"rate=16000&channels=1&format=s16le", rng).decode("latin-1")
    safe = "".join(c for c in query if c.isascii() and c.isprintable() and c not in ' #"<>')
    kinds: list[Any] = [rng.bytes(int(rng.integers(0, 2000))), "end", "", json.dumps({"x": 1}), "\N{SNOWMAN}" * 9]
    async with websockets.connect(
        f"ws://{host}:{port}/stream?{safe}", compression=None, open_timeout=HANG_SECONDS
    ) as c:
        for _ in range(rng.integers(1, 4)):
            await c.send(kinds[rng.integers(len(kinds))])
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(c.recv(), 0.2)


KINDS: list[Callable[[str, int, np.random.Generator], Coroutine[Any, Any, None]]] = [
    malformed_request,
    malformed_frames,
    malformed_messages,
]


async def fuzz(host: str, port: int, count: int, seed: int = 0) -> None:
    """`count` malformed clients, some at a time.

    Raises:
        TimeoutError: one was not done with within ten seconds.
    """
    room = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> None:
        async with room:
            rng = np.random.default_rng((seed, number))
            with contextlib.suppress(OSError, EOFError, ValueError, websockets.WebSocketException):
                await asyncio.wait_for(KINDS[number % len(KINDS)](host, port, rng), HANG_SECONDS)

    await asyncio.gather(*(one(number) for number in range(count)))


def main() -> None:
    """Start a server, try, look at it afterwards."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "udse_fast", "serve", "--port", "0", "--streams", "64", "--steps", "1",
               "--samples", "1", "--idle-seconds", "2"]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        host, port = server.stdout.readline().strip().removeprefix("http://").rstrip("/").rsplit(":", 1)
        started = time.perf_counter()
        asyncio.run(fuzz(host, int(port), arguments.count, arguments.seed))
        wall = time.perf_counter() - started
        time.sleep(3)
        with urllib.request.urlopen(f"http://{host}:{port}/health") as answer:
            left = json.load(answer)["streams"]
        alive = server.poll() is None
        server.terminate()
        _, said = server.communicate(timeout=60)
    print(f"{arguments.count} malformed clients in {wall:.0f} s; server alive: {alive}, streams left: {left}")
    if not alive or left or "Traceback" in said or "error" in said:
        raise SystemExit(said)


if __name__ == "__main__":
    main()

"""How many streams this machine serves in real time: measured with a server and clients, not guessed."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from udse_fast.enhancer import Enhancer
from udse_fast.errors import UdseError, reason
from udse_fast.serving.limits import Limits
from udse_fast.serving.server import Server

LOAD = 0.7
"""Share of the time that serving may take; the rest is for the flush of streams that end, and bursts."""
MOST_STREAMS = 256
RATE, CHUNK_SECONDS = 16000, 0.02
WARM_SECONDS, SECONDS = 0.1, 0.5
"""Of every client: audio that is left out, as the first of it fills buffers, and audio that is measured."""
LEAST_CHUNKS = 3
"""That are measured where chunks are long."""


def real_time_streams(enhancer: Enhancer, **settings: Any) -> int:
    """Mono streams at 16 kHz that are served together in `LOAD` of the time; at least 1.

    What counts is computing, sockets and waiting for each other, with the clients in this process too.

    Args:
        enhancer: whose streams are measured, in a few seconds; streams with a latency of seconds in half a minute.
        settings: of `open_stream`.

    Raises:
        UdseError: a stream fails, or there is no way from this machine to itself.
    """
    try:
        return streams_that_fit(lambda count: asyncio.run(_load(enhancer, count, settings)))
    except (OSError, WebSocketException) as error:
        raise UdseError(f"cannot measure how many streams fit ({reason(error)}); say it with --streams N") from None


def streams_that_fit(load: Callable[[int], float]) -> int:
    """The largest number whose load is at most `LOAD`, by doubling, then by a straight line; at least 1."""
    count, best, before = 1, 1, 0.0
    while count <= MOST_STREAMS:
        this = load(count)
        if this > LOAD:
            this = min(this, load(count))  # others may have had the machine for a moment
        if this > LOAD:
            if count > 1:  # between the last that fits and the first that does not, the time grows evenly
                step = (this - before) / (count - best)
                best += math.floor((LOAD - before) / step) if step > 0 else 0
            return best
        best, before = count, this
        count *= 2
    return best


async def _load(enhancer: Enhancer, count: int, settings: dict[str, Any]) -> float:
    """Seconds until everybody has what belongs to a chunk, per second of audio, where `count` clients send by the
    clock."""
    latency = enhancer.open_stream(RATE, **settings).latency_seconds
    # where blocks are long, 20 ms seldom bring anything to compute: then each chunk is about a block
    chunk_seconds = CHUNK_SECONDS if latency <= WARM_SECONDS else latency
    warm, chunks = math.ceil(WARM_SECONDS / chunk_seconds), max(LEAST_CHUNKS, math.ceil(SECONDS / chunk_seconds))
    chunk_size = round(RATE * chunk_seconds)
    noise = (np.random.default_rng(0).standard_normal(chunk_size) * 3000).astype("<i2").tobytes()
    limits = Limits(message_bytes=len(noise), speed=1e6)
    async with AsyncExitStack() as stack:
        server = Server(enhancer, count, limits, stream_settings=settings)
        port = await stack.enter_async_context(server.listening("localhost", 0))
        address = f"ws://localhost:{port}/stream?rate={RATE}"
        clients = [
            await stack.enter_async_context(connect(address, compression=None, proxy=None)) for _ in range(count)
        ]
        for client in clients:
            await client.recv()  # the facts of its stream
        due = [-round(RATE * latency)] * count  # samples that must come back now

        async def turn(client: ClientConnection, number: int) -> None:
            await client.send(noise)
            due[number] += chunk_size
            while due[number] > 0:
                due[number] -= len(await client.recv()) // 2

        measured, started = 0.0, time.perf_counter()
        for chunk in range(warm + chunks):
            await asyncio.sleep(max(0.0, started + chunk * chunk_seconds - time.perf_counter()))
            sent = time.perf_counter()
            await asyncio.gather(*(turn(client, number) for number, client in enumerate(clients)))
            if chunk >= warm:
                measured += time.perf_counter() - sent
    return measured / (chunks * chunk_seconds)

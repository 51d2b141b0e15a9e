"""How many streams this machine serves in real time: measured with a server and clients, not guessed."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import numpy as np
from websockets.asyncio.client import ClientConnection, connect

from udse_fast.enhancer import Enhancer
from udse_fast.serving.server import Server

LOAD = 0.7
"""Share of the time that serving may take; the rest is for the flush of streams that end, and bursts."""
MOST_STREAMS = 256
RATE, CHUNK_SECONDS = 16000, 0.02
WARM_CHUNKS, CHUNKS = 5, 25
"""Of every client: chunks that are left out, as the first of them fill buffers, and chunks that are measured."""


def real_time_streams(enhancer: Enhancer, **settings: Any) -> int:
    """Mono streams at 16 kHz that are served together in `LOAD` of the time; at least 1.

    What counts is computing, sockets and waiting for each other, with the clients in this process too.

    Args:
        enhancer: whose streams are measured, in a few seconds.
        settings: of `open_stream`.
    """
    return streams_that_fit(lambda count: asyncio.run(_load(enhancer, count, settings)))


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
    chunk_size = round(RATE * CHUNK_SECONDS)
    noise = (np.random.default_rng(0).standard_normal(chunk_size) * 3000).astype("<i2").tobytes()
    async with AsyncExitStack() as stack:
        server = Server(enhancer, count, stream_settings=settings)
        port = await stack.enter_async_context(server.listening("localhost", 0))
        address = f"ws://localhost:{port}/stream?rate={RATE}"
        clients = [
            await stack.enter_async_context(connect(address, compression=None, proxy=None)) for _ in range(count)
        ]
        latencies = [json.loads(await client.recv())["latency_samples"] for client in clients]
        due = [-latency for latency in latencies]  # samples that must come back now

        async def turn(client: ClientConnection, number: int) -> None:
            await client.send(noise)
            due[number] += chunk_size
            while due[number] > 0:
                due[number] -= len(await client.recv()) // 2

        measured, started = 0.0, time.perf_counter()
        for chunk in range(WARM_CHUNKS + CHUNKS):
            await asyncio.sleep(max(0.0, started + chunk * CHUNK_SECONDS - time.perf_counter()))
            sent = time.perf_counter()
            await asyncio.gather(*(turn(client, number) for number, client in enumerate(clients)))
            if chunk >= WARM_CHUNKS:
                measured += time.perf_counter() - sent
    return measured / (CHUNKS * CHUNK_SECONDS)

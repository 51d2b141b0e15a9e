"""Streams of many connections, computed together: one worker takes the chunks of all that wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from udse_fast.enhancer import Enhancer
from udse_fast.serving.inbox import Samples
from udse_fast.serving.metrics import Metrics
from udse_fast.streaming.stream import Stream


@dataclass(frozen=True)
class Work:
    """A chunk for a stream, or None for its rest; and who waits for the result."""

    stream: Stream
    chunk: Samples | None
    waits_until: float
    """Of `time.monotonic`: until then others go first, as its client is ahead of real time."""
    result: asyncio.Future[Samples]


class Batcher:
    """Collects work for a bounded time and computes it in one thread, while the event loop goes on.

    Whatever comes during a batch is in the next one, but for streams that are ahead of their time: they get what time
    the others leave. A stream whose computation fails is told so; the others of its batch get their results.

    Args:
        wait_seconds: from the first piece of work of a batch until it starts, at most; less once all streams are there.
        metrics: where batches are counted.
    """

    def __init__(self, wait_seconds: float, metrics: Metrics) -> None:
        self._wait_seconds, self._metrics = wait_seconds, metrics
        self._queue: asyncio.Queue[Work] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="udse-batch")
        self.streams = 0
        """Streams that may bring work: when all of them did, nobody is waited for."""

    async def process(self, stream: Stream, chunk: Samples, waits_until: float = 0.0) -> Samples:
        """`stream.process(chunk)`, together with others; before `waits_until` only if all that wait are ahead."""
        return await self._put(stream, chunk, waits_until)

    async def flush(self, stream: Stream) -> Samples:
        """`stream.flush()`, after the batch that is being computed."""
        return await self._put(stream, None, 0.0)

    async def _put(self, stream: Stream, chunk: Samples | None, waits_until: float) -> Samples:
        result: asyncio.Future[Samples] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait(Work(stream, chunk, waits_until, result))
        return await result

    async def run(self) -> None:
        """Batch after batch, until it is cancelled."""
        loop, waiting = asyncio.get_running_loop(), list[Work]()
        try:
            while True:
                if not waiting:
                    waiting.append(await self._queue.get())
                if self._queue.qsize() + len(waiting) < self.streams:
                    await asyncio.sleep(self._wait_seconds)
                while not self._queue.empty():
                    waiting.append(self._queue.get_nowait())
                now = time.monotonic()
                batch = [work for work in waiting if work.waits_until <= now] or waiting
                waiting = [] if batch is waiting else [work for work in waiting if work.waits_until > now]
                started = time.perf_counter()
                results = await loop.run_in_executor(self._thread, compute, batch)
                self._metrics.computing.add(time.perf_counter() - started)
                self._metrics.batch.observe(len(batch))
                for work, result in zip(batch, results, strict=True):
                    if work.result.done():  # who asked for it has gone
                        continue
                    if isinstance(result, Exception):
                        work.result.set_exception(result)
                    else:
                        work.result.set_result(result)
        finally:
            self._thread.shutdown(wait=False)


def compute(batch: Sequence[Work]) -> list[Any]:
    """Results in order, an exception where there is none. Chunks are one batch; rests, which are longer, follow."""
    results: dict[int, Any] = {}
    chunks = {number: work for number, work in enumerate(batch) if work.chunk is not None}
    if chunks:
        streams, samples = zip(*((work.stream, work.chunk) for work in chunks.values()), strict=True)
        try:
            results.update(zip(chunks, Enhancer.process_many(streams, samples), strict=True))
        except Exception:  # of one of them: the samples are in the streams, each goes on alone
            results.update({number: _alone(work.stream, work.chunk) for number, work in chunks.items()})
    for number, work in enumerate(batch):
        if work.chunk is None:
            results[number] = _alone(work.stream, None)
    return [results[number] for number in range(len(batch))]


def _alone(stream: Stream, chunk: Samples | None) -> Samples | Exception:
    """What a stream has ready without more input (`chunk` says of which form), or its rest."""
    try:
        return np.atleast_2d(stream.flush() if chunk is None else stream.process(chunk[:, :0]))
    except Exception as error:
        return error

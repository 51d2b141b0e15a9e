"""How many streams this machine computes in real time: measured, not guessed."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np

from udse_fast.enhancer import Enhancer

LOAD = 0.7
"""Share of the time that computing may take; the rest is for sockets, the flush of streams that end, and bursts."""
MOST_STREAMS = 256
REPETITIONS = 8


def real_time_streams(enhancer: Enhancer, **settings: Any) -> int:
    """Mono streams at 16 kHz that are computed together in `LOAD` of the time; at least 1.

    Args:
        enhancer: whose streams are measured, in a few seconds.
        settings: of `open_stream`.
    """
    count, best = 1, 1
    before = 0.0
    while count <= MOST_STREAMS:
        load = _load(enhancer, count, settings)
        if load > LOAD:
            if count > 1:  # between the last that fits and the first that does not, the time grows evenly
                step = (load - before) / (count - best)
                best += math.floor((LOAD - before) / step) if step > 0 else 0
            return best
        best, before = count, load
        count *= 2
    return best


def _load(enhancer: Enhancer, count: int, settings: dict[str, Any]) -> float:
    """Seconds of computing per second of audio, for `count` streams together."""
    streams = [enhancer.open_stream(16000, **settings) for _ in range(count)]
    seconds = streams[0].latency_seconds
    size = max(1, round(16000 * seconds))
    noise = np.random.default_rng(0).standard_normal((count, size)).astype(np.float32) * 0.1
    enhancer.process_many(streams, list(noise))
    started = time.perf_counter()
    for _ in range(REPETITIONS):
        enhancer.process_many(streams, list(noise))
    return (time.perf_counter() - started) / (REPETITIONS * seconds)

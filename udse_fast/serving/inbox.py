"""Samples on their way from a socket to the batcher: bounded, so that a client who sends too fast is slowed down."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[Any]
"""(channels, n), of a dtype that streams take."""


class Inbox:
    """Written by the task that reads the socket, emptied by the one that computes; both on one event loop."""

    def __init__(self, capacity: int) -> None:
        """`capacity`: samples of a channel above which `put` waits."""
        self._capacity = capacity
        self._parts: deque[tuple[Samples, float]] = deque()
        self._waiting = 0
        self._ended = False
        self._filled, self._room = asyncio.Event(), asyncio.Event()

    async def put(self, samples: Samples) -> None:
        """Add samples (channels, n), and wait until there is room for more."""
        self._parts.append((samples, time.monotonic()))
        self._waiting += samples.shape[1]
        self._filled.set()
        while self._waiting > self._capacity:
            self._room.clear()
            await self._room.wait()

    def end(self, *, discard: bool = False) -> None:
        """No more is coming; `discard`: forget what is waiting as well."""
        self._ended = True
        if discard:
            self._parts.clear()
        self._filled.set()

    async def take(self, most: int) -> tuple[Samples, float] | None:
        """What is waiting, up to `most` samples of a channel, and when the oldest of it came; None after the end."""
        while not self._parts:
            if self._ended:
                return None
            self._filled.clear()
            await self._filled.wait()
        arrived, taken, count = self._parts[0][1], [], 0
        while self._parts and count < most:
            samples, at = self._parts.popleft()
            if samples.shape[1] > most - count:
                self._parts.appendleft((samples[:, most - count :], at))
                samples = samples[:, : most - count]
            taken.append(samples)
            count += samples.shape[1]
        self._waiting -= count
        self._room.set()
        return np.concatenate(taken, axis=1), arrived

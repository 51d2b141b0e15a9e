"""`Crowd`: whether other programs take turns with this one on its cores, by what its own clocks say.

A thread that computes, or waits spinning, uses the processor all the time. Where it used less of it than the clock on
the wall went on, it was kept waiting.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

FAIR_SHARE = 0.8
"""Of the processor: below it, others take turns with us."""
LOOK_SECONDS = 0.1
"""Of computing, before it is judged: several turns of a scheduler."""
CALM_LOOKS = 3
"""One after the other, until we are alone again: a crowd may look away for a moment."""


class Times(NamedTuple):
    """In seconds: of the clock, and of the processor used by this thread and by all of the process."""

    wall: float
    thread: float
    process: float


def _times() -> Times:
    return Times(time.perf_counter(), time.thread_time(), time.process_time())


class Crowd:
    """What was seen of all computing that was watched in this process.

    Args:
        clock: what the times are.
    """

    def __init__(self, clock: Callable[[], Times] = _times) -> None:
        self._clock = clock
        self._wall = self._running = 0.0
        self._calm = CALM_LOOKS

    @property
    def is_there(self) -> bool:
        """Whether threads that wait for each other would wait for others' turns, too."""
        return self._calm < CALM_LOOKS

    @contextmanager
    def watched(self, threads: int = 1) -> Iterator[None]:
        """Inside, this thread computes without a pause, with so many threads of torch."""
        before = self._clock()
        yield
        wall, thread, process = (now - then for now, then in zip(self._clock(), before, strict=True))
        self._wall += wall  # no lock: what two threads lose of each other's is no matter
        self._running += min(thread, process / threads)  # whoever is kept waiting, the others wait for it
        if self._wall >= LOOK_SECONDS:
            self._calm = self._calm + 1 if self._running >= FAIR_SHARE * self._wall else 0
            self._wall = self._running = 0.0


CROWD = Crowd()
"""Of this process."""

"""What one connection may do, and the pace at which it may send."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, fields

from udse_fast.checks import Range, real_number, whole_number

MESSAGE_SECONDS = 0.002
"""Audio that a message counts as at least: an empty message is work too."""
HIGHEST_RATE, RATE_STEP = 192_000, 25
"""Rates that are served, in Hz. All common ones are multiples of 25; from and to another one, the filter of a resampler
may take seconds and hundreds of megabytes, which nobody may ask for from afar."""


@dataclass(frozen=True)
class Limits:
    """Of every connection.

    Args:
        message_bytes: largest message; a client that sends a larger one is closed with code 1009.
        speed: audio that is read per second, in seconds; a client that sends faster is slowed down by TCP.
        burst_seconds: audio that may come at once before `speed` counts.
        idle_seconds: time without a message after which a client is closed.
        stall_seconds: time for which a client may leave its results unread.
        channels: of one stream.
    """

    message_bytes: int = 1 << 18
    speed: float = 1.25
    burst_seconds: float = 2.0
    idle_seconds: float = 30.0
    stall_seconds: float = 10.0
    channels: int = 2

    def __post_init__(self) -> None:
        for limit in fields(self):
            check = whole_number if limit.name in ("message_bytes", "channels") else real_number
            bounds = Range(0, 1e9, excluded=True) if check is real_number else Range(1, 1 << 30)
            check(limit.name, getattr(self, limit.name), bounds)


class Pace:
    """A token bucket in seconds of audio: `burst` at once, then `speed` per second."""

    def __init__(self, speed: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._speed, self._burst, self._clock = speed, burst, clock
        self._budget, self._at = burst, clock()

    def spend(self, seconds: float) -> float:
        """Take the audio of a message from the budget; returns the time to wait before the next one is read."""
        now = self._clock()
        self._budget = min(self._burst, self._budget + (now - self._at) * self._speed) - max(seconds, MESSAGE_SECONDS)
        self._at = now
        return max(0.0, -self._budget / self._speed)

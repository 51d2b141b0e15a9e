"""Stateful resampling of one channel, aligned: output n belongs to the time of input n * source / target."""

from __future__ import annotations

import functools
import math

import numpy as np
import soxr
from numpy.typing import NDArray


@functools.cache
def resampling_delay(source: int, target: int) -> int:
    """Samples at `source` that must follow a sample before `Resampler` returns its time, at most: measured.

    soxr filters in blocks of its own size, which depends on the rates: 35 to 120 ms.
    """
    if source == target:
        return 0
    resampler, step = Resampler(source, target), math.ceil(source / 2000)
    silence = np.zeros(step, np.float32)
    returned, delay = 0, 0
    for pushed in range(step, 2 * source, step):
        returned += len(resampler.push(silence))
        delay = max(delay, pushed - math.floor(returned * source / target))
    return delay + step


class Resampler:
    """soxr (very high quality is the library's default "HQ"); the identity where the rates are equal."""

    def __init__(self, source: int, target: int) -> None:
        self._soxr = soxr.ResampleStream(source, target, 1, dtype="float32") if source != target else None

    def push(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n,) -> (m,): what is ready, m >= 0."""
        if self._soxr is None:
            return samples
        out: NDArray[np.float32] = self._soxr.resample_chunk(np.ascontiguousarray(samples))
        return out

    def finish(self) -> NDArray[np.float32]:
        """The rest. The resampler may not be used again."""
        if self._soxr is None:
            return np.zeros(0, np.float32)
        out: NDArray[np.float32] = self._soxr.resample_chunk(np.zeros(0, np.float32), last=True)
        return out

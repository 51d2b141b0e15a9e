"""Stateful resampling of one channel, aligned: output n belongs to the time of input n * source / target."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from udse_fast.errors import UdseError

ZERO_CROSSINGS = 29  # of the sinc on either side: the transition band is 0.45 to 0.55 of the lower rate
KAISER_BETA = 8.96  # stopband at -90 dB (Kaiser 1974)
PRODUCTS = 1 << 16  # at a time: they stay in the cache


def _half_width(source: int, target: int) -> int:
    """Samples at `source` that the filter reaches to either side."""
    return math.ceil(ZERO_CROSSINGS * max(1, source / target))


@functools.lru_cache(maxsize=16)
def _polyphase_filter(source: int, target: int) -> NDArray[np.float32]:
    """(phases, taps): the sinc of the lower rate under a Kaiser window, for outputs phase / phases after an input.

    Tap j weighs the input j - half + 1 samples from there. Gain at 0 Hz is 1 in every phase.
    """
    phases, half = target // math.gcd(source, target), _half_width(source, target)
    distance = np.arange(1 - half, half + 1) - np.arange(phases)[:, None] / phases
    window = np.interp(distance / half, np.linspace(-1, 1, 16385), np.kaiser(16385, KAISER_BETA))
    taps = np.sinc(distance * min(1, target / source)) * window
    taps[0, -1] = 0  # its mirror image, at -half, is not among the taps
    result = (taps / taps.sum(1, keepdims=True)).astype(np.float32)
    result.flags.writeable = False
    return result


class Resampler:
    """Linear-phase polyphase filter between any two whole rates; the identity where they are equal.

    From input to output flat to 0.45 of the lower rate (0.0005 dB), below -89 dB from 0.55 on. The concatenated output
    is the same, bit for bit, however the input is cut.

    Args:
        source, target: Hz.
    """

    def __init__(self, source: int, target: int) -> None:
        self.source, self.target = source, target
        self._returned = 0
        self._kept = np.zeros(max(0, self.delay - 1), np.float32)  # inputs from the first tap of the next output on

    @property
    def delay(self) -> int:
        """Samples at `source` that must follow a sample before the outputs up to its time are returned: exact."""
        return 0 if self.source == self.target else _half_width(self.source, self.target)

    def process(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n,) float32 -> (m,) float32: what is ready, m >= 0."""
        if self.source == self.target:
            return samples
        common = math.gcd(self.source, self.target)
        step, phases = self.source // common, self.target // common
        taps = _polyphase_filter(self.source, self.target)
        kept = np.concatenate([self._kept, samples])
        # time of the outputs in units of input / phases, counted from the last input not after the next output
        time = self._returned * step % phases
        ready = max(0, -(-((len(kept) - taps.shape[1] + 1) * phases - time) // step))
        out = np.empty(ready, np.float32)
        group = PRODUCTS // taps.shape[1]
        for start in range(0, ready, group):
            first, phase = np.divmod(time + step * np.arange(start, min(start + group, ready), dtype=np.int64), phases)
            windows = sliding_window_view(kept, taps.shape[1])[first]
            # sums along the contiguous axis: their order depends on the number of taps only
            out[start : start + group] = (windows * taps[phase]).sum(1)
        self._kept = kept[(time + step * ready) // phases :].copy()
        self._returned += ready
        return out

    def flush(self) -> NDArray[np.float32]:
        """The rest, as if silence followed: ceil(inputs * target / source) outputs in all. Nothing may follow."""
        return self.process(np.zeros(self.delay, np.float32))

    def state(self) -> dict[str, Any]:
        """What `restore` needs to go on from here: ints, and the inputs that are still needed, (k,) float32 tensor."""
        kept = torch.from_numpy(self._kept.copy())
        return {"source": self.source, "target": self.target, "returned": self._returned, "kept": kept}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from where `state` was called.

        Raises:
            UdseError: the state of a resampler between other rates.
        """
        rates = int(state["source"]), int(state["target"])
        if rates != (self.source, self.target):
            raise UdseError(
                f"state: expected that of a resampler from {self.source} to {self.target} Hz, "
                f"got one from {rates[0]} to {rates[1]} Hz; restore it with the rates it was saved with"
            )
        self._returned, self._kept = int(state["returned"]), state["kept"].numpy().copy()

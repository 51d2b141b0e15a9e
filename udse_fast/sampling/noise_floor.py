"""The least that steady noise has: minimum statistics of a signal that goes on (`NoiseFloor`)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, pad

WINDOW_SECONDS = 0.9
"""In which speech has a gap in every band, and steady noise has none."""

SMOOTHING_SECONDS = 0.1
"""After which a block's power weighs 1/e: the minimum of unsmoothed powers lies far below their mean."""

BAND_BINS = 9
"""Neighbouring bins whose mean power is looked at (280 Hz with 510 samples at 16 kHz), for the same reason."""


@dataclass(frozen=True)
class NoiseFloor:
    """The smallest smoothed power of the mixture within a window, times a factor (Martin 2001).

    What lies before the signal counts as silence: there is no floor until a window has passed.
    """

    factor: float
    """From the minimum to the variance of the noise."""
    kept: float
    """What a block leaves of the smoothed power."""
    smoothed: Tensor
    """(F,) at the level of the input, as `recent`."""
    recent: Tensor
    """(blocks of a window, F) of smoothed powers, the latest last."""

    @classmethod
    def over(cls, bins: int, factor: float, block_seconds: float) -> NoiseFloor:
        """That of a signal which has not begun."""
        recent = torch.zeros(max(1, round(WINDOW_SECONDS / block_seconds)), bins, dtype=torch.float32)
        return cls(factor, math.exp(-block_seconds / SMOOTHING_SECONDS), recent[0].clone(), recent)

    def after(self, power: Tensor) -> NoiseFloor:
        """The floor with a block of the mixture's power (F, K) more, at the level of the input."""
        reach = BAND_BINS // 2
        band = avg_pool1d(pad(power.mean(1)[None, None], (reach, reach), mode="replicate"), BAND_BINS, 1)[0, 0]
        before = self.smoothed.to(band)
        smoothed = torch.where(before > 0, self.kept * before + (1 - self.kept) * band, band)
        return replace(self, smoothed=smoothed, recent=torch.cat([self.recent[1:].to(band), smoothed[None]]))

    @property
    def variance(self) -> Tensor:
        """(F,) at the level of the input."""
        return self.factor * self.recent.amin(0)

    def state(self) -> dict[str, Any]:
        """What the next block depends on."""
        return {"smoothed": self.smoothed, "recent": self.recent}

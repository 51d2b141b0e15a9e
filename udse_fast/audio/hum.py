"""What stands still in a signal: an offset (DC) and mains hum, which would set the level that a prior is shown.

The lines of the mains, multiples of 50 or 60 Hz, are found by the steadiness of their amplitude and phase over pieces
of a signal, which no speech has, and only where they are a good part of it. A least-squares fit of cosines and sines is
all that is taken out then. A signal without hum stays as it is, bit for bit.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

MAINS = (50.0, 60.0)
HIGHEST = 1000.0
"""Hz, up to which lines are looked for."""
PIECES = 6
LEAST_SECONDS = 0.5
"""Of a signal in which lines can be told from voices."""
LEAST_POWER = 0.3
"""Share of offset and lines in the power of a signal from which on they are taken out."""
LEAST_SHARE = 0.01
"""And of a single line."""
LEAST_STEADINESS = 0.9
"""Correlation of a line in one piece with the same in the next; 1 is a tone that goes on."""
MOST_OFF = 0.3
"""Hz, by which the mains may be off."""
ROUNDS = 3
"""Weaker lines are found when the stronger ones are out."""


def steady_part(signal: Tensor, sample_rate: int) -> Tensor:
    """Return the offset and the hum in a signal.

    Args:
        signal: (n,) float32.
        sample_rate: Hz.

    Returns:
        (n,) float32; zeros where there is nothing of that kind, or the signal is shorter than half a second.
    """
    found = torch.zeros_like(signal)
    if len(signal) < LEAST_SECONDS * sample_rate:
        return found
    kinds = [_lines(signal, sample_rate, mains, LEAST_POWER) for mains in MAINS]
    share, mains, lines = max(zip((share for share, _ in kinds), MAINS, (lines for _, lines in kinds), strict=True))
    if share < LEAST_POWER:
        return found
    for _ in range(ROUNDS):
        found = found + _fitted(signal - found, sample_rate, lines)
        if not any(lines):
            break  # an offset alone
        lines = _lines(signal - found, sample_rate, mains, LEAST_SHARE)[1]
        if not lines:
            break
    return found


def _lines(signal: Tensor, sample_rate: int, mains: float, least: float) -> tuple[float, list[float]]:
    """Steady lines: their share in the power, and their frequencies, Hz; 0 is an offset. None where all that is at
    these frequencies has less than the `least` share."""
    # the boxcar in front of the decimation is no good filter, but what it lets through is not steady
    factor = max(1, int(sample_rate / (2 * HIGHEST)))
    count = len(signal) // (factor * PIECES)
    slow = signal[-count * factor * PIECES :].view(PIECES, count, factor).mean(-1)
    amplitude = torch.einsum("pc,lpc->lp", slow.to(torch.complex64), _tones(mains, sample_rate / factor, count))
    number = torch.arange(len(amplitude))
    twice = torch.where(number == 0, 1.0, 2.0)
    share = twice * amplitude.abs().square().mean(1) / signal.square().mean().clamp_min(1e-20)
    if share.sum() < least:
        return 0.0, []
    now, following = amplitude[:, :-1], amplitude[:, 1:]
    product = (following * now.conj()).sum(1)
    energy = (following.abs().square() + now.abs().square()).sum(1) / 2
    off = product.angle() / (2 * math.pi * count * factor / sample_rate) / number.clamp_min(1)
    steady = (product.abs() > LEAST_STEADINESS * energy) & (share > LEAST_SHARE) & (off.abs() < MOST_OFF)
    weight = share * steady * (number > 0)
    exact = mains + float((weight * off).sum() / weight.sum().clamp_min(1e-20))
    return float((share * steady).sum()), [exact * int(line) for line in steady.nonzero()[:, 0]]


@lru_cache(maxsize=16)
def _tones(mains: float, rate: float, count: int) -> Tensor:
    """(lines, pieces, count) exp(-2 pi i k f t) / count, by which the amplitudes of the lines 0, f, 2 f are found."""
    time = torch.arange(PIECES * count, dtype=torch.float64).view(PIECES, count) / rate
    number = torch.arange(int(HIGHEST / mains) + 1, dtype=torch.float64)
    phase = 2 * math.pi * mains * number[:, None, None] * time
    return torch.polar(torch.full_like(phase, 1 / count), -phase).to(torch.complex64)


def _fitted(signal: Tensor, sample_rate: int, lines: list[float]) -> Tensor:
    """(n,), the least-squares fit of tones at these frequencies."""
    time = torch.arange(len(signal), dtype=torch.float64) / sample_rate
    phase = 2 * math.pi * torch.tensor(lines, dtype=torch.float64)[:, None] * time
    tones = torch.cat([phase.cos(), phase.sin()[torch.tensor(lines) > 0]])
    weights = torch.linalg.solve(tones @ tones.T, tones @ signal.double())
    return (weights @ tones).to(signal)

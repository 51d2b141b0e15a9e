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
    amplitudes, power = _amplitudes(signal, sample_rate)
    if max(float(_shares(lines, power).sum()) for lines in amplitudes.values()) < LEAST_POWER:
        return found  # the usual case, at little cost
    steady = {mains: _steady(lines, power, mains, len(signal) / sample_rate) for mains, lines in amplitudes.items()}
    mains = max(steady, key=lambda mains: steady[mains][0])
    share, lines = steady[mains]
    if share < LEAST_POWER:
        return found
    for _ in range(ROUNDS):
        found = found + _fitted(signal - found, sample_rate, lines)
        if not any(lines):
            break  # an offset alone
        amplitudes, power = _amplitudes(signal - found, sample_rate)
        lines = _steady(amplitudes[mains], power, mains, len(signal) / sample_rate)[1]
        if not lines:
            break
    return found


def _amplitudes(signal: Tensor, sample_rate: int) -> tuple[dict[float, Tensor], float]:
    """By mains, the amplitudes (pieces, lines) complex at 0, f, 2 f, ...; and the power of the signal."""
    # the boxcar in front of the decimation is no good filter, but what it lets through is not steady
    factor = max(1, int(sample_rate / (2 * HIGHEST)))
    count = len(signal) // (factor * PIECES)
    slow = signal[-count * factor * PIECES :].view(PIECES, count, factor).mean(-1)
    both = torch.view_as_complex(torch.bmm(slow[:, None], _tones(sample_rate / factor, count)).view(PIECES, -1, 2))
    power = float(torch.dot(signal, signal)) / len(signal)
    return dict(zip(MAINS, both.split([_line_count(mains) for mains in MAINS], dim=1), strict=True)), power


def _line_count(mains: float) -> int:
    return int(HIGHEST / mains) + 1


@lru_cache(maxsize=16)
def _tones(rate: float, count: int) -> Tensor:
    """(pieces, count, 2 lines) cos and -sin of 2 pi f t over the count, for the lines f of all mains."""
    time = torch.arange(PIECES * count, dtype=torch.float64).view(PIECES, count, 1) / rate
    lines = torch.cat([mains * torch.arange(_line_count(mains), dtype=torch.float64) for mains in MAINS])
    phase = 2 * math.pi * time * lines
    return (torch.stack([phase.cos(), -phase.sin()], dim=-1) / count).flatten(2).float()


def _shares(amplitude: Tensor, power: float) -> Tensor:
    """(lines,), of the power of the signal; a real tone has half of it at the negative frequency."""
    share = 2 * torch.view_as_real(amplitude).square().sum(-1).mean(0) / max(power, 1e-20)
    share[0] /= 2
    return share


def _steady(amplitude: Tensor, power: float, mains: float, seconds: float) -> tuple[float, list[float]]:
    """The lines that go on from piece to piece: their share in the power, and their frequencies, Hz; 0 is an offset."""
    number, share = torch.arange(amplitude.shape[1]), _shares(amplitude, power)
    now, following = amplitude[:-1], amplitude[1:]
    product = (following * now.conj()).sum(0)
    energy = (following.abs().square() + now.abs().square()).sum(0) / 2
    off = product.angle() / (2 * math.pi * seconds / PIECES) / number.clamp_min(1)
    steady = (product.abs() > LEAST_STEADINESS * energy) & (share > LEAST_SHARE) & (off.abs() < MOST_OFF)
    weight = share * steady * (number > 0)
    exact = mains + float((weight * off).sum() / weight.sum().clamp_min(1e-20))
    return float((share * steady).sum()), [exact * int(line) for line in steady.nonzero()[:, 0]]


def _fitted(signal: Tensor, sample_rate: int, lines: list[float]) -> Tensor:
    """(n,), the least-squares fit of tones at these frequencies."""
    time = torch.arange(len(signal), dtype=torch.float64) / sample_rate
    phase = 2 * math.pi * torch.tensor(lines, dtype=torch.float64)[:, None] * time
    tones = torch.cat([phase.cos(), phase.sin()[torch.tensor(lines) > 0]])
    weights = torch.linalg.solve(tones @ tones.T, tones @ signal.double())
    return (weights @ tones).to(signal)

"""`Restraint`: takes less away where what a sampler took for noise is speech.

Noise does not know when somebody speaks. What is taken away from noisy speech is there between the words, too; what is
taken from clean speech (loud sibilants, most of all, which look like bursts of noise) is there only while somebody
speaks, and there is little of it. Evidence of the latter is therefore

    e = max(SNR, 0) + 10 log10(mean_t r / N)  dB,

with r = |x - s|^2 what was taken away, N its mean between the words, and SNR = 10 log10(sum |s|^2 / sum r). Then of
r in a band and frame the part beyond a N is taken for lost speech, of the power E, and the gain on what is taken away
is the one with the least expected error, N / (N + E). Noise that sounds with the words alone is spared as well.
Constants were chosen on tuning files: `benchmarks/results/settings.md`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from udse_fast.audio.spectral import Spectral

BANDS = 8
"""Equally wide on the ERB scale, triangles that overlap by half."""
EVIDENCE = 14.0, 18.0
"""dB at which restraint begins, and at which it is complete."""
TRUST = 15.0, 25.0
"""SNR, dB, from which and up to which the two below go from the first value to the second."""
ALLOWED = 4.0, 1.0
"""a: so many times N is still noise."""
HIGHEST = 1.0, 10.0
"""E is less than so many times the mean of r over time, but for its weight."""
WEIGHT = 8.0
"""Of E."""
QUIET = 18.0, 24.0
"""SNR, dB, from which and up to which N goes from that far from words to that in the quietest frames."""
QUIET_SHARE = 0.12
"""Of the frames, in either kind of pause."""
APART_SECONDS = 0.24
"""Words reach so far in front of them and behind."""
NEAR_SECONDS = 0.032
"""On either side of a frame, over which r is averaged for E."""
SILENCE = 1e-7
"""Power relative to the loudest frame of those that are no pauses, but digital silence or a gate."""
LEAST_SECONDS = 0.5, 1.5
"""Without so many frames there is no evidence: of a signal, and of a stream, whose noise model learns meanwhile."""
REMEMBERED_SECONDS = 4.0
"""Of a stream."""
STAYS_SECONDS, STAYS = 0.288, 2.0
"""A stream does not know the pauses to come: what is always there for so long is noise that has begun, and N is not
less than so many times its minimum. Sibilants are shorter."""


def erb_bands(bins: int, bin_hertz: float) -> Tensor:
    """Shares of the bins in `BANDS` bands, (BANDS, F), that add up to 1 in every bin (Glasberg and Moore 1990)."""
    number = 21.4 * torch.log10(1 + 0.00437 * bin_hertz * torch.arange(bins, dtype=torch.float64))
    place = (BANDS - 1) * number / number[-1]
    return (1 - (place - torch.arange(BANDS)[:, None]).abs()).clamp_min(0).float()


def _between(value: float, ends: tuple[float, float]) -> float:
    """Where a value is: 0 up to the first end, 1 from the second on."""
    return min(1.0, max(0.0, (value - ends[0]) / (ends[1] - ends[0])))


def _decibels(ratio: Tensor) -> float:
    return 10 * math.log10(float(ratio))


class Restraint:
    """What a read-out says of the speech, with more of the mixture where speech was taken for noise.

    Args:
        spectral: of the spectrograms.
        goes_on: calls are blocks of one signal, of which `REMEMBERED_SECONDS` are remembered; else every call is a
            signal of its own.
    """

    def __init__(self, spectral: Spectral, goes_on: bool = False) -> None:
        def frames(seconds: float) -> int:
            return max(1, round(seconds * spectral.sample_rate / spectral.hop_length))

        self.bands = erb_bands(spectral.bins, spectral.sample_rate / spectral.n_fft)
        self.least, self.apart, self.near = map(frames, (LEAST_SECONDS[goes_on], APART_SECONDS, NEAR_SECONDS))
        self.stays = frames(STAYS_SECONDS) if goes_on else 0
        self.remembered = frames(REMEMBERED_SECONDS) if goes_on else 0
        self.nothing = torch.zeros(2 + BANDS, 0, dtype=torch.float32)
        """What is recent when a signal begins."""

    def __call__(self, speech: Tensor, mixture: Tensor, recent: Tensor) -> tuple[Tensor, Tensor]:
        """Speech (F, T) of speech and mixture (F, T) complex, not compressed; the same where nothing speaks for it.

        Args:
            speech, mixture: of the frames that come next.
            recent: what the last call said of the frames before, (2 + BANDS, n): by frame the powers of the mixture
                and of the speech, and of what was taken away by band.

        Returns:
            The speech, and what is recent for the next call.
        """
        taken = mixture - speech
        powers = [z.abs().square() for z in (mixture, speech, taken)]
        fresh = torch.cat([powers[0].sum(0)[None], powers[1].sum(0)[None], self.bands.to(powers[2]) @ powers[2]])
        frames = fresh.shape[1]
        recent = torch.cat([recent.to(fresh), fresh], dim=1)[:, -max(frames, self.remembered) :]
        spared = self._spared(recent)
        if spared is not None:
            speech = speech + (self.bands.to(fresh).T @ spared[:, -frames:]) * taken
        return speech, recent[:, max(0, recent.shape[1] - self.remembered) :].clone()

    def _spared(self, recent: Tensor) -> Tensor | None:
        """Share of what was taken away that is given back, (BANDS, n); None: nothing."""
        mixture, speech, taken = recent[0], recent[1], recent[2:]
        sounds = mixture > SILENCE * mixture.max()
        count = int(sounds.sum())
        if count < self.least:
            return None
        taken = taken + 1e-10 * mixture.mean()
        mean = taken[:, sounds].mean(1, keepdim=True)
        snr = _decibels(speech[sounds].sum() / (count * mean.sum()) + 1e-6)
        words = F.max_pool1d(speech[None], 2 * self.apart + 1, 1, self.apart)[0]
        pauses = []
        for power in (words, mixture):
            highest = power[sounds].kthvalue(max(1, int(QUIET_SHARE * count))).values
            pauses.append(taken[:, sounds & (power <= highest)].mean(1, keepdim=True))
        share = _between(snr, QUIET)
        noise, all_noise = (n[0] ** (1 - share) * n[1] ** share for n in (pauses, [p.sum() for p in pauses]))
        evidence = max(snr, 0) + _decibels(mean.sum() / all_noise)
        restraint = _between(evidence, EVIDENCE)
        if restraint == 0:
            return None
        trust = _between(snr, TRUST)
        allowed = ALLOWED[0] + trust * (ALLOWED[1] - ALLOWED[0])
        most = HIGHEST[0] * (HIGHEST[1] / HIGHEST[0]) ** trust
        near = F.avg_pool1d(taken, 2 * self.near + 1, 1, self.near, count_include_pad=False)
        if self.stays:
            lowest = -F.max_pool1d(-near, self.stays, 1)
            noise = torch.maximum(noise, STAYS * F.pad(lowest, (self.stays - 1, 0)))
        lost = WEIGHT * (torch.minimum(near, most * mean) - allowed * noise).clamp_min(0)
        return restraint * lost / (noise + lost)

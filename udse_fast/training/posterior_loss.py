"""What a posterior network is trained for, per mixture, and the calls that go on from its own noise variance."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from udse_fast.networks.estimate import Said
from udse_fast.sampling.noise_guesses import NO_NOISE, factorised, predicted, smoothed, steady_guess
from udse_fast.training.posterior_batches import PosteriorBatch

FLOOR = 1e-4
"""Of the mixture's energy: errors below it do not count."""
EAR_EXPONENT = 0.6
"""On top of the compression by 1/2: magnitudes as |S|^0.3."""
WEIGHTS = {
    "mean": 1.0,
    "waveform": 0.3,
    "ear": 0.5,
    "intelligibility": 1.5,
    "variance": 0.05,
    "noise": 0.06,
    "log_noise": 0.06,
}
LEVELS = 0.02, 1.0
"""Noise levels a of the diffused states, where the loudest bin of a mixture is 1."""
DIFFUSED_SHARE = 0.15
SEGMENT, SEGMENT_STEP = 24, 6
"""Frames of a segment of `intelligibility`, 0.38 s, and from one to the next."""


def relative_error(estimate: Tensor, clean: Tensor, mixture: Tensor) -> Tensor:
    """|estimate - clean|^2 over |mixture|^2, (N,), of (N, 2, F, T) each."""
    return _energy(estimate - clean) / _energy(mixture).clamp_min(1e-6)


def _energy(z: Tensor) -> Tensor:
    return z.square().sum((1, 2, 3))


def _linear(z: Tensor) -> Tensor:
    return z * z.square().sum(1, keepdim=True).add(1e-12).sqrt()


@lru_cache(maxsize=4)
def third_octaves(bins: int, bin_hertz: float = 16000 / 510) -> Tensor:
    """(15, F) of 0 and 1: the bands of one third of an octave from 150 Hz on that ESTOI listens to."""
    centres = 150 * 2 ** (torch.arange(15) / 3)
    hertz = torch.arange(bins) * bin_hertz
    inside = (hertz >= centres[:, None] * 2 ** (-1 / 6)) & (hertz < centres[:, None] * 2 ** (1 / 6))
    return inside.float()


def intelligibility(estimate: Tensor, clean: Tensor) -> Tensor:
    """Correlation of band envelopes in segments, (N,), in [-1, 1], of |S|^2 (N, F, T) of the estimate and the truth.

    As ESTOI (Jensen and Taal 2016): over a segment every band, then every frame, to mean 0 and length 1. Segments
    count by the energy of the speech in them, as those of silence do not at all there.
    """

    def normalised(power: Tensor) -> Tensor:
        envelope = (third_octaves(power.shape[1]).to(power) @ power + 1e-7).sqrt()
        segments = envelope.unfold(-1, SEGMENT, SEGMENT_STEP).transpose(1, 2)  # (N, segments, bands, frames)
        for axis in (-1, -2):
            segments = segments - segments.mean(axis, keepdim=True)
            segments = segments * (segments.square().sum(axis, keepdim=True) + 1e-8).rsqrt()
        return segments

    loud = clean.sum(1).unfold(-1, SEGMENT, SEGMENT_STEP).mean(-1)
    weight = (loud > 1e-2 * loud.amax(1, keepdim=True)).float() * (loud > 1e-4)
    correlation = (normalised(estimate) * normalised(clean)).sum((-1, -2)) / SEGMENT
    return (weight * correlation).sum(1) / weight.sum(1).clamp_min(1)


def posterior_losses(said: Said, batch: PosteriorBatch, blind: Tensor | None = None) -> dict[str, Tensor]:
    """Mean over the batch of each term of `WEIGHTS`, (); those of V over the mixtures where `blind` (N,) is 1.

    The errors are in log energy, so that a mixture counts alike at any SNR. "mean" is of the posterior mean,
    "waveform" the same without the compression, "ear" of the magnitudes |s|^0.6 of the read-out, whose
    `intelligibility` counts, too. "variance" is the likelihood of the posterior variance, "noise" the Itakura-Saito
    divergence of V, "log_noise" its squared log ratio.
    """
    mixture, clean = (torch.view_as_real(z).movedim(-1, 1) for z in (batch.mixture, batch.clean))
    error = (said.clean - clean).square().sum(1)
    linear = relative_error(_linear(said.clean), _linear(clean), _linear(mixture))
    heard = (said.clean.detach() * said.gain.exp().unsqueeze(1)).square().sum(1)  # the mean stays the mean
    truth = clean.square().sum(1)
    ear = [(z + 1e-5) ** (EAR_EXPONENT / 2) for z in (heard, truth, mixture.square().sum(1))]
    ear_error = (ear[0] - ear[1]).square().sum((1, 2)) / ear[2].square().sum((1, 2))
    ratio = (batch.noise_variance.log() - said.log_noise).clamp(-8, 5)
    share = 1.0 if blind is None else blind[:, None, None]
    return {
        "mean": (relative_error(said.clean, clean, mixture) + FLOOR).log().mean(),
        "waveform": (linear + FLOOR).log().mean(),
        "ear": (ear_error + FLOOR).log().mean(),
        "intelligibility": -intelligibility(heard.square(), truth.square()).mean(),
        "variance": (error.detach() / said.variance + said.variance.log()).mean(),
        "noise": (share * (ratio.exp() - ratio - 1)).mean(),
        "log_noise": (share * ratio.square()).mean(),
    }


def weighted(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack([weight * losses[name] for name, weight in WEIGHTS.items()]).sum()


def diffused_states(clean: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A state u = s + a z (N, 2, F, T) for a share of the mixtures, and its a (N,); for the others an infinite a.

    a is log-uniform over the levels of the reverse process.
    """
    count = len(clean)
    level = torch.exp(math.log(LEVELS[0]) + math.log(LEVELS[1] / LEVELS[0]) * torch.rand(count, generator=generator))
    diffused = torch.rand(count, generator=generator) < DIFFUSED_SHARE
    z = torch.randn(torch.view_as_real(clean).shape, generator=generator).movedim(-1, 1) * math.sqrt(0.5)
    kept = torch.where(diffused, level, 0.0).to(clean.device)
    state = torch.view_as_real(clean).movedim(-1, 1) + kept[:, None, None, None] * z.to(clean.device)
    return state, torch.where(diffused, level, math.inf).to(clean.device)


def first_guess(mixture: Tensor, generator: torch.Generator, block: int = 0) -> Tensor:
    """What the first call is told, (N, F, T), for mixtures (N, F, T): steady, or for a causal network from the past."""

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    guesses = []
    for item in mixture:
        if block:
            past = predicted(item.abs() ** 4, math.exp(uniform(math.log(10), math.log(200))), block)
            guesses.append(uniform(0.2, 1) * smoothed(past, 9, 1).clamp_min(NO_NOISE))
        else:
            quantile = uniform(0.1, 0.5) if uniform(0, 1) < 0.5 else None
            guesses.append(steady_guess(item, uniform(0.2, 1), quantile))
    return torch.stack(guesses)


def next_guess(said: Said, batch: PosteriorBatch, generator: torch.Generator, block: int = 0) -> Tensor:
    """(N, F, T), what the second call is told: mostly what the first one said; at times the truth, exact or distorted.

    What it said comes raw or as an NMF; for a causal network mostly from the blocks before.
    """
    own = said.log_noise.detach().exp()
    given = []
    for item, kind in enumerate(torch.rand(len(own), generator=generator).tolist()):
        free = float(torch.rand((), generator=generator))
        if kind < (0.2 if block else 0.4):
            given.append(own[item])
        elif kind < 0.8:
            by_past = block and kind < 0.75
            memory = math.exp(math.log(0.5) + math.log(400) * free)
            rank = 4 + int(13 * free)
            given.append(predicted(own[item], memory, block) if by_past else factorised(own[item], rank, seed=item))
        elif kind < 0.92:
            given.append(batch.noise_variance[item])
        else:
            field = torch.randn(1, 1, 5, 6, generator=generator)
            field = F.interpolate(field, own.shape[1:], mode="bilinear")[0, 0]
            given.append(batch.noise_variance[item] * torch.exp(field.to(own.device)))
    return torch.stack(given).clamp(1e-10, 1e2)

"""Amortised EM: a network that was trained to know E[s | x, V] makes the E-step in one call; NMF-IS is the M-step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from udse_fast.kernels.posterior_step.reference import variance
from udse_fast.networks.conditions import Conditions
from udse_fast.networks.estimate import HIGHEST_LEVEL, Estimate
from udse_fast.sampling.likelihoods.base import SpeechLikelihood, Transition
from udse_fast.sampling.noise_guesses import steady_guess
from udse_fast.sampling.noise_models import NoiseModel
from udse_fast.sampling.randomness import Draw, drawn

NOISE_POWER = 1.273
"""V / (E|c(nu)|^2)^2 of complex Gaussian noise nu of variance V, c(nu) = |nu|^1/2 exp(i arg nu): 16 / (4 pi)."""
START_QUANTILE = 0.15
"""Of the mixture's power in a band over time: below it there is noise alone."""


@dataclass
class Amortised(SpeechLikelihood):
    """EM whose E-step is a posterior network; steps x rounds of calls.

    Each round, in its first step, at a noise level a above `HIGHEST_LEVEL`, where the state says nothing:

    1. E-step: s0 = E[s | x, V], its variance, and the V that the network believes in
    2. M-step: NMF-IS on kappa times that V, in the domain of the mixture, E|c(nu)|^2 = sqrt(V / 1.273)

    and with more than one step, a sample of the posterior from there on, by the same network told the state:

    3. u' = s0 + k (u - s0) + sqrt((1 - k) a'^2 + (1 - k)^2 C) z, k = (a'/a)^2, C the variance of s0; k = 0 at first
    4. s0 = E[s | u', x, V]

    The last s0 is read out between the mean and the estimate for the ear, with a share of the mixture, in the linear
    domain. What stays of the noise hides what the estimate does to it.
    """

    noise_bias: float = 1.0
    """kappa: factor of the power of the M-step."""
    listening: float = 0.5
    """Share of the estimate to listen to in what is read out; the rest is the posterior mean."""
    mixture_share: float = 0.08
    """Of what is read out, hence the greatest attenuation: 22 dB."""

    needs_estimate: ClassVar[bool] = True
    carries_noise: ClassVar[bool] = False

    @classmethod
    def start_noise(cls, mixture: Tensor, rank: int, seed: int, share: float) -> tuple[Tensor, Tensor]:
        """A steady noise at `share` of a low quantile of each band, uneven enough for NMF to part its columns."""
        steady = (steady_guess(mixture, share, START_QUANTILE) / NOISE_POWER).sqrt()
        generator = torch.Generator().manual_seed(seed)
        shape = len(mixture), rank
        W = steady[:, :1] * (0.5 + torch.rand(shape, generator=generator, dtype=steady.dtype)).to(steady)
        H = (0.5 + torch.rand(rank, mixture.shape[1], generator=generator, dtype=steady.dtype)).to(steady)
        return W, H / rank

    @property
    def rounds(self) -> int:
        return self.problem.em_rounds

    def conditions(self, source: str) -> Conditions:
        """The mixture, and V as it was fitted."""
        return conditions_of(self.mixture, self.noise_model)

    def next_state(self, transition: Transition, draw: Draw) -> Tensor:
        t, estimate = transition, transition.estimate
        assert estimate is not None
        if t.step == 0:
            self.noise_model.fit(self.noise_bias * believed_power(estimate))
        if t.following is None:
            heard = estimate.speech if estimate.heard is None else estimate.heard
            read_out = _between(estimate.speech, heard, self.listening)
            return _between(read_out, self.mixture, self.mixture_share)
        level = t.coefficients.sigma / t.coefficients.delta
        following = t.following.sigma / t.following.delta
        kept = (following / level) ** 2
        if isinstance(level, Tensor):
            kept = torch.where(level > HIGHEST_LEVEL, 0.0, kept).to(t.state.real)
        elif level > HIGHEST_LEVEL:
            kept = 0.0
        s0 = estimate.speech
        assert t.noise is not None
        fresh = ((1 - kept) * following**2 + (1 - kept) ** 2 * estimate.variance).sqrt()
        fresh = fresh * drawn(t.noise, t.state.shape, t.state)
        return t.following.delta * (s0 + kept * (t.state / t.coefficients.delta - s0) + fresh)


def conditions_of(mixture: Tensor, noise_model: NoiseModel) -> Conditions:
    """What the posterior network is told: the mixture (F, T), and V as it was fitted."""
    noise_variance = NOISE_POWER * variance(noise_model.variance).square()
    return Conditions(noisy=mixture[None], noise_variance=noise_variance[None])


def believed_power(estimate: Estimate) -> Tensor:
    """E|c(nu)|^2 (F, T) of the noise of the V that the network believes in, for the M-step."""
    return (estimate.noise_variance.mean(0) / NOISE_POWER).sqrt()


def _between(z: Tensor, other: Tensor, share: float) -> Tensor:
    """(1 - share) z|z| + share other|other|, compressed again."""
    linear = (1 - share) * z * z.abs() + share * other * other.abs()
    return linear * linear.abs().clamp_min(1e-20).rsqrt()

"""DDRM that starts from an amortised fit of the noise, and is heard together with the estimate for the ear."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from udse_fast.kernels.coefficients import Coefficients
from udse_fast.kernels.posterior_step.reference import variance
from udse_fast.networks.conditions import SPEECH_SOURCE
from udse_fast.sampling.likelihoods.amortised import Amortised, believed_power, conditions_of
from udse_fast.sampling.likelihoods.ddrm import DDRM
from udse_fast.sampling.requests import Pass
from udse_fast.sampling.sde import SDE

HIGHEST_TIME = 1.0
"""At which the state says nothing beside the recording."""


@dataclass
class AmortisedDDRM(DDRM):
    """EM by a posterior network, then a short reverse pass by the prior: two estimates that err differently.

    1. em_rounds times: E-step, E[s | x, V] and V by the posterior network; M-step, NMF-IS on that V, `fits` times
    2. start: with g = a^2 / (a^2 + V) and m = E[s|x, V], u = g x + (1 - g) m + sqrt(a^2 - g^2 V) z: the mixture where
       its noise is weaker than the level a, what is known of the speech where it is stronger
    3. DDRM from there, whose NMF goes on from that V; a few steps are enough
    4. what is read out of the samples, and the posterior network's estimate for the ear, share `listening`, are
       averaged in the linear domain
    """

    listening: float = 0.4
    """Share of the estimate for the ear in what is read out."""
    fits: int = 30
    """M-steps between two E-steps: what the network says about the noise is smooth, and NMF may follow it closely."""

    carries_noise: ClassVar[bool] = False
    needs_posterior_network: ClassVar[bool] = True
    _mean: Tensor | None = field(default=None, init=False)
    _heard: Tensor | None = field(default=None, init=False)

    @classmethod
    def start_noise(cls, mixture: Tensor, rank: int, seed: int, share: float) -> tuple[Tensor, Tensor]:
        return Amortised.start_noise(mixture, rank, seed, share)

    def prepare(self, sde: SDE) -> Pass[None]:
        """EM; the last posterior mean and estimate for the ear are kept."""
        coefficients = sde.coefficients(HIGHEST_TIME, 1.0, 0.0)
        for _ in range(self.problem.em_rounds):
            told = conditions_of(self.mixture, self.noise_model)
            (answer,) = yield [
                self.problem.request(self.mixture[None], HIGHEST_TIME, SPEECH_SOURCE, coefficients, told, estimate=True)
            ]
            estimate = answer.estimate
            power = believed_power(estimate)
            for _ in range(self.fits):
                self.noise_model.fit(power)
            self._mean = estimate.speech[0]
            self._heard = self._mean if estimate.heard is None else estimate.heard[0]

    def start(self, source: str, noise: Tensor, coefficients: Coefficients) -> Tensor:
        """State around the mixture and the posterior mean."""
        assert self._mean is not None
        c, V = coefficients, variance(self.noise_model.variance)
        level2 = (c.sigma / c.delta) ** 2
        g = level2 / (level2 + V)
        missing = (level2 - g.square() * V).clamp_min(0).sqrt()
        return c.delta * (self._mean + g * (self.mixture - self._mean) + missing * noise)

    def heard(self) -> Tensor | None:
        return self._heard

"""DDRM that starts from an amortised fit of the noise, and is heard together with the estimate for the ear."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

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
    2. DDRM with that V as its start, of which a few steps are enough
    3. what is read out of the samples, and the posterior network's estimate for the ear, share `listening`, are
       averaged in the linear domain
    """

    listening: float = 0.4
    """Share of the estimate for the ear in what is read out."""
    fits: int = 30
    """M-steps between two E-steps: what the network says about the noise is smooth, and NMF may follow it closely."""

    carries_noise: ClassVar[bool] = False
    needs_posterior_network: ClassVar[bool] = True
    _heard: Tensor | None = field(default=None, init=False)

    @classmethod
    def start_noise(cls, mixture: Tensor, rank: int, seed: int, share: float) -> tuple[Tensor, Tensor]:
        return Amortised.start_noise(mixture, rank, seed, share)

    def prepare(self, sde: SDE) -> Pass[None]:
        """EM; the last estimate for the ear is kept."""
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
            self._heard = estimate.speech[0] if estimate.heard is None else estimate.heard[0]

    def heard(self) -> Tensor | None:
        return self._heard

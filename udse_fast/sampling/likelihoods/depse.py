"""DEPSE-IL and DEPSE-TL: the likelihood is multiplied into the transition, no guidance weight (Ayilo et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from udse_fast.kernels.posterior_step import product_of_gaussians
from udse_fast.sampling.diffusion import Transition
from udse_fast.sampling.likelihoods.base import SpeechLikelihood
from udse_fast.sampling.randomness import Draw


@dataclass
class DEPSEIL(SpeechLikelihood):
    """Implicit likelihood: N(delta x; s, delta^2 (a^2 + V)); NMF update after the step."""

    divide_tweedie: bool = False

    def advance(self, transitions: dict[str, Transition], round_: int, draw: Draw, index: int) -> dict[str, Tensor]:
        step = transitions["speech"]
        state, power = product_of_gaussians(self.observed(step), divide_tweedie=self.divide_tweedie)
        self.noise_model.fit(power)
        return {"speech": state}


@dataclass
class DEPSETL(SpeechLikelihood):
    """Tractable likelihood of a freshly diffused mixture x_t: N(x_t; s, delta^2 V); NMF update at the top of a step."""

    divide_tweedie: bool = True
    _power: Tensor = field(init=False, repr=False)

    def before_step(self, states: dict[str, Tensor], first: bool) -> None:
        if not first:
            self.noise_model.fit(self._power)

    def advance(self, transitions: dict[str, Transition], round_: int, draw: Draw, index: int) -> dict[str, Tensor]:
        step = transitions["speech"]
        observed = self.observed(step)._replace(other_noise=draw("forward_mixture", index))
        state, self._power = product_of_gaussians(observed, divide_tweedie=self.divide_tweedie)
        return {"speech": state}

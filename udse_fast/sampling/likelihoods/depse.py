"""DEPSE-IL and DEPSE-TL: the likelihood is multiplied into the transition, no guidance weight (Ayilo et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from udse_fast.kernels.posterior_step import product_of_gaussians
from udse_fast.sampling.likelihoods.base import SpeechLikelihood, States, Transition
from udse_fast.sampling.randomness import Draw


@dataclass
class DEPSEIL(SpeechLikelihood):
    """Implicit likelihood of the mixture given the state.

    1. start: s = x + sigma z
    2. transition: N(m, g^2 dt), m = s + gamma s dt + g^2 S dt
    3. likelihood: N(delta x; s, delta^2 (a^2 + V)), a = sigma / delta
    4. s <- a draw from the product of the two Gaussians
    5. M-step: V by NMF-IS on P = mean |x - s0|^2, s0 = s + sigma^2 S
    """

    divide_tweedie: bool = False
    """s0 divided by delta (the Tweedie mean), or not (the published code)."""

    def next_state(self, transition: Transition, draw: Draw) -> Tensor:
        state, power = product_of_gaussians(self.observed(transition), divide_tweedie=self.divide_tweedie)
        self.noise_model.fit(power)
        return state


@dataclass
class DEPSETL(SpeechLikelihood):
    """Tractable likelihood of a freshly diffused mixture.

    1. start: s = x + sigma z
    2. M-step, from the second step on: V by NMF-IS on P
    3. transition: N(m, g^2 dt), m = s + gamma s dt + g^2 S dt
    4. likelihood: N(x_t; s, delta^2 V), x_t = delta x + sigma z_f
    5. s <- a draw from the product of the two Gaussians
    6. P = mean |x - s0|^2, s0 = (s + sigma^2 S) / delta
    """

    divide_tweedie: bool = True
    """s0 divided by delta (the Tweedie mean, as published), or not."""
    _power: Tensor = field(init=False, repr=False)

    def before_step(self, states: States, step: int) -> None:
        if step > 0:
            self.noise_model.fit(self._power)

    def next_state(self, transition: Transition, draw: Draw) -> Tensor:
        observed = self.observed(transition)._replace(other_noise=draw("forward_mixture", transition.draw_index))
        state, self._power = product_of_gaussians(observed, divide_tweedie=self.divide_tweedie)
        return state

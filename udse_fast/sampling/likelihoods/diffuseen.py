"""DiffUSEEN: speech given an explicit noise estimate, noise given speech in closed form (Ayilo et al. 2025, Alg. 1)."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from udse_fast.kernels.posterior_step import noise_posterior_guidance
from udse_fast.sampling.likelihoods.base import SpeechLikelihood, States, Transition
from udse_fast.sampling.randomness import Draw


@dataclass
class DiffUSEEN(SpeechLikelihood):
    """Guidance to the mixture less the noise posterior's mean.

    1. start: s = x + sigma z
    2. predictor: s <- s + gamma s dt + g^2 S dt + g sqrt(dt) z_p
    3. noise posterior given s0 = (s + sigma^2 S) / delta, with q = a^2 + w:
       mean mu = V / (V + q) (x - s0), variance V q / (V + q)
    4. guidance: s <- s + lambda g^2 dt (1/delta) (x - s/delta - mu) / q
    5. M-step: V by NMF-IS on P = mean |mu|^2 + V q / (V + q)
    """

    guidance: float = 1.75
    observation_variance: float = 5e-4
    """w, the variance of the mixture given speech and noise."""
    paper_posterior: bool = False
    """Noise posterior with w (the paper, eq. 35), not a^2 + w (the published code)."""
    _noise: Tensor | None = field(default=None, init=False, repr=False)

    def next_state(self, transition: Transition, draw: Draw) -> Tensor:
        state, power, self._noise = noise_posterior_guidance(
            self.observed(transition),
            guidance=self.guidance,
            observation_variance=self.observation_variance,
            paper_posterior=self.paper_posterior,
            want_noise=transition.last,
        )
        self.noise_model.fit(power)
        return state

    def noise_estimate(self, states: States) -> Tensor | None:
        return self._noise

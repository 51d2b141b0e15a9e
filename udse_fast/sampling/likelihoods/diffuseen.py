"""DiffUSEEN: speech given an explicit noise estimate, noise given speech in closed form (Ayilo et al. 2025, Alg. 1)."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from udse_fast.kernels.posterior_step import noise_posterior_guidance
from udse_fast.sampling.diffusion import Transition
from udse_fast.sampling.likelihoods.base import SpeechLikelihood
from udse_fast.sampling.randomness import Draw


@dataclass
class DiffUSEEN(SpeechLikelihood):
    """Guidance to the mixture less the noise posterior's mean; NMF update on its second moment."""

    guidance: float = 1.75
    observation_variance: float = 5e-4
    """w, the variance of the mixture given speech and noise."""
    paper_posterior: bool = False
    """Noise posterior with w (the paper, eq. 35), not a^2 + w (the published code)."""
    _noise: Tensor | None = field(default=None, init=False, repr=False)

    def advance(self, transitions: dict[str, Transition], round_: int, draw: Draw, index: int) -> dict[str, Tensor]:
        step = transitions["speech"]
        state, power, self._noise = noise_posterior_guidance(
            self.observed(step),
            guidance=self.guidance,
            observation_variance=self.observation_variance,
            paper_posterior=self.paper_posterior,
            want_noise=step.last,
        )
        self.noise_model.fit(power)
        return {"speech": state}

    def noise_estimate(self, states: dict[str, Tensor]) -> Tensor | None:
        return self._noise

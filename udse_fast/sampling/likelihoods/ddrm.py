"""DDRM-NMF: denoising diffusion restoration (Kawar et al. 2022) with the noise variance from NMF-IS.

The mixture is not pulled at: where its noise is weaker than the level of the step, it *is* the state, its noise
brought up to that level by fresh noise. One network call per step, and the prior sees what it was trained on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from udse_fast.kernels.coefficients import Coefficients
from udse_fast.kernels.posterior_step import ddrm_step, posterior_mean, unexplained_power
from udse_fast.kernels.posterior_step.reference import variance
from udse_fast.sampling.likelihoods.base import SpeechLikelihood, Transition
from udse_fast.sampling.randomness import Draw


@dataclass
class DDRM(SpeechLikelihood):
    """Restoration of the mixture bin by bin (Kawar et al., eq. 7 and 8, with H = 1); EM for the noise.

    1. start: u = x + sqrt(a^2 - V) z, s = delta u, a = sigma / delta
    2. prior: s0 = E[s_0 | s], C its variance
    3. M-step: V by NMF-IS on kappa times the expected power of x - s_0
    4. where V < a'^2 of the next step, u' = x with its noise brought up to a'^2, a share eta of what is missing fresh;
       elsewhere u' = s0 with noise that goes on
    5. last step: s0 and x, joined by their precisions 1 / C and 1 / V
    """

    eta: float = 0.85
    """eta: share of fresh noise where the mixture's noise is stronger than the step's level."""
    noise_bias: float = 1.3
    """kappa: factor of the power of the M-step. 1 is EM; a prior that takes some of the noise for speech wants more."""
    variance_scale: float = 1.0
    """Weight of the prior's own uncertainty in the last step: more lets more of the mixture in."""

    needs_posterior_variance: ClassVar[bool] = True

    def start(self, source: str, noise: Tensor, coefficients: Coefficients) -> Tensor:
        """s = delta (x + sqrt(a^2 - V) z): the mixture with its noise brought up to a."""
        c = coefficients
        missing = ((c.sigma / c.delta) ** 2 - variance(self.noise_model.variance)).clamp_min(0).sqrt()
        return c.delta * (self.mixture + missing * noise)

    def next_state(self, transition: Transition, draw: Draw) -> Tensor:
        observed = self.observed(transition)
        self.noise_model.fit(unexplained_power(observed, noise_bias=self.noise_bias))
        observed = observed._replace(variance=self.noise_model.variance)
        if not transition.last:
            return ddrm_step(observed, eta=self.eta)
        uncertain = self.variance_scale * observed.posterior_variance
        return posterior_mean(observed._replace(posterior_variance=uncertain))

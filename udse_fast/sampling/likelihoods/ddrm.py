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
from udse_fast.sampling.diffusion import Transition
from udse_fast.sampling.likelihoods.base import SpeechLikelihood
from udse_fast.sampling.randomness import Draw


@dataclass
class DDRM(SpeechLikelihood):
    """Restoration of the mixture bin by bin; NMF update before the step, on the expected power of the noise (EM)."""

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

    def advance(self, transitions: dict[str, Transition], round_: int, draw: Draw, index: int) -> dict[str, Tensor]:
        step = transitions["speech"]
        self.noise_model.fit(unexplained_power(self.observed(step), noise_bias=self.noise_bias))
        observed = self.observed(step)
        if not step.last:
            return {"speech": ddrm_step(observed, eta=self.eta)}
        uncertain = self.variance_scale * observed.posterior_variance
        return {"speech": posterior_mean(observed._replace(posterior_variance=uncertain))}

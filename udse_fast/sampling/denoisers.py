"""`NetworkDenoiser`: a score network as the denoiser of one source, for samplers of all sources of a mixture."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from udse_fast.networks.conditions import NOTHING, Conditions
from udse_fast.networks.score_network import ScoreNetwork


@dataclass(frozen=True)
class NetworkDenoiser:
    """D(u, tau) -> E[source | u] of compressed spectrograms, which torch can differentiate by u.

    Any process serves: with t from sigma(t) / delta(t) = tau and s = delta u, Tweedie's formula gives
    D = (s + sigma^2 S(s, t)) / delta. Gradients go through the plain network, whatever else computes its scores.

    Args:
        network: of the source.
        told: what it is told about the source.
        untold: the same without what guides it; None: there is no guidance.
        guidance: w of classifier-free guidance, D = (1 + w) D(u, tau, told) - w D(u, tau, untold).
    """

    network: ScoreNetwork
    told: Conditions = NOTHING
    untold: Conditions | None = None
    guidance: float = 0.0

    def __call__(self, state: Tensor, noise_level: float) -> Tensor:
        """(F, T) complex -> (F, T) complex, in the precision of the state."""
        denoised = self._denoised(state, noise_level, self.told)
        if self.untold is None or self.guidance == 0:
            return denoised
        return (1 + self.guidance) * denoised - self.guidance * self._denoised(state, noise_level, self.untold)

    def _denoised(self, state: Tensor, noise_level: float, conditions: Conditions) -> Tensor:
        sde = self.network.sde
        t = sde.time(noise_level)
        delta, sigma = sde.delta(t), sde.sigma(t)
        diffused = delta * state
        score, _ = self.network.evaluate(diffused[None], t, conditions, plain=True)
        return (diffused + sigma**2 * score[0]) / delta

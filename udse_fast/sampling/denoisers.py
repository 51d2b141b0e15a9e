"""Score networks as what samplers of all sources of a mixture ask: a denoiser of a source, or its expected power."""

from __future__ import annotations

from dataclasses import dataclass

import torch
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
        return _posterior(self.network, state, noise_level, conditions, plain=True)[0]


@dataclass(frozen=True)
class NetworkPower:
    """E[|s|^2 | u] = |D|^2 + E|s - D|^2 of compressed spectrograms; without gradients.

    With guidance w it is P(u, told) (P(u, told) / P(u, untold))^w: what is told counts for more than it says.

    Args:
        network: of the source; it tells its posterior variance.
        told, untold, guidance: see `NetworkDenoiser`.
    """

    network: ScoreNetwork
    told: Conditions = NOTHING
    untold: Conditions | None = None
    guidance: float = 0.0

    def __call__(self, state: Tensor, noise_level: float) -> Tensor:
        """(F, T) complex -> (F, T) real."""
        power = self._power(state, noise_level, self.told)
        if self.untold is None or self.guidance == 0:
            return power
        return power * (power / self._power(state, noise_level, self.untold)) ** self.guidance

    def _power(self, state: Tensor, noise_level: float, conditions: Conditions) -> Tensor:
        with torch.no_grad():
            denoised, variance = _posterior(self.network, state, noise_level, conditions, posterior_variance=True)
        assert variance is not None
        return denoised.abs().square() + variance.clamp_min(torch.finfo(variance.dtype).tiny)


def _posterior(
    network: ScoreNetwork,
    state: Tensor,
    noise_level: float,
    conditions: Conditions,
    *,
    plain: bool = False,
    posterior_variance: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """D(u, tau) (F, T) complex by Tweedie's formula, and its variance (F, T) where that is asked for."""
    sde = network.sde
    t = sde.time(noise_level)
    delta, sigma = sde.delta(t), sde.sigma(t)
    diffused = delta * state
    score, variance = network.evaluate(
        diffused[None], t, conditions, plain=plain, posterior_variance=posterior_variance
    )
    return (diffused + sigma**2 * score[0]) / delta, None if variance is None else variance[0]

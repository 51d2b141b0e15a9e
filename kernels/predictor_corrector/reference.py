"""One step of the predictor-corrector sampler (Song et al., ICLR 2021) on the OUVE SDE."""

from __future__ import annotations

import torch

from udse_fast.kernels.coefficients import Coefficients
from udse_fast.kernels.complex_normal.reference import as_tensor
from udse_fast.kernels.step import Step, update


@update(reads="noise", gives="next")
def corrector(step: Step) -> torch.Tensor:
    """Annealed Langevin step: eps = (r sigma)^2; s + eps S(s, t) + sqrt(2 eps) z.

    Returns:
        the next state (B, F, T).
    """
    c = step.coefficients
    eps = (c.corrector_snr * c.sigma) ** 2
    return step.state + eps * step.score + (2 * eps) ** 0.5 * as_tensor(step.noise, step.state)


@update(reads="noise", gives="next")
def predictor(step: Step) -> torch.Tensor:
    """Reverse diffusion step: s + gamma s dt + g^2 S(s, t) dt + g sqrt(dt) z; no noise on the last step.

    Returns:
        the next state (B, F, T).
    """
    s, S, c = step.state, step.score, step.coefficients
    return s + c.gamma * c.dt * s + c.g**2 * c.dt * S + c.g * c.dt**0.5 * as_tensor(step.noise, s)


def tweedie_mean(state: torch.Tensor, score: torch.Tensor, coefficients: Coefficients) -> torch.Tensor:
    """Estimate of the clean signal: s0 = (s + sigma^2 S(s, t)) / delta, (B, F, T)."""
    return (state + coefficients.sigma**2 * score) / coefficients.delta

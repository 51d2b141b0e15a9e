"""One step of the predictor-corrector sampler (Song et al., ICLR 2021) on the OUVE SDE."""

from __future__ import annotations

import torch

from udse_fast.kernels.coefficients import Coefficients
from udse_fast.kernels.complex_normal.reference import Noise, as_tensor


def written(result: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
    """`result`, in `out` where that is given."""
    return result if out is None else out.copy_(result)


def corrector(
    state: torch.Tensor,
    score: torch.Tensor,
    coefficients: Coefficients,
    noise: Noise,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Annealed Langevin step: eps = (r sigma)^2; s + eps S(s, t) + sqrt(2 eps) z.

    Args:
        state: s, (B, F, T) complex.
        score: S(s, t), (B, F, T) complex.
        coefficients: of the step.
        noise: z, (B, F, T) complex, or the key of a draw, or None for zero.
        out: where the result goes, may be `state`; None: a new tensor.

    Returns:
        (B, F, T) complex.
    """
    c = coefficients
    eps = (c.corrector_snr * c.sigma) ** 2
    return written(state + eps * score + (2 * eps) ** 0.5 * as_tensor(noise, state), out)


def predictor(
    state: torch.Tensor,
    score: torch.Tensor,
    coefficients: Coefficients,
    noise: Noise,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Reverse diffusion step: s + gamma s dt + g^2 S(s, t) dt + g sqrt(dt) z.

    Args:
        state: s, (B, F, T) complex.
        score: S(s, t), (B, F, T) complex.
        coefficients: of the step.
        noise: z, (B, F, T) complex, or the key of a draw, or None for zero (the last step).
        out: where the result goes, may be `state`; None: a new tensor.

    Returns:
        (B, F, T) complex.
    """
    c = coefficients
    s = state + c.gamma * c.dt * state + c.g**2 * c.dt * score + c.g * c.dt**0.5 * as_tensor(noise, state)
    return written(s, out)


def tweedie_mean(state: torch.Tensor, score: torch.Tensor, coefficients: Coefficients) -> torch.Tensor:
    """Estimate of the clean signal: s0 = (s + sigma^2 S(s, t)) / delta.

    Args:
        state: s, (B, F, T) complex.
        score: S(s, t), (B, F, T) complex.
        coefficients: of the step.

    Returns:
        (B, F, T) complex.
    """
    return (state + coefficients.sigma**2 * score) / coefficients.delta

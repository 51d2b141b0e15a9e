"""Itakura-Saito NMF of the noise variance by multiplicative updates.

Févotte, Bertin, Durrieu, "Nonnegative matrix factorization with the Itakura-Saito divergence", Neural
Computation 2009; online form: Lefèvre, Bach, Févotte, "Online algorithms for nonnegative matrix factorization
with the Itakura-Saito divergence", WASPAA 2011.
"""

from __future__ import annotations

import torch

TINY = 1e-30  # keeps 0/0 away where a factor is all zero


def variance(W: torch.Tensor, H: torch.Tensor, floor: float = 1e-10) -> torch.Tensor:
    """V = W H (F, T), at least `floor`: V^-2 of digital silence must stay finite in float32."""
    return (W @ H).clamp_min(floor)


def w_step(power: torch.Tensor, W: torch.Tensor, H: torch.Tensor, floor: float) -> torch.Tensor:
    """W <- max(W * ((P V^-2) H^T) / (V^-1 H^T), floor)."""
    V = variance(W, H, floor)
    return (W * ((power / V**2) @ H.T) / ((1 / V) @ H.T).clamp_min(TINY)).clamp_min(floor)


def h_step(power: torch.Tensor, W: torch.Tensor, H: torch.Tensor, floor: float) -> torch.Tensor:
    """H <- max(H * (W^T (P V^-2)) / (W^T V^-1), floor)."""
    V = variance(W, H, floor)
    return (H * (W.T @ (power / V**2)) / (W.T @ (1 / V)).clamp_min(TINY)).clamp_min(floor)


def even_start(power: torch.Tensor, W: torch.Tensor, floor: float) -> torch.Tensor:
    """Activations (R, T) that are equal within a frame, with V = W H summing to P (F, T) in every frame."""
    return (power.sum(0) / W.sum()).clamp_min(floor).repeat(W.shape[1], 1)


def nmf_update(
    power: torch.Tensor,
    W: torch.Tensor,
    H: torch.Tensor,
    iterations: int = 1,
    floor: float = 1e-10,
) -> tuple[torch.Tensor, torch.Tensor]:
    """NMF-IS iterations: W, then H, then the columns of W to sum 1.

    Args:
        power: (F, T) real, >= 0.
        W: (F, R) real.
        H: (R, T) real.
        iterations: number of passes.
        floor: least entry of W, H and V.

    Returns:
        W (F, R) and H (R, T), new tensors.
    """
    for _ in range(iterations):
        W = w_step(power, W, H, floor)
        H = h_step(power, W, H, floor)
        scale = W.sum(0)
        W, H = W / scale, H * scale[:, None]
    return W, H


def online_nmf_update(
    power: torch.Tensor,
    W: torch.Tensor,
    H: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    forgetting: float,
    iterations: int = 1,
    floor: float = 1e-10,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """H of a new block with W as it is, then W from sufficient statistics with forgetting.

    A <- rho A + W^2 ((P V^-2) H^T), B <- rho B + V^-1 H^T, W <- sqrt(A / B); then the columns of W to sum 1,
    which divides A and multiplies B and H by the sums. The statistics start at zero.

    Args:
        power: (F, t) real, >= 0: the new frames.
        W: (F, R) real.
        H: (R, t) real: start of the activations.
        A, B: the statistics, (F, R) real.
        forgetting: rho in [0, 1], the weight of the past when this block comes in.
        iterations: number of H updates.
        floor: least entry of W, H and V.

    Returns:
        W (F, R), H (R, t), A (F, R), B (F, R), new tensors.
    """
    for _ in range(iterations):
        H = h_step(power, W, H, floor)
    V = variance(W, H, floor)
    A = forgetting * A + W**2 * ((power / V**2) @ H.T)
    B = forgetting * B + (1 / V) @ H.T
    W = (A / B.clamp_min(TINY)).sqrt().clamp_min(floor)
    scale = W.sum(0)
    return W / scale, H * scale[:, None], A / scale, B * scale

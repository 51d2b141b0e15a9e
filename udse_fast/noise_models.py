"""What the samplers know about the noise: its variance per bin, fitted to the recording (NMF-IS) or given (oracle)."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from udse_fast.errors import UdseError
from udse_fast.kernels.nmf_is import nmf_update

POWER_FLOOR = 1e-10


class NoiseModel(Protocol):
    """Variance of the noise, per bin and frame, and what to do with a new estimate of its power."""

    @property
    def variance(self) -> Tensor | tuple[Tensor, Tensor]:
        """(F, T), or the factors W (F, R) and H (R, T) of it."""

    def fit(self, power: Tensor) -> None:
        """M-step: `power` (F, T) is the expected |noise|^2."""


class NMF:
    """Variance V = W H, one multiplicative update of the Itakura-Saito divergence per M-step (Fevotte et al. 2009)."""

    def __init__(self, W: Tensor, H: Tensor, iterations: int = 1, fixed_w: bool = False) -> None:
        if W.ndim != 2 or H.ndim != 2 or W.shape[1] != H.shape[0]:
            raise UdseError(
                f"initial_nmf: expected W (F, R) and H (R, T), got {tuple(W.shape)} and {tuple(H.shape)}; "
                "give two matrices that can be multiplied"
            )
        self.W, self.H = W, H
        self.iterations, self.fixed_w = iterations, fixed_w

    @property
    def variance(self) -> tuple[Tensor, Tensor]:
        return self.W, self.H

    def fit(self, power: Tensor) -> None:
        self.W, self.H = nmf_update(power, self.W, self.H, iterations=self.iterations, fixed_w=self.fixed_w)


class FixedVariance:
    """Known variance (F, T): the oracle modes, and the closed-form tests."""

    def __init__(self, variance: Tensor) -> None:
        self.variance = variance

    def fit(self, power: Tensor) -> None:
        """The variance is given: nothing to fit."""


def start_nmf(mixture: Tensor, rank: int, seed: int = 0, share: float = 1.0) -> tuple[Tensor, Tensor]:
    """Random W (F, R), H (R, T) in (0, 1], scaled so that mean(W H) = share * mean |x|^2.

    Unscaled, as in the published code, V starts some 30 times above the mixture: with a prior that is sure of itself
    everything is then taken for noise.
    """
    F, T = mixture.shape
    dtype = mixture.real.dtype
    generator = torch.Generator().manual_seed(seed)
    W = 1 - torch.rand(F, rank, generator=generator, dtype=dtype)
    H = 1 - torch.rand(rank, T, generator=generator, dtype=dtype)
    W, H = W.to(mixture.device), H.to(mixture.device)
    power = mixture.abs().square().mean().clamp_min(POWER_FLOOR)
    return W, H * (share * power / (W @ H).mean())

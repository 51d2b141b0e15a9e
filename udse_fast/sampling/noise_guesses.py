"""Guesses of the noise variance V that a posterior network is told: the first one, and those made of what it said.

All are of the linear domain, where the loudest bin of a compressed mixture of modulus 1 has the power 1.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from udse_fast.kernels.nmf_is import nmf_update
from udse_fast.sampling.noise_models import start_nmf

NO_NOISE = 1e-9
"""Noise variance of a mixture without noise, relative to the power of its loudest bin."""


def smoothed(power: Tensor, bands: int, frames: int) -> Tensor:
    """Mean of (..., F, T) over `bands` x `frames` neighbours, odd numbers; edges repeat."""
    flat = power.reshape(-1, 1, *power.shape[-2:])
    flat = F.pad(flat, (frames // 2, frames // 2, bands // 2, bands // 2), mode="replicate")
    return F.avg_pool2d(flat, (bands, frames), stride=1).reshape(power.shape)


def steady_guess(mixture: Tensor, share: float = 0.5, quantile: float | None = None) -> Tensor:
    """A steady noise at `share` of the mean, or of a quantile, of the mixture's power; (..., F, T).

    Args:
        mixture: (..., F, T) complex, compressed: the linear power is |x|^4.
        quantile: instead of the mean; of noise alone, whose power is exponential, the mean is that over -log(1 - q).
    """
    power = mixture.abs() ** 4
    if quantile is None:
        level = power.mean(-1, keepdim=True)
    else:
        level = power.quantile(quantile, dim=-1, keepdim=True) / -math.log1p(-quantile)
    return (share * smoothed(level, 9, 1)).clamp_min(NO_NOISE).expand_as(power).contiguous()


def factorised(variance: Tensor, rank: int, iterations: int = 20, seed: int = 0) -> Tensor:
    """V (F, T) as the product W H of an NMF of that rank."""
    W, H = start_nmf(torch.complex(variance.sqrt(), torch.zeros_like(variance)), rank, seed)
    W, H = nmf_update(variance.contiguous(), W, H, iterations=iterations)
    return W @ H


def predicted(variance: Tensor, memory_frames: float, block: int) -> Tensor:
    """What a stream expects: for each block, the mean of V (..., F, T) before it, old frames forgotten.

    Args:
        variance: said of every frame.
        memory_frames: after which a frame counts 1 / e.
        block: frames; those of one block are told the same. The first block, of which nothing is known, is told the
            mean of its own.
    """
    kept = math.exp(-1 / memory_frames)
    total, weight = torch.zeros_like(variance[..., 0]), 0.0
    guess = variance[..., :block].mean(-1)
    guesses = []
    for frame in range(variance.shape[-1]):
        if frame and frame % block == 0:
            guess = total / weight
        guesses.append(guess)
        total, weight = total * kept + variance[..., frame], weight * kept + 1
    return torch.stack(guesses, dim=-1)

"""Noise models that are told the noise, for experiments: what a better noise model could gain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from udse_fast.errors import UdseError
from udse_fast.sampling.noise_models import NMF, FixedVariance, NoiseModel, start_nmf

if TYPE_CHECKING:
    from udse_fast.enhancer import Enhancer
    from udse_fast.streaming.blocks import Block

ORACLE_MODES: Final = ("oracle", "pure oracle")
ORACLE_ITERATIONS = 200


class TrueNoise:
    """Makes the noise model of a block from the noise that is in it (Fig. 4 of the ParaDiffUSE paper).

    Args:
        enhancer: whose `separate` is given this as `make_noise_model`.
        noise: (L,), the noise in a recording of one channel at the rate of the prior.
        mode: "oracle", NMF fitted to the noise, or "pure oracle", its periodogram.

    Raises:
        UdseError: another mode or shape.
    """

    def __init__(self, enhancer: Enhancer, noise: NDArray[Any], mode: str) -> None:
        if mode not in ORACLE_MODES:
            raise UdseError(f"oracle: expected one of {', '.join(ORACLE_MODES)}, got {mode!r}")
        if noise.ndim != 1:
            raise UdseError(f"oracle: expected the noise of one channel (L,), got the shape {noise.shape}")
        self.noise, self.mode = torch.from_numpy(noise.astype(np.float32)), mode
        self._spectral, self._rank, self._seed = enhancer.spectral, enhancer.settings.rank, enhancer.seed

    def __call__(self, mixture: Tensor, level: Tensor, block: Block[Any]) -> NoiseModel:
        """The variance of the noise in the block (F, T), in the domain of the mixture."""
        start = block.first_frame * self._spectral.hop_length
        noise = self.noise[start : start + len(block.signal)].to(level.device)
        if len(noise) != len(block.signal):
            raise UdseError(f"oracle: expected as much noise as recording, got {len(self.noise)} samples")
        normalised = self._spectral.compress(self._spectral.stft(noise)) / level
        power = normalised.abs().square()
        if self.mode == "pure oracle":
            return FixedVariance(power)
        fitted = NMF(*start_nmf(normalised, self._rank, self._seed), iterations=ORACLE_ITERATIONS)
        fitted.fit(power)
        return FixedVariance(fitted.W @ fitted.H)

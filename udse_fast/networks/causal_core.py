"""Causal networks in the C++ core: of a few frames' many small layers, torch takes longer to call than compute."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from udse_fast import _core
from udse_fast.errors import UdseError
from udse_fast.networks.compact import Compact, Conv
from udse_fast.networks.estimate import Estimate
from udse_fast.networks.past import CorePast


class CausalCore:
    """A causal network, block by block, on CPUs in float32: `Compact.posterior`, or `CompactPosterior.say`.

    Args:
        module: whose weights are copied.
        threads: that the samples of a batch are shared among.

    Raises:
        UdseError: the network is not causal.
    """

    def __init__(self, module: Compact, threads: int = 1) -> None:
        if not module.causal_block:
            raise UdseError("expected a causal network (causal_block of 1 or more), got one that sees the future")
        arrays = {
            name: tensor.detach().to("cpu", torch.float32).contiguous().numpy()
            for name, tensor in (*module.named_parameters(), *module.named_buffers())
        }
        dilations = []
        for block in module.over_time:
            assert isinstance(block.conv1, Conv)
            dilations.append(block.conv1.time_dilation)
        self.network = _core.CausalNetwork(arrays, dilations)
        self._memory_size = self.network.memory_size
        self._module, self.threads = module, threads

    def __reduce__(self) -> tuple[type[CausalCore], tuple[Compact, int]]:
        """A copy, or what comes out of a pickle, is made anew from the network."""
        return CausalCore, (self._module, self.threads)

    def posterior(
        self, noisy: Tensor, noise_level: float | Tensor, label: Tensor | None, past: CorePast
    ) -> tuple[Tensor, Tensor]:
        """Posterior mean of the clean spectrogram of one block, and how far from it that is expected to be.

        Args:
            noisy: u, (B, F, K) complex64: the K frames of the block.
            noise_level: a, one for all or one per item (B,).
            label: (B,) int, 1 speech, 0 noise; joint networks only, None is speech.
            past: of the frames before; updated.

        Returns:
            E[s_0 | u] (B, F, K) complex64 and E|s_0 - E[s_0 | u]|^2 (B, F, K) float32.

        Raises:
            UdseError: shapes that do not fit each other or the network, labels or noise levels that cannot be.
        """
        B = len(noisy)
        clean, variance = _room(noisy)
        if isinstance(noise_level, Tensor):
            levels = noise_level.float().contiguous().numpy()
        else:
            levels = np.full(B, noise_level, np.float32)
        before, memory = past.to_update(B, self._memory_size)
        self.network.step(
            noisy.to(torch.complex64).contiguous().numpy(),
            levels,
            None if label is None else label.long().contiguous().numpy(),
            memory.numpy(),
            clean,
            variance,
            self.threads,
            None if before is None else before.numpy(),
        )
        return torch.from_numpy(clean), torch.from_numpy(variance)

    def say(self, mixture: Tensor, noise_variance: Tensor, past: CorePast) -> Estimate:
        """What a posterior network says about the mixture of one block.

        Args:
            mixture: x, (B, F, K) complex64, compressed: the K frames of the block.
            noise_variance: a guess of V, (B, F, K) float32.
            past: of the frames before; updated.

        Raises:
            UdseError: shapes that do not fit each other or the network; another kind of network.
        """
        (clean, variance), (heard, believed) = _room(mixture), _room(mixture)
        before, memory = past.to_update(len(mixture), self._memory_size)
        self.network.say(
            mixture.to(torch.complex64).contiguous().numpy(),
            noise_variance.float().contiguous().numpy(),
            memory.numpy(),
            clean,
            variance,
            believed,
            heard,
            self.threads,
            None if before is None else before.numpy(),
        )
        return Estimate(*(torch.from_numpy(written) for written in (clean, variance, believed, heard)))


def _room(like: Tensor) -> tuple[NDArray[np.complex64], NDArray[np.float32]]:
    """For a spectrogram and its variance."""
    return np.empty(like.shape, np.complex64), np.empty(like.shape, np.float32)

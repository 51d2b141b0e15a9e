"""Compact networks in the C++ core, in float32: twice as fast as torch on whole signals, and more on a few frames."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from udse_fast import _core
from udse_fast.networks.compact import Compact, Conv
from udse_fast.networks.estimate import Estimate
from udse_fast.networks.past import CorePast


class CompactCore:
    """`Compact.posterior`, or `CompactPosterior.say`, on CPUs in float32: of whole signals, or block by block.

    Every item, and every frame of it, gets the same bits on any number of threads and in any company.

    Args:
        module: whose weights are copied.
        threads: that the items of a batch are shared among; of a network that sees the future also pieces of an item.
    """

    def __init__(self, module: Compact, threads: int = 1) -> None:
        arrays = {
            name: tensor.detach().to("cpu", torch.float32).contiguous().numpy()
            for name, tensor in (*module.named_parameters(), *module.named_buffers())
        }
        dilations = []
        for block in module.over_time:
            assert isinstance(block.conv1, Conv)
            dilations.append(block.conv1.time_dilation)
        self.network = _core.CompactNetwork(arrays, dilations, not module.causal_block)
        self._memory_size = self.network.memory_size
        self._module, self.threads = module, threads

    def __reduce__(self) -> tuple[type[CompactCore], tuple[Compact, int]]:
        """A copy, or what comes out of a pickle, is made anew from the network."""
        return CompactCore, (self._module, self.threads)

    def posterior(
        self, noisy: Tensor, noise_level: float | Tensor, label: Tensor | None, past: CorePast | None = None
    ) -> tuple[Tensor, Tensor]:
        """Posterior mean of the clean spectrogram, and how far from it that is expected to be.

        Args:
            noisy: u, (B, F, K) complex64: all frames, or the K frames of the block of a causal network.
            noise_level: a, one for all or one per item (B,).
            label: (B,) int, 1 speech, 0 noise; joint networks only, None is speech.
            past: of a causal network, the frames before; updated.

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
        before, memory = self._memory(past, B)
        self.network.step(
            noisy.to(torch.complex64).contiguous().numpy(),
            levels,
            None if label is None else label.long().contiguous().numpy(),
            memory,
            clean,
            variance,
            self.threads,
            before,
        )
        return torch.from_numpy(clean), torch.from_numpy(variance)

    def say(self, mixture: Tensor, noise_variance: Tensor, past: CorePast | None = None) -> Estimate:
        """What a posterior network says about a mixture.

        Args:
            mixture: x, (B, F, K) complex64, compressed: all frames, or the K frames of the block of a causal network.
            noise_variance: a guess of V, (B, F, K) float32.
            past: of a causal network, the frames before; updated.

        Raises:
            UdseError: shapes that do not fit each other or the network; another kind of network.
        """
        (clean, variance), (heard, believed) = _room(mixture), _room(mixture)
        before, memory = self._memory(past, len(mixture))
        self.network.say(
            mixture.to(torch.complex64).contiguous().numpy(),
            noise_variance.float().contiguous().numpy(),
            memory,
            clean,
            variance,
            believed,
            heard,
            self.threads,
            before,
        )
        return Estimate(*(torch.from_numpy(written) for written in (clean, variance, believed, heard)))

    def _memory(self, past: CorePast | None, batch: int) -> tuple[NDArray[np.float32] | None, ...]:
        """What the core goes on from, where that is not what it writes to, and what it writes to."""
        if past is None:
            return None, None
        return tuple(None if x is None else x.numpy() for x in past.to_update(batch, self._memory_size))


def _room(like: Tensor) -> tuple[NDArray[np.complex64], NDArray[np.float32]]:
    """For a spectrogram and its variance."""
    return np.empty(like.shape, np.complex64), np.empty(like.shape, np.float32)

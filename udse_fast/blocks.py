"""Overlapping blocks with cross-fade: any length of signal in constant memory, for networks that see whole blocks.

Every block is enhanced on its own: its level, its noise model (which may start from that of the block before) and its
noise draws, which are numbered by absolute frame, so that the overlap of two blocks diffuses with the same noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

BlockEnhancer = Callable[[Tensor, int], Tensor]
"""(signal (L,) at the network's rate, absolute number of its first frame) -> (K, L): speech, noise, ..."""


@dataclass
class OverlapBlocks:
    """Push samples of any number in, get what is ready out, aligned; `finish` returns the rest.

    Args:
        enhance: one block -> `outputs` signals of its length.
        block: samples of a block. overlap: samples that neighbours share; both multiples of the hop.
        guard: samples at either end of the overlap that the cross-fade leaves to the other block (STFT edges).
        hop: samples per frame.
        outputs: K.
    """

    enhance: BlockEnhancer
    block: int
    overlap: int
    guard: int
    hop: int
    outputs: int = 1
    _input: Tensor = field(init=False)
    _start: int = field(default=0, init=False)  # absolute number of the first sample in _input
    _tail: Tensor = field(init=False)  # what the last block says about the samples from _ready on
    _ready: int = field(default=0, init=False)  # samples given out so far

    def __post_init__(self) -> None:
        self._input = torch.zeros(0)
        self._tail = torch.zeros(self.outputs, 0)

    @property
    def latency(self) -> int:
        """Samples that must follow a sample before it is given out, at most."""
        return self.block - 1

    def push(self, samples: Tensor) -> Tensor:
        """(n,) -> (K, m), m >= 0."""
        self._input = torch.cat([self._input, samples])
        done = [torch.zeros(self.outputs, 0)]
        while self._start + len(self._input) >= self._ready + self.block:
            done.append(self._run(self._ready, self._ready + self.block, keep=self.overlap))
        return torch.cat(done, dim=1)

    def finish(self) -> Tensor:
        """(K, m): everything that was not given out yet. The last block reaches back so that it is a full one."""
        end = self._start + len(self._input)
        if end - self._ready == self._tail.shape[1]:
            return self._tail  # the last block ended where the signal does
        return self._run(max(0, end - self.block) // self.hop * self.hop, end, keep=0)

    def _run(self, start: int, end: int, keep: int) -> Tensor:
        """Enhance [start, end), fade it in over the tail, hold back the last `keep` samples."""
        new = self.enhance(self._input[start - self._start : end - self._start], start // self.hop)
        new = new[:, self._ready - start :]
        shared = self._tail.shape[1]
        if shared:
            ramp = torch.zeros(shared)
            inner = min(self.overlap, shared) - 2 * self.guard
            first = shared - self.guard - inner
            ramp[first : first + inner] = (torch.arange(inner) + 0.5) / inner
            ramp[first + inner :] = 1
            new[:, :shared] = self._tail * (1 - ramp) + new[:, :shared] * ramp
        out, self._tail = new[:, : new.shape[1] - keep], new[:, new.shape[1] - keep :]
        self._ready += out.shape[1]
        # the last block may reach back by a whole block
        oldest = max(0, end - self.block - self.hop)
        if oldest > self._start:
            self._input = self._input[oldest - self._start :]
            self._start = oldest
        return out

"""Overlapping blocks with cross-fade: any length of signal in constant memory, for networks that see whole blocks.

Every block is enhanced on its own: its level, its noise model (which may start from that of the block before) and its
noise draws, which are numbered by absolute frame, so that the overlap of two blocks diffuses with the same noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from udse_fast.audio.spectral import Spectral
from udse_fast.settings import OverlapSettings
from udse_fast.streaming.blocks import Block, Enhanced


@dataclass
class OverlapState:
    """Where a signal is, in samples at the network's rate, and what is still needed of it."""

    input: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float32))
    start: int = 0
    """Absolute number of the first sample in `input`."""
    tail: Tensor = field(default_factory=lambda: torch.zeros(2, 0, dtype=torch.float32))
    """(R, m), what the last block says about the samples from `ready` on."""
    ready: int = 0
    """Samples given out so far."""
    basis: Tensor | None = None
    """W (F, R) of the noise model of the last block, from which that of the next one starts."""


class OverlapBlocks:
    """One channel in overlapping blocks (`udse_fast.streaming.blocks.Blocks`).

    Args:
        block: samples of a block. overlap: samples that neighbours share; both multiples of the hop.
        guard: samples at either end of the overlap that the cross-fade leaves to the other block (STFT edges).
        hop: samples per frame.
        together: blocks that are run as one batch when that many are there; they all start from the same basis.
        signals: R that become of one: speech and the gain above it, or the talkers.
    """

    def __init__(self, block: int, overlap: int, guard: int, hop: int, together: int = 1, signals: int = 2) -> None:
        self.block, self.overlap, self.guard, self.hop, self.together = block, overlap, guard, hop, together
        self._state, self._ended = OverlapState(tail=torch.zeros(signals, 0, dtype=torch.float32)), False

    @classmethod
    def of(cls, settings: OverlapSettings, spectral: Spectral, signals: int = 2) -> OverlapBlocks:
        """Blocks of at least the lengths in the settings, in whole frames."""
        hop, rate = spectral.hop_length, spectral.sample_rate
        overlap = math.ceil(max(settings.overlap_seconds * rate, 3 * spectral.n_fft) / hop) * hop
        block = max(math.ceil(settings.block_seconds * rate / hop) * hop, 2 * overlap)
        return cls(block, overlap, spectral.n_fft // 2, hop, settings.batch_blocks, signals)

    @property
    def latency(self) -> int:
        return self.block + (self.together - 1) * (self.block - self.overlap) - 1

    @property
    def first(self) -> int:
        return self.latency + 1

    @property
    def advance(self) -> int:
        return self.together * (self.block - self.overlap)

    @property
    def facts(self) -> dict[str, Any]:
        return {"blocks": f"overlap, {self.block} and {self.overlap} samples"}

    def push(self, samples: Tensor) -> None:
        self._state.input = torch.cat([self._state.input, samples])

    def end(self) -> None:
        self._ended = True

    @property
    def _end(self) -> int:
        return self._state.start + len(self._state.input)

    def due(self) -> list[Block[Tensor | None]]:
        """The next `together` blocks, once they are complete; at the end fewer, and one that reaches back."""
        left = self._end - self._state.ready
        step = self.block - self.overlap
        complete = 0 if left < self.block else 1 + (left - self.block) // step
        if complete >= self.together or (self._ended and complete):
            starts = [self._state.ready + number * step for number in range(min(complete, self.together))]
            return [self._cut(start, start + self.block) for start in starts]
        if self._ended and left > self._state.tail.shape[1]:  # else the last block ended where the signal does
            return [self._cut(max(0, self._end - self.block) // self.hop * self.hop, self._end)]
        return []

    def _cut(self, start: int, end: int) -> Block[Tensor | None]:
        first = self._state.start
        return Block(self._state.input[start - first : end - first], start // self.hop, self._state.basis)

    def shared(self, block: Block[Tensor | None], signals: Tensor) -> tuple[Tensor, Tensor]:
        """(R, m) each: what the last block and `signals` of this one say about the samples that both have."""
        state = self._state
        start = state.ready - block.first_frame * self.hop
        return state.tail, signals[:, start : start + state.tail.shape[1]]

    def accept(self, block: Block[Tensor | None], enhanced: Enhanced[Tensor | None]) -> Tensor:
        """Fade the block in over the tail of the one before; holds back its overlap with the next."""
        state, start = self._state, block.first_frame * self.hop
        end = start + len(block.signal)
        new = enhanced.signals[:, state.ready - start :]
        shared = state.tail.shape[1]
        if shared:
            ramp = state.tail.new_zeros(shared)
            inner = min(self.overlap, shared) - 2 * self.guard
            first = shared - self.guard - inner
            ramp[first : first + inner] = (torch.arange(inner, dtype=torch.float32) + 0.5) / inner
            ramp[first + inner :] = 1
            new = torch.cat([state.tail * (1 - ramp) + new[:, :shared] * ramp, new[:, shared:]], dim=1)
        kept = new.shape[1] - (0 if self._ended and end == self._end else self.overlap)
        out, state.tail = new[:, :kept], new[:, kept:].clone()  # not a view: it would keep all of it
        state.ready += kept
        state.basis = enhanced.memory
        # the last block may reach back by a whole block
        oldest = max(0, end - self.block - self.hop)
        if oldest > state.start:
            state.input = state.input[oldest - state.start :]
            state.start = oldest
        return out

    def rest(self) -> Tensor:
        out, self._state.tail = self._state.tail, self._state.tail[:, :0]
        return out

    def state(self) -> dict[str, Any]:
        return dict(vars(self._state))

    def restore(self, state: dict[str, Any]) -> None:
        self._state, self._ended = OverlapState(**state), False

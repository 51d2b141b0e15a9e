"""Causal streaming: a few frames at a time, each enhanced once, everything else remembered.

A block of K frames runs through all reverse steps with what the network saw before at each of them (`CausalPrior`), a
noise model that goes on learning (`OnlineNMF`), a level that knows the past only, and noise numbered by absolute frame.
All of that is in the `CausalMemory`; here the signal is cut into frames, and the frames are added up again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from udse_fast.audio.spectral import Spectral
from udse_fast.streaming.blocks import Block, Enhanced
from udse_fast.streaming.causal_memory import CausalMemory


@dataclass
class CausalState:
    """Where a signal is, in samples at the network's rate, and what is still needed of it."""

    input: Tensor
    """From the first sample of the next block on."""
    sum: Tensor
    """(2, n_fft - hop) of the windowed frames of both signals so far."""
    weight: Tensor
    """(n_fft - hop,) of their squared windows."""
    frame: int
    """Absolute number of the next frame."""
    skip: int
    """Samples of the next blocks that lie before the signal starts."""
    received: int = 0
    returned: int = 0


class CausalBlocks:
    """One channel in blocks of K frames (`udse_fast.streaming.blocks.Blocks`).

    Args:
        spectral: the STFT.
        block_frames: K.
        memory: of a signal that has not begun.
    """

    def __init__(self, spectral: Spectral, block_frames: int, memory: CausalMemory) -> None:
        hop, n_fft = spectral.hop_length, spectral.n_fft
        self.block_frames, self.memory, self._ended = block_frames, memory, False
        self._hops, self._window = block_frames * hop, (block_frames - 1) * hop + n_fft
        self._reach = n_fft // 2  # frames are centred: the first reaches so far before the signal
        self._weight = spectral.squared_windows(block_frames)
        nothing = torch.zeros(n_fft - hop, dtype=torch.float32)
        both = nothing.expand(2, -1).clone()
        self._state = CausalState(
            torch.zeros(self._reach, dtype=torch.float32), both, nothing, frame=0, skip=self._reach
        )

    @property
    def latency(self) -> int:
        return self._window - 1

    @property
    def first(self) -> int:
        return self._window - self._reach

    @property
    def advance(self) -> int:
        return self._hops

    @property
    def facts(self) -> dict[str, Any]:
        return {"blocks": f"causal, {self.block_frames} frames", "memory": self.memory.prior.kind}

    def push(self, samples: Tensor) -> None:
        self._state.received += len(samples)
        self._state.input = torch.cat([self._state.input, samples])

    def end(self) -> None:
        """Silence follows, until everything has been given out."""
        state, self._ended = self._state, True
        blocks = -(-(state.received - state.returned + state.skip) // self._hops)
        missing = max(0, (blocks - 1) * self._hops + self._window - len(state.input))
        state.input = torch.cat([state.input, state.input.new_zeros(missing)])

    def due(self) -> list[Block[CausalMemory]]:
        """The next K frames, once they are complete: one block, as the one after it starts from its memory."""
        if len(self._state.input) < self._window:
            return []
        return [Block(self._state.input[: self._window], self._state.frame, self.memory)]

    def accept(self, block: Block[CausalMemory], enhanced: Enhanced[CausalMemory]) -> Tensor:
        """Add the frames up; gives out K hops, of which no later frame is a part."""
        state, hops, shared = self._state, self._hops, len(self._state.weight)
        total = torch.cat([enhanced.signals[:, :shared] + state.sum, enhanced.signals[:, shared:]], dim=1)
        weight = torch.cat([self._weight[:shared] + state.weight, self._weight[shared:]])
        out = (total[:, :hops] / weight[:hops].clamp_min(1e-3))[:, state.skip :]
        if self._ended:
            out = out[:, : state.received - state.returned]
        self._state = CausalState(
            input=state.input[hops:],
            sum=total[:, hops:].clone(),
            weight=weight[hops:].clone(),
            frame=state.frame + self.block_frames,
            skip=max(0, state.skip - hops),
            received=state.received,
            returned=state.returned + out.shape[1],
        )
        self.memory = enhanced.memory
        return out

    def rest(self) -> Tensor:
        """Nothing: the silence after the end has brought everything out."""
        return self._state.sum[:, :0]

    def state(self) -> dict[str, Any]:
        return {**vars(self._state), "memory": self.memory.state()}

    def restore(self, state: dict[str, Any]) -> None:
        cut = dict(state)
        self.memory = self.memory.restored(cut.pop("memory"))
        self._state, self._ended = CausalState(**cut), False

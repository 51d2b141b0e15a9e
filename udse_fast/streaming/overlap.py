"""Overlapping blocks with cross-fade: any length of signal in constant memory, for networks that see whole blocks.

Every block is enhanced on its own: its level, its noise model (which may start from that of the block before) and its
noise draws, which are numbered by absolute frame, so that the overlap of two blocks diffuses with the same noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from udse_fast.sampling.passes import gather
from udse_fast.sampling.requests import Pass

BlockPass = Callable[[Tensor, int, Any], Pass[tuple[Tensor, Any]]]
"""(signal (L,) at the network's rate, absolute number of its first frame, what the block before left or None) ->
(K, L): speech, noise, ..., and what is left for the block after."""


@dataclass
class OverlapBlocks:
    """Push samples of any number in, get what is ready out, aligned; `finishing` returns the rest.

    Args:
        enhance: the reverse pass of one block.
        block: samples of a block. overlap: samples that neighbours share; both multiples of the hop.
        guard: samples at either end of the overlap that the cross-fade leaves to the other block (STFT edges).
        hop: samples per frame.
        outputs: K.
        together: blocks that are run as one batch when that many are there; they all start from the same left-over.
    """

    enhance: BlockPass
    block: int
    overlap: int
    guard: int
    hop: int
    outputs: int = 1
    together: int = 1
    _input: Tensor = field(init=False)
    _start: int = field(default=0, init=False)  # absolute number of the first sample in _input
    _tail: Tensor = field(init=False)  # what the last block says about the samples from _ready on
    _ready: int = field(default=0, init=False)  # samples given out so far
    _left: Any = field(default=None, init=False)  # by the last block

    def __post_init__(self) -> None:
        self._input = torch.zeros(0)
        self._tail = torch.zeros(self.outputs, 0)

    @property
    def latency(self) -> int:
        """Samples that must follow a sample before it is given out, at most."""
        return self.block + (self.together - 1) * (self.block - self.overlap) - 1

    @property
    def kind(self) -> str:
        """What a state must be of to be taken over."""
        return f"overlap, {self.block} and {self.overlap} samples"

    @property
    def first(self) -> int:
        """Samples that must come before anything is given out."""
        return self.latency + 1

    @property
    def advance(self) -> int:
        """Samples that are given out at a time."""
        return self.together * (self.block - self.overlap)

    def pushing(self, samples: Tensor) -> Pass[Tensor]:
        """(n,) -> (K, m), m >= 0."""
        self._input = torch.cat([self._input, samples])
        done = [torch.zeros(self.outputs, 0)]
        while self._start + len(self._input) > self._ready + self.latency:
            done.append((yield from self._run(self.together)))
        return torch.cat(done, dim=1)

    def finishing(self) -> Pass[Tensor]:
        """(K, m): everything that was not given out yet. The last block reaches back so that it is a full one."""
        end = self._start + len(self._input)
        done = []
        while end >= self._ready + self.block:
            done.append((yield from self._run(min(self.together, self._whole_blocks(end)))))
        if end - self._ready == self._tail.shape[1]:  # the last block ended where the signal does
            return torch.cat([*done, self._tail], dim=1)
        start = max(0, end - self.block) // self.hop * self.hop
        ((new, self._left),) = yield from gather([self._pass(start, end)])
        return torch.cat([*done, self._joined(start, new, keep=0)], dim=1)

    def _whole_blocks(self, end: int) -> int:
        return 1 + (end - self._ready - self.block) // (self.block - self.overlap)

    def _pass(self, start: int, end: int) -> Pass[tuple[Tensor, Any]]:
        return self.enhance(self._input[start - self._start : end - self._start], start // self.hop, self._left)

    def _run(self, count: int) -> Pass[Tensor]:
        """The next `count` blocks as one batch; holds back the overlap of the last."""
        starts = [self._ready + number * (self.block - self.overlap) for number in range(count)]
        results = yield from gather([self._pass(start, start + self.block) for start in starts])
        self._left = results[-1][1]
        done = [self._joined(start, new, self.overlap) for start, (new, _) in zip(starts, results, strict=True)]
        return torch.cat(done, dim=1)

    def _joined(self, start: int, new: Tensor, keep: int) -> Tensor:
        """A block that starts at `start`, faded in over the tail of the one before; its last `keep` samples stay."""
        end = start + new.shape[1]
        new = new[:, self._ready - start :]
        shared = self._tail.shape[1]
        if shared:
            ramp = torch.zeros(shared)
            inner = min(self.overlap, shared) - 2 * self.guard
            first = shared - self.guard - inner
            ramp[first : first + inner] = (torch.arange(inner) + 0.5) / inner
            ramp[first + inner :] = 1
            new = torch.cat([self._tail * (1 - ramp) + new[:, :shared] * ramp, new[:, shared:]], dim=1)
        out, self._tail = new[:, : new.shape[1] - keep], new[:, new.shape[1] - keep :]
        self._ready += out.shape[1]
        # the last block may reach back by a whole block
        oldest = max(0, end - self.block - self.hop)
        if oldest > self._start:
            self._input = self._input[oldest - self._start :]
            self._start = oldest
        return out

    def state(self) -> dict[str, Any]:
        """Everything that the next sample depends on: tensors and numbers."""
        return {name: getattr(self, name) for name in ("_input", "_start", "_tail", "_ready", "_left")}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        for name, value in state.items():
            setattr(self, name, value)

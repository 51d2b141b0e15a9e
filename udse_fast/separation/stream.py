"""`SeparationStream`: a recording in chunks, its sources as they become final, aligned sample for sample."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from udse_fast.audio.format import AudioFormat, check_finite
from udse_fast.audio.resampling import Resampler
from udse_fast.errors import UdseError
from udse_fast.separation.order import best_order, in_order
from udse_fast.streaming.blocks import Block, Enhanced
from udse_fast.streaming.overlap import OverlapBlocks
from udse_fast.streaming.stream import Audio

Samples = NDArray[np.float32]
SeparateBlock = Callable[[Tensor, Block[Any]], Tensor]
"""(signals (C, L) of all channels, the block of the first of them) -> talkers (C, K, L)."""


class SeparatedChannel:
    """One channel, to the network's rate, through blocks, and back; what the talkers leave over is the last source."""

    def __init__(self, blocks: OverlapBlocks, talkers: int, rate: int, network_rate: int) -> None:
        self.blocks = blocks
        self._before = Resampler(rate, network_rate)
        self._after = [Resampler(network_rate, rate) for _ in range(talkers)]
        self._mixture = np.zeros(0, np.float32)  # what came, from the first sample that was not given out yet on

    def push(self, samples: Samples) -> None:
        """Samples (n,) that come next."""
        self._mixture = np.concatenate([self._mixture, samples])
        self.blocks.push(torch.from_numpy(self._before.process(samples)))

    def end(self) -> None:
        """No more samples come."""
        self.blocks.push(torch.from_numpy(self._before.flush()))
        self.blocks.end()

    def accept(self, block: Block[Tensor | None], talkers: Tensor) -> Samples:
        """The talkers (K, L) of the first block that is due -> (K + 1, m), all sources as far as they are final."""
        rows = self.blocks.accept(block, Enhanced(talkers, None)).numpy()
        return self._with_the_rest([after.process(row) for after, row in zip(self._after, rows, strict=True)])

    def finish(self) -> Samples:
        """(K + 1, m), what is left when no block is due after the end."""
        rows = self.blocks.rest().numpy()
        pairs = zip(self._after, rows, strict=True)
        return self._with_the_rest([np.concatenate([after.process(row), after.flush()]) for after, row in pairs])

    def _with_the_rest(self, talkers: list[Samples]) -> Samples:
        """Talkers that are ready, and what they leave over of what came; the way there and back gives a sample more."""
        ready = np.stack(talkers)[:, : len(self._mixture)]
        mixture, self._mixture = np.split(self._mixture, [ready.shape[1]])
        return np.concatenate([ready, (mixture - ready.sum(0))[None]])


class SeparationStream:
    """A recording in chunks of any length, in constant memory. Made by `Separator.open_stream`.

    The concatenated output does not depend on how the input is cut, has its length, and is aligned with it.

    Args:
        separate: how a block of all channels is separated.
        blocks: makes what cuts a channel into blocks, for a number of talkers.
        names: of the talkers and, last, of what they leave over.
        rate, network_rate: Hz.
        channels: C.
    """

    def __init__(
        self,
        separate: SeparateBlock,
        blocks: Callable[[int], OverlapBlocks],
        names: Sequence[str],
        rate: int,
        network_rate: int,
        channels: int,
    ) -> None:
        self._separate, self.names, self.sample_rate = separate, tuple(names), rate
        talkers = len(self.names) - 1
        self._channels = [SeparatedChannel(blocks(talkers), talkers, rate, network_rate) for _ in range(channels)]
        self._format = AudioFormat(False, "float32", one_dimensional=channels == 1)
        self._received, self._busy_seconds = 0, 0.0

    @property
    def real_time_factor(self) -> float:
        """Seconds of computing per second of audio so far."""
        return self._busy_seconds * self.sample_rate / max(1, self._received)

    def process(self, chunk: Audio) -> dict[str, Audio]:
        """Feed a chunk (n,) or (channels, n), n >= 0; returns what is ready of every source, in the same form.

        Raises:
            UdseError: another shape or dtype, NaN or infinity.
        """
        self._format = AudioFormat.of(chunk, "chunk", len(self._channels))
        samples = self._format.to_float(chunk)
        if len(samples) != len(self._channels):
            raise UdseError(f"chunk: expected {len(self._channels)} channels, got the shape {tuple(chunk.shape)}")
        check_finite(samples, "chunk")
        self._received += samples.shape[1]
        for channel, row in zip(self._channels, samples, strict=True):
            channel.push(row)
        return self._named(self._advance())

    def flush(self) -> dict[str, Any]:
        """The rest of every source; nothing may follow."""
        for channel in self._channels:
            channel.end()
        ready = self._advance()
        return self._named(np.concatenate([ready, np.stack([channel.finish() for channel in self._channels])], axis=2))

    def _named(self, sources: Samples) -> dict[str, Any]:
        """(C, K + 1, m) -> by name, in the form in which it came."""
        return {name: self._format.from_float(sources[:, number]) for number, name in enumerate(self.names)}

    def _advance(self) -> Samples:
        """What the blocks that are due give."""
        started = time.perf_counter()
        parts = [np.zeros((len(self._channels), len(self.names), 0), np.float32)]
        while all(due := [channel.blocks.due() for channel in self._channels]):
            parts.append(self._next_block([blocks[0] for blocks in due]))
        self._busy_seconds += time.perf_counter() - started
        return np.concatenate(parts, axis=2)

    def _next_block(self, blocks: list[Block[Tensor | None]]) -> Samples:
        """Separate a block of all channels, its talkers in the order of the block before."""
        talkers = self._separate(torch.stack([block.signal for block in blocks]), blocks[0])
        shared = [c.blocks.shared(b, t) for c, b, t in zip(self._channels, blocks, talkers, strict=True)]
        order = best_order(*(torch.cat(sides, dim=1) for sides in zip(*shared, strict=True)))
        ordered = in_order(talkers, order, axis=1)
        triples = zip(self._channels, blocks, ordered, strict=True)
        return np.stack([channel.accept(block, signals) for channel, block, signals in triples])

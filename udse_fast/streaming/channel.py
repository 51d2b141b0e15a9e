"""`Channel`: one channel of a stream, to the network's rate, through blocks, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from udse_fast.audio.resampling import Resampler
from udse_fast.streaming.blocks import Block, Blocks, Enhanced

Samples = NDArray[np.float32]


class Channel:
    """Samples of any number in, speech and noise out as they become final, aligned.

    Args:
        blocks: that the signal is cut into.
        rate, network_rate: of the samples and of the blocks, Hz.
        leave: share of the noise that stays in the speech.
    """

    def __init__(self, blocks: Blocks, rate: int, network_rate: int, leave: float) -> None:
        self.blocks, self.leave = blocks, leave
        self.before, self.after = Resampler(rate, network_rate), Resampler(network_rate, rate)
        self._mixture = np.zeros(0, np.float32)  # what came, from the first sample that was not given out yet on
        self._speech = np.zeros(0, np.float32)  # what is ready

    def push(self, samples: Samples) -> None:
        """Samples (n,) that come next."""
        self._mixture = np.concatenate([self._mixture, samples])
        self.blocks.push(torch.from_numpy(self.before.process(samples)))

    def end(self) -> None:
        """No more samples come."""
        self.blocks.push(torch.from_numpy(self.before.flush()))
        self.blocks.end()

    def accept(self, block: Block[Any], enhanced: Enhanced[Any]) -> None:
        """The result of the first block that is due."""
        self._ready(self.blocks.accept(block, enhanced).numpy())

    def finish(self) -> None:
        """What is left after the end, when no block is due."""
        self._ready(self.blocks.rest().numpy())
        self._speech = np.concatenate([self._speech, self.after.flush()])[: len(self._mixture)]

    def _ready(self, speech: Samples) -> None:
        self._speech = np.concatenate([self._speech, self.after.process(speech)])

    def take(self) -> tuple[Samples, Samples]:
        """Speech and noise (m,) that are ready; they add up to what came."""
        speech, self._speech = self._speech, np.zeros(0, np.float32)
        mixture, self._mixture = self._mixture[: len(speech)], self._mixture[len(speech) :].copy()
        if self.leave:
            speech = (1 - self.leave) * speech + self.leave * mixture
        return speech, mixture - speech

    def state(self) -> dict[str, Any]:
        """Everything that the samples to come depend on."""
        return {
            "blocks": self.blocks.state(),
            "before": self.before.state(),
            "after": self.after.state(),
            "mixture": torch.from_numpy(self._mixture),
            "speech": torch.from_numpy(self._speech),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.blocks.restore(state["blocks"])
        self.before.restore(state["before"])
        self.after.restore(state["after"])
        self._mixture, self._speech = state["mixture"].numpy(), state["speech"].numpy()

"""`Channel`: one channel of a stream, to the network's rate, through blocks, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from udse_fast.audio.resampling import Resampler
from udse_fast.streaming.blocks import Block, Blocks, Enhanced

Samples = NDArray[np.float32]
_RESAMPLED = {"follow": ("speech", "gain", "low"), "keep": ("speech", "low"), "cut": ("speech",)}
"""What has to come back from the network's rate."""


class Channel:
    """Samples of any number in, speech and noise out as they become final, aligned.

    Args:
        blocks: that the signal is cut into.
        rate, network_rate: of the samples and of the blocks, Hz.
        leave: share of the noise that stays in the speech.
        high_band: what becomes of the band that the network does not see, see `ReadOutSettings`.
    """

    def __init__(
        self, blocks: Blocks, rate: int, network_rate: int, leave: float = 0.0, high_band: str = "cut"
    ) -> None:
        self.blocks, self.leave = blocks, leave
        self.high_band = high_band if rate > network_rate else "cut"  # else there is none
        self.before = Resampler(rate, network_rate)
        self.after = {name: Resampler(network_rate, rate) for name in _RESAMPLED[self.high_band]}
        self._low = np.zeros(0, np.float32)  # what came at the network's rate, as long as it is needed
        self._mixture = np.zeros(0, np.float32)  # what came, from the first sample that was not given out yet on
        self._speech = np.zeros(0, np.float32)  # what is ready

    @property
    def delay(self) -> int:
        """Samples at the network's rate that must follow a sample before it has come back to the rate."""
        return self.after["speech"].delay

    def push(self, samples: Samples) -> None:
        """Samples (n,) that come next."""
        self._mixture = np.concatenate([self._mixture, samples])
        self._push_low(self.before.process(samples))

    def _push_low(self, samples: Samples) -> None:
        if self.high_band != "cut":
            self._low = np.concatenate([self._low, samples])
        self.blocks.push(torch.from_numpy(samples))

    def end(self) -> None:
        """No more samples come."""
        self._push_low(self.before.flush())
        self.blocks.end()

    def accept(self, block: Block[Any], enhanced: Enhanced[Any]) -> None:
        """The result of the first block that is due."""
        self._join(self.blocks.accept(block, enhanced).numpy())

    def finish(self) -> None:
        """What is left after the end, when no block is due."""
        self._join(self.blocks.rest().numpy())
        rest = {name: resampler.flush() for name, resampler in self.after.items()}
        self._append(rest)

    def _join(self, signals: Samples) -> None:
        """Speech and gain (2, m) at the network's rate, back to the rate."""
        parts = {"speech": signals[0], "gain": signals[1], "low": self._low[: signals.shape[1]]}
        self._low = self._low[signals.shape[1] :].copy()
        self._append({name: resampler.process(parts[name]) for name, resampler in self.after.items()})

    def _append(self, parts: dict[str, Samples]) -> None:
        """Speech that is ready, and with it the band above: the input less what the network's rate holds of it."""
        start = len(self._speech)
        mixture = self._mixture[start : start + len(parts["speech"])]  # the way there and back gives a sample more
        parts = {name: part[: len(mixture)] for name, part in parts.items()}
        speech = parts["speech"]
        if self.high_band != "cut":
            above = mixture - parts["low"]
            speech = speech + (above if self.high_band == "keep" else np.clip(parts["gain"], 0, 1) * above)
        self._speech = np.concatenate([self._speech, speech])

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
            "after": {name: resampler.state() for name, resampler in self.after.items()},
            "low": torch.from_numpy(self._low),
            "mixture": torch.from_numpy(self._mixture),
            "speech": torch.from_numpy(self._speech),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.blocks.restore(state["blocks"])
        self.before.restore(state["before"])
        for name, resampler in self.after.items():
            resampler.restore(state["after"][name])
        self._low, self._mixture, self._speech = (state[name].numpy() for name in ("low", "mixture", "speech"))

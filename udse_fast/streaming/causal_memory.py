"""What a causal stream remembers from block to block: `CausalMemory`."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from udse_fast.sampling.noise_models import OnlineNMF
from udse_fast.sampling.read_out import ReadOut
from udse_fast.streaming.causal_prior import CausalPrior

RELEASE_SECONDS = 0.5
"""In which the level falls to 1/e once the loudest frame is forgotten: a step would be heard by the prior."""


@dataclass(frozen=True)
class Level:
    """The level that the prior is shown: that of the loudest frame of the last seconds, then a slow release."""

    loudest: Tensor
    """Largest compressed modulus of each of the last blocks."""
    now: Tensor
    """0-d."""
    release: float
    """What a block leaves of a level that nothing holds up."""

    @classmethod
    def over(cls, seconds: float, block_seconds: float) -> Level:
        """That of a signal which has not begun."""
        blocks = max(1, round(seconds / block_seconds))
        nothing = torch.zeros(blocks, dtype=torch.float32)
        return cls(nothing, nothing[0].clone(), math.exp(-block_seconds / RELEASE_SECONDS))

    def after(self, compressed: Tensor) -> Level:
        """The level with a block (F, K) more."""
        loudest = torch.cat([self.loudest[1:], compressed.abs().amax().cpu().reshape(1)])
        return replace(self, loudest=loudest, now=torch.maximum(loudest.max(), self.now * self.release))


@dataclass(frozen=True)
class CausalMemory:
    """Network, noise model, read-out and level as the last block left them.

    A block works on a `copy`. What it is copied from stays as it was, so that the block can be run again.
    """

    prior: CausalPrior
    noise_model: OnlineNMF
    read_out: ReadOut
    level: Level
    heard: Tensor
    """(n,) at most a second before the end of the last block, in which hum is looked for; empty where it is not."""

    def copy(self) -> CausalMemory:
        """A memory that a block may change. The noise model and the read-out replace their tensors, so these are
        shared."""
        return replace(
            self,
            prior=self.prior.next_block(),
            noise_model=copy.copy(self.noise_model),
            read_out=copy.copy(self.read_out),
        )

    def state(self) -> dict[str, Any]:
        """Tensors, numbers, dicts and lists of them."""
        return {
            "prior": self.prior.state(),
            "noise_model": self.noise_model.state(),
            "read_out": self.read_out.state(),
            "level": {"loudest": self.level.loudest, "now": self.level.now},
            "heard": self.heard,
        }

    def restored(self, state: dict[str, Any]) -> CausalMemory:
        """The memory of the same kind that `state` was taken of."""
        memory = replace(self.copy(), level=replace(self.level, **state["level"]), heard=state["heard"])
        memory.prior.restore(state["prior"])
        memory.noise_model.restore(state["noise_model"])
        memory.read_out.restore(state["read_out"])
        return memory

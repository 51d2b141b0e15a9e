"""`Block` and `Enhanced`: what an enhancer of blocks takes and gives. `Blocks`: what cuts and joins them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor

Memory = TypeVar("Memory")


@dataclass(frozen=True)
class Block(Generic[Memory]):
    """A piece of one channel that is due."""

    signal: Tensor
    """(L,) float32 at the network's rate."""
    first_frame: int
    """Absolute number of its first frame, by which its noise is drawn."""
    memory: Memory
    """What the blocks before left. It is read, and never changed: a block that fails can be run again."""


@dataclass(frozen=True)
class Enhanced(Generic[Memory]):
    """What became of a block."""

    signals: Tensor
    """(2, L) float32 at the network's rate, on the CPU: speech, and the gain for what lies above the network's band."""
    memory: Memory
    """What the next block starts from."""
    diverged: bool = False
    """The sampler diverged, and the mixture took the place of the speech, attenuated."""
    network_calls: int = 0
    """Per posterior sample."""


class Blocks(Protocol):
    """Cuts one channel at the network's rate into blocks and joins what becomes of them; `overlap` and `causal`.

    `push` takes samples in, `due` says which blocks are complete and changes nothing, `accept` takes the result of the
    first of them and gives out what is final. After `end` the last blocks are due, and `rest` is what they leave over.
    """

    @property
    def latency(self) -> int:
        """Samples that must follow a sample before it is given out, at most."""

    @property
    def first(self) -> int:
        """Samples that must come before anything is given out."""

    @property
    def advance(self) -> int:
        """Samples that are given out at a time."""

    @property
    def facts(self) -> dict[str, Any]:
        """Identifies the kind of blocks; states are taken over from blocks with the same facts only."""

    def push(self, samples: Tensor) -> None:
        """Samples (n,) that come next."""

    def end(self) -> None:
        """No more samples come."""

    def due(self) -> Sequence[Block[Any]]:
        """The blocks that can be enhanced now, side by side; nothing changes."""

    def accept(self, block: Block[Any], enhanced: Enhanced[Any]) -> Tensor:
        """Go on to the next block; returns (2, m), the samples of both signals that are final."""

    def rest(self) -> Tensor:
        """(2, m), the samples that are left when nothing is due after the `end`."""

    def state(self) -> dict[str, Any]:
        """Everything that the samples to come depend on: tensors, numbers, dicts and lists of them."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""

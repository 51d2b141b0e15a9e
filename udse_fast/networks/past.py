"""What a causal network saw before: a `Past` at one noise level of one signal (or batch of signals)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

Self = TypeVar("Self", bound="Past")


class Past:
    """Tensors (B, ...) that a network keeps from block to block; none before the first, which counts as zeros."""

    kind: ClassVar[str]
    """Of what is kept: states are not taken over from another kind."""

    def __init__(self, kept: list[Tensor] | None = None) -> None:
        self.kept = [] if kept is None else kept

    def copy(self: Self) -> Self:
        """One for the next block, which leaves this one as it is."""
        return type(self)(list(self.kept))

    def rewind(self: Self) -> Self:
        """Itself, ready for the next block."""
        return self

    @classmethod
    def joined(cls: type[Self], pasts: Sequence[Self], sizes: Sequence[int]) -> Self:
        """Those of several signals, `sizes` items each, for one batch; what has seen nothing yet counts as zeros."""
        longest = max(pasts, key=lambda past: len(past.kept)).kept
        together = cls()
        together.kept = [
            torch.cat(
                [
                    past.kept[number] if past.kept else known.new_zeros(size, *known.shape[1:])
                    for past, size in zip(pasts, sizes, strict=True)
                ]
            )
            for number, known in enumerate(longest)
        ]
        return together

    def give_back(self: Self, pasts: Sequence[Self], sizes: Sequence[int]) -> None:
        """To each signal its own items."""
        parts = [kept.split(sizes) for kept in self.kept]
        for number, past in enumerate(pasts):
            past.kept = [part[number].clone() for part in parts]


class LayerPast(Past):
    """The frames just before a block as every layer of a network in torch saw them.

    Layers are known by the order in which they ask, so one `LayerPast` serves one network. Its tensors are replaced,
    never written to.
    """

    kind = "torch"

    _next = 0

    def rewind(self) -> LayerPast:
        """Back to the first layer, for the next block."""
        self._next = 0
        return self

    def before(self, x: Tensor, frames: int) -> Tensor:
        """x (B, T, F, C) with the `frames` frames before it, (B, frames + T, F, C); keeps the last ones."""
        if self._next == len(self.kept):
            self.kept.append(x.new_zeros(x.shape[0], frames, *x.shape[2:]))
        longer = torch.cat([self.kept[self._next], x], dim=1)
        self.kept[self._next] = longer[:, -frames:].clone()  # not a view: it would keep all of it
        self._next += 1
        return longer


class CorePast(Past):
    """One tensor (B, memory_size) for all layers of the C++ core.

    The core updates it in place. Only a `copy` shares the tensor until the core has written the next one, without
    touching it.
    """

    kind = "core"
    _shared = False

    def __init__(self, kept: list[Tensor] | None = None) -> None:
        super().__init__(None if kept is None else [layer.clone() for layer in kept])

    def copy(self) -> CorePast:
        past = CorePast()
        past.kept, past._shared = list(self.kept), True
        return past

    def to_update(self, batch: int, size: int) -> tuple[Tensor | None, Tensor]:
        """What the core goes on from, where that is not what it writes to, and (batch, size) that it writes to."""
        if not self.kept:  # zeros before the first block
            self.kept = [torch.zeros(batch, size, dtype=torch.float32)]
        elif self._shared:
            before = self.kept[0]
            self.kept = [torch.empty_like(before)]
            self._shared = False
            return before, self.kept[0]
        return None, self.kept[0]

"""`in_pieces`: one item on the threads of a CPU, by pieces of its frames, which meet a few times in a network call.

A convolution sees a few frames to either side. So a part of a network can be made of pieces of the frames side by side,
each with as many neighbouring frames as the part looks at, and what those spoil at the edges is cut off. That computes
a twentieth to a fifth more than the threads of torch, which share out every operator. But those wait, spinning, after
each, and beside busy programs (`Crowd`) every such meeting costs turns of the scheduler: see `side_by_side`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import TypeVar

import torch
from torch import Tensor

from udse_fast.networks.crowd import CROWD
from udse_fast.networks.side_by_side import on_one_thread, side_by_side, threads_here

Result = TypeVar("Result")

FEWEST_FRAMES = 100
"""Of a piece: so many that the matrix products of a piece are made as those of the whole, to the bit."""

_wanted: ContextVar[bool] = ContextVar("pieces wanted", default=False)


def alone(call: Callable[[], Result]) -> Result:
    """Return call(), a network call of one item, on the threads of torch or, in a crowd, by pieces, without gradients.

    In other calls (of many items, in training, in exports) `in_pieces` cuts nothing.
    """
    threads = threads_here()
    if threads < 2:
        return call()
    if not CROWD.is_there:
        with CROWD.watched(threads):
            return call()

    def cut() -> Result:
        before = _wanted.set(True)
        try:
            return call()
        finally:
            _wanted.reset(before)

    return on_one_thread(cut)


def without_company(call: Callable[[], Result]) -> Result:
    """Return call(): in a crowd by a thread whose operators have no other, except in network calls."""
    return on_one_thread(call) if CROWD.is_there and torch.get_num_threads() > 1 else call()


def in_pieces(part: Callable[..., Sequence[Tensor]], maps: Sequence[Tensor], reach: int) -> Sequence[Tensor]:
    """Return part(*maps), to the bit.

    Args:
        part: of a network; a frame of what it returns, tensors (B, T, ...), depends on no others than `reach` to either
            side.
        maps: (B, T, ...), or (B, 1, ...) where they are the same for all frames.
        reach: in frames.
    """
    if not _wanted.get():
        return part(*maps)
    frames = max(x.shape[1] for x in maps)
    count = max(1, min(threads_here(), frames // FEWEST_FRAMES))

    def piece(number: int) -> list[Tensor]:
        start, end = (frames * n // count for n in (number, number + 1))
        first, last = max(0, start - reach), min(frames, end + reach)
        told = (x if x.shape[1] == 1 else x[:, first:last] for x in maps)
        with CROWD.watched():
            return [y[:, start - first : end - first] for y in part(*told)]

    return [torch.cat(parts, dim=1) for parts in zip(*side_by_side(piece, count), strict=True)]

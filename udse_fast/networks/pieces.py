"""`in_pieces`: one item on the threads of a CPU, by pieces of its frames, which meet a few times in a network call.

A convolution sees a few frames to either side. So a part of a network is made of pieces of the frames side by side, each
with as many neighbouring frames as the part looks at, and what those spoil at the edges is cut off. The threads of torch
would share out every operator instead, and wait, spinning, after each: see `side_by_side`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from udse_fast.networks.side_by_side import side_by_side

FEWEST_FRAMES = 60
"""Of a piece: what is computed twice, at its edges, is then less than what is gained."""

_wanted: ContextVar[bool] = ContextVar("pieces wanted", default=False)


@contextmanager
def cut_into_pieces(wanted: bool = True) -> Iterator[None]:
    """Inside, `in_pieces` cuts, on this thread; elsewhere (in training, in exports) parts of networks are whole."""
    before = _wanted.set(wanted)
    try:
        yield
    finally:
        _wanted.reset(before)


def in_pieces(part: Callable[..., Sequence[Tensor]], maps: Sequence[Tensor], reach: int) -> Sequence[Tensor]:
    """Return part(*maps).

    Args:
        part: of a network; a frame of what it returns, tensors (B, T, ...), depends on no others than `reach` to either
            side.
        maps: (B, T, ...), or (B, 1, ...) where they are the same for all frames.
        reach: in frames.
    """
    frames = max(x.shape[1] for x in maps)
    count = min(torch.get_num_threads(), frames // FEWEST_FRAMES) if _wanted.get() else 1
    if count < 2:
        return part(*maps)

    def piece(number: int) -> list[Tensor]:
        start, end = (frames * n // count for n in (number, number + 1))
        first, last = max(0, start - reach), min(frames, end + reach)
        told = (x if x.shape[1] == 1 else x[:, first:last] for x in maps)
        return [y[:, start - first : end - first] for y in part(*told)]

    return [torch.cat(parts, dim=1) for parts in zip(*side_by_side(piece, count), strict=True)]

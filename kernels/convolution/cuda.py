"""The CUDA form, channels_last, float16 (sm_75 and newer) or bfloat16 (sm_80 and newer)."""

from __future__ import annotations

from ctypes import byref

import torch

from udse_fast.backends.cuda_library import Convolution as Argument
from udse_fast.backends.cuda_library import Source, cuda_library, shape_argument
from udse_fast.kernels.convolution.packing import packed
from udse_fast.kernels.convolution.reference import Convolution, Convolved
from udse_fast.kernels.fused_layers import Norm
from udse_fast.kernels.fused_layers.cuda import DTYPES, fold_norm

BINS, FRAMES = 8, 16
"""Of the rectangle that a block makes, and whose statistics it gives."""
MOST_SOURCES = 4


def _dense(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _source(x: torch.Tensor, weight: torch.Tensor, fold: torch.Tensor | None, first: int) -> Source:
    """A map whose channels are those from `first` on of the norm, folded: (2, B, C)."""
    factor, offset = (None, None) if fold is None else (each.data_ptr() + 4 * first for each in fold)
    stride, taps = 0 if fold is None else fold.shape[2], weight.shape[1]
    can_be_read_at_once = x.shape[1] % 8 == 0 and x.data_ptr() % 16 == 0
    return Source(x.data_ptr(), factor, offset, weight.data_ptr(), x.shape[1], stride, taps, can_be_read_at_once)


def convolution(job: Convolution) -> Convolved:
    norm = job.input if isinstance(job.input, Norm) else None
    maps = (
        [job.input] if not isinstance(job.input, Norm) else [x for x in (job.input.x, job.input.skip) if x is not None]
    )
    maps, added = [_dense(x) for x in maps], [_dense(x) for x in job.added]
    fold = None if norm is None else fold_norm(norm._replace(x=maps[0], skip=maps[1] if len(maps) > 1 else None))
    like, channels = maps[0], len(job.weight)
    weights = packed(job.weight, tuple(x.shape[1] for x in maps))
    firsts = [sum(x.shape[1] for x in maps[:i]) for i in range(len(maps))]
    sources = [_source(x, w, fold, first) for x, w, first in zip(maps, weights, firsts, strict=True)]
    if job.shortcut is not None:
        shortcuts = packed(job.shortcut, tuple(x.shape[1] for x in added))
        sources += [_source(x, w, None, 0) for x, w in zip(added, shortcuts, strict=True)]
    residual = added[0] if added and job.shortcut is None else None
    B, _, bins, frames = like.shape
    out = torch.empty(
        (B, channels, bins, frames), dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )
    statistics = None
    if job.measured:
        statistics = like.new_empty((3, B, -(-bins // BINS) * -(-frames // FRAMES), channels), dtype=torch.float32)
    bias = None if job.bias is None else job.bias.to(like.dtype)
    pointers = [None if x is None else x.data_ptr() for x in (bias, residual, out, statistics)]
    together = channels % 4 == 0 and not any((pointer or 0) % 8 for pointer in pointers[1:3])
    argument = Argument(
        (Source * MOST_SOURCES)(*sources), len(sources), shape_argument((B, bins, frames)), channels,
        weights[0].shape[2], *pointers, job.factor, DTYPES[like.dtype], together,
    )  # fmt: skip
    cuda_library().call("convolution", like, byref(argument))
    return out, statistics

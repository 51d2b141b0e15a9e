"""The CUDA form, channels_last, for GPUs that Triton does not know (sm_75)."""

from __future__ import annotations

from ctypes import byref

import torch

from udse_fast.cuda_library import GroupNorm, cuda_library, shape_argument
from udse_fast.kernels.fused_layers.reference import EPS

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
LEAST_TILE, MAX_TILES = 32, 1024  # positions; tiles of a sample


def _dense(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _rows(condition: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor | None:
    """A condition (B or 1, C, 1, 1) as dense rows (B or 1, C) in the dtype of `like`."""
    return None if condition is None else condition.flatten(1).to(like.dtype).contiguous()


def _stride(rows: torch.Tensor | None) -> int:
    """How far apart the rows of two samples are: 0 where all share one."""
    return rows.shape[1] if rows is not None and rows.shape[0] > 1 else 0


def _pointer(rows: torch.Tensor | None) -> int | None:
    return None if rows is None else rows.data_ptr()


def norm_film_silu(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    groups: int,
    before: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    shift: torch.Tensor | None = None,
    activate: bool = True,
) -> torch.Tensor:
    x, weight, bias = _dense(x), weight.to(x.dtype), bias.to(x.dtype)
    B, C, bins, frames = x.shape
    N = bins * frames
    tiles = min(-(-N // LEAST_TILE), MAX_TILES)
    out = torch.empty_like(x)
    scratch = x.new_empty(B * (2 * tiles * C + groups + 2 * C), dtype=torch.float32)
    before, scale, shift = _rows(before, x), _rows(scale, x), _rows(shift, x)
    arguments = GroupNorm(
        x.data_ptr(), weight.data_ptr(), bias.data_ptr(), _pointer(before), _pointer(scale), _pointer(shift),
        out.data_ptr(), scratch.data_ptr(), B, N, C, groups, tiles, _stride(before), _stride(scale), EPS,
        DTYPES[x.dtype], activate,
    )  # fmt: skip
    cuda_library().call("norm_film_silu", x, byref(arguments))
    return out


def residual_sum(h: torch.Tensor, x: torch.Tensor, bias: torch.Tensor, factor: float) -> torch.Tensor:
    h, x, bias = _dense(h), _dense(x), bias.to(h.dtype)
    B, C, bins, frames = h.shape
    out = torch.empty_like(h)
    arguments = factor, B * bins * frames, C, DTYPES[h.dtype], out.data_ptr()
    cuda_library().call("residual_sum", h, h.data_ptr(), x.data_ptr(), bias.data_ptr(), *arguments)
    return out


def resample(x: torch.Tensor, up: bool) -> torch.Tensor:
    x = _dense(x)
    B, C, bins, frames = x.shape
    size = (B, C, 2 * bins, 2 * frames) if up else (B, C, bins // 2, frames // 2)
    out = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    shape = shape_argument((B, bins, frames))
    cuda_library().call("resample", x, x.data_ptr(), byref(shape), C, up, DTYPES[x.dtype], out.data_ptr())
    return out

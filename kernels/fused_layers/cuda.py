"""The CUDA form, channels_last, for GPUs that Triton does not know (sm_75)."""

from __future__ import annotations

from ctypes import byref

import torch

from udse_fast.backends.cuda_library import GroupNorm, Map, Tiling, cuda_library, shape_argument
from udse_fast.kernels.fused_layers.conditions import condition_rows, film_rows
from udse_fast.kernels.fused_layers.reference import EPS, Norm, tile_length

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


def _dense(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _pointer(rows: torch.Tensor | None) -> int | None:
    return None if rows is None else rows.data_ptr()


def _tiling(x: torch.Tensor) -> Tiling:
    positions = x.shape[2] * x.shape[3]
    length = tile_length(positions)
    return Tiling(x.shape[0], positions, -(-positions // length), length)


def _empty_statistics(x: torch.Tensor, tiling: Tiling) -> torch.Tensor:
    return x.new_empty((3, x.shape[0], tiling.tiles, x.shape[1]), dtype=torch.float32)


def tile_statistics(x: torch.Tensor) -> torch.Tensor:
    x, tiling = _dense(x), _tiling(x)
    statistics = _empty_statistics(x, tiling)
    argument = Map(x.data_ptr(), statistics.data_ptr(), x.shape[1], tiling.tiles, False)
    cuda_library().call("tile_statistics", x, byref(argument), byref(tiling), DTYPES[x.dtype])
    return statistics


def _run(function: str, norm: Norm, out: torch.Tensor | None) -> torch.Tensor:
    """Run a kernel on a norm; what it is folded to, see `fold_norm`."""
    x, weight, bias, groups, before, scale, shift, activate, skip, statistics = norm
    x, weight, bias = _dense(x), weight.to(x.dtype), bias.to(x.dtype)
    skip = None if skip is None else _dense(skip)
    tiling = _tiling(x)
    maps, kept = [], []
    for y, known in zip((x, skip), statistics, strict=True):
        if y is None:
            maps.append(Map(None, None, 0, 0, True))
            continue
        kept.append(_empty_statistics(y, tiling) if known is None else known)
        maps.append(Map(y.data_ptr(), kept[-1].data_ptr(), y.shape[1], kept[-1].shape[2], known is not None))
    fold = x.new_empty((2, len(x), weight.numel()), dtype=torch.float32)
    before, before_stride = condition_rows(before, x.dtype)
    scale, shift, film_stride = film_rows(scale, shift, x.dtype)
    arguments = GroupNorm(
        *maps, tiling, weight.data_ptr(), bias.data_ptr(), _pointer(before), _pointer(scale), _pointer(shift),
        _pointer(out), fold.data_ptr(), groups, before_stride, film_stride, EPS, DTYPES[x.dtype], activate,
    )  # fmt: skip
    cuda_library().call(function, x, byref(arguments))
    return fold


def fold_norm(norm: Norm) -> torch.Tensor:
    """Norm, bias and FiLM as y = factor x + offset: both, (2, B, C) float32."""
    return _run("fold_norm", norm, None)


def norm_film_silu(norm: Norm) -> torch.Tensor:
    x, size = norm.x, (len(norm.x), norm.weight.numel(), *norm.x.shape[2:])
    out = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    _run("norm_film_silu", norm, out)
    return out


def _sum(
    h: torch.Tensor, x: torch.Tensor, bias: torch.Tensor, factor: float, measure: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    h, x, bias = _dense(h), _dense(x), bias.to(h.dtype)
    out, tiling = torch.empty_like(h), _tiling(h)
    statistics = _empty_statistics(h, tiling) if measure else None
    target = Map(out.data_ptr(), _pointer(statistics), h.shape[1], tiling.tiles, False)
    arguments = factor, byref(target), byref(tiling), DTYPES[h.dtype]
    cuda_library().call("residual_sum", h, h.data_ptr(), x.data_ptr(), bias.data_ptr(), *arguments)
    return out, statistics


def residual_sum(h: torch.Tensor, x: torch.Tensor, bias: torch.Tensor, factor: float) -> torch.Tensor:
    return _sum(h, x, bias, factor, False)[0]


def measured_sum(
    h: torch.Tensor, x: torch.Tensor, bias: torch.Tensor, factor: float
) -> tuple[torch.Tensor, torch.Tensor | None]:
    return _sum(h, x, bias, factor, True)


def resample(x: torch.Tensor, up: bool) -> torch.Tensor:
    x = _dense(x)
    B, C, bins, frames = x.shape
    size = (B, C, 2 * bins, 2 * frames) if up else (B, C, bins // 2, frames // 2)
    out = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    shape = shape_argument((B, bins, frames))
    cuda_library().call("resample", x, x.data_ptr(), byref(shape), C, up, DTYPES[x.dtype], out.data_ptr())
    return out

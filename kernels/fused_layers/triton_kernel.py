"""The Triton form, channels_last: a position of the map is one contiguous vector of channels.

Statistics of a norm are combined from those of tiles (Chan, Golub, LeVeque 1983), in float32 for any dtype.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from udse_fast.kernels.complex_normal.triton_kernel import launch
from udse_fast.kernels.fused_layers import reference
from udse_fast.kernels.fused_layers.conditions import condition_rows, film_rows
from udse_fast.kernels.fused_layers.reference import EPS, Norm

TILE = 4096  # numbers that a program has at once


@triton.jit
def summed(x, h, factor, add, at, inside):
    """x, or h + add + factor x, at some places."""
    y = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if h is not None:
        y = tl.load(h + at, mask=inside, other=0.0).to(tl.float32) + add + factor * y
        y = y.to(x.dtype.element_ty).to(tl.float32)  # as those who read it will see it
    return y


@triton.jit(do_not_specialize=["factor"])
def statistics_kernel(
    x, h, bias, factor, out, statistics, N, C, length, POSITIONS: tl.constexpr, CHANNELS: tl.constexpr
):
    """`length` positions a tile, of x or of out = h + bias + factor x, (B, N, C); statistics: (3, B, tiles, C)."""
    tile, b = tl.program_id(0), tl.program_id(1)
    c = tl.arange(0, CHANNELS)
    channel = c < C
    start = b.to(tl.int64) * N
    first = tile * length
    end = tl.minimum(first + length, N)
    add = tl.where(channel, 0.0, 0.0)
    if bias is not None:
        add = tl.load(bias + c, mask=channel, other=0.0).to(tl.float32)
    # differences to the first position, whose squares do not cancel
    origin = summed(x, h, factor, add, (start + first) * C + c, channel)
    total = tl.full((POSITIONS, CHANNELS), 0.0, tl.float32)
    square = tl.full((POSITIONS, CHANNELS), 0.0, tl.float32)
    for step in range(0, length, POSITIONS):
        n = first + step + tl.arange(0, POSITIONS)
        inside = (n < end)[:, None] & channel[None, :]
        at = (start + n)[:, None] * C + c[None, :]
        y = summed(x, h, factor, add[None, :], at, inside)
        if out is not None:
            tl.store(out + at, y, mask=inside)
        distance = tl.where(inside, y - origin[None, :], 0.0)
        total += distance
        square += distance * distance
    count = end - first
    distance = tl.sum(total, 0)
    rows = tl.num_programs(1) * tl.num_programs(0)
    at = (b * tl.num_programs(0) + tile) * C + c
    tl.store(statistics + at, count * origin + distance, mask=channel)
    within = tl.maximum(tl.sum(square, 0) - distance * distance / count, 0.0)
    tl.store(statistics + rows * C + at, within, mask=channel)
    tl.store(statistics + 2 * rows * C + at, tl.where(channel, 1.0, 0.0) * count, mask=channel)


@triton.jit
def sums_of(statistics, samples, b, tiles, i, c, C, inside):
    """Sums, centred sums of squares and counts of the channels c (of C) in the tiles i (of `tiles`); 0 elsewhere."""
    at = (b * tiles + i)[:, None] * C + c[None, :]
    valid = (i < tiles)[:, None] & (inside & (c >= 0) & (c < C))[None, :]
    plane = samples * tiles * C
    total = tl.load(statistics + at, mask=valid, other=0.0)
    square = tl.load(statistics + plane + at, mask=valid, other=0.0)
    return total, square, tl.load(statistics + 2 * plane + at, mask=valid, other=0.0)


@triton.jit
def sums_of_both(x, skip, samples, b, tiles, tiles_skip, i, c, C, C_skip, inside):
    """Of two maps: a channel is in one of them, and 0 in the other."""
    total, square, count = sums_of(x, samples, b, tiles, i, c, C - C_skip, inside)
    if skip is not None:
        of_skip = sums_of(skip, samples, b, tiles_skip, i, c - (C - C_skip), C_skip, inside)
        total, square, count = total + of_skip[0], square + of_skip[1], count + of_skip[2]
    return total, square, count


@triton.jit
def fold_kernel(
    statistics, skip_statistics, weight, bias, before, before_stride, scale, shift, film_stride, factor, offset,
    N, C, C_skip, tiles, tiles_skip, most, eps, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Norm, bias and FiLM of a group as y = factor x + offset, (B, C) float32. WIDTH: channels of a group.

    The last C_skip channels are those of a second map.
    """
    g, b = tl.program_id(0), tl.program_id(1)
    k, samples = tl.arange(0, CHANNELS), tl.num_programs(1)
    c, inside = g * WIDTH + k, k < WIDTH
    add = tl.where(inside, 0.0, 0.0)
    if before is not None:
        add = tl.load(before + b * before_stride + c, mask=inside, other=0.0).to(tl.float32)
    total = tl.full((CHANNELS,), 0.0, tl.float32)
    for first in range(0, most, TILES):
        i = first + tl.arange(0, TILES)
        total += tl.sum(
            sums_of_both(statistics, skip_statistics, samples, b, tiles, tiles_skip, i, c, C, C_skip, inside)[0], 0
        )
    mean = tl.sum(tl.where(inside, total / N + add, 0.0), 0) / WIDTH
    square = tl.full((CHANNELS,), 0.0, tl.float32)
    for first in range(0, most, TILES):
        i = first + tl.arange(0, TILES)
        of_tile, within, count = sums_of_both(
            statistics, skip_statistics, samples, b, tiles, tiles_skip, i, c, C, C_skip, inside
        )
        distance = of_tile / tl.maximum(count, 1.0) + add[None, :] - mean
        square += tl.sum(within + count * distance * distance, 0)
    inverse = 1 / tl.sqrt(tl.sum(square, 0) / (N * WIDTH) + eps)
    a = inverse * tl.load(weight + c, mask=inside, other=0.0).to(tl.float32)
    d = (add - mean) * a + tl.load(bias + c, mask=inside, other=0.0).to(tl.float32)
    if scale is not None:
        by = tl.load(scale + b * film_stride + c, mask=inside, other=0.0).to(tl.float32)
        a, d = a * by, d * by + tl.load(shift + b * film_stride + c, mask=inside, other=0.0).to(tl.float32)
    tl.store(factor + b * C + c, a, mask=inside)
    tl.store(offset + b * C + c, d, mask=inside)


@triton.jit
def affine_silu_kernel(
    x, factor, offset, out, N, C, first, C_out,
    ACTIVATE: tl.constexpr, POSITIONS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """out = SiLU(factor x + offset); x: (B, N, C), the channels from `first` on of out: (B, N, C_out).

    factor, offset: (B, C_out).
    """
    b = tl.program_id(1)
    n, c = tl.program_id(0) * POSITIONS + tl.arange(0, POSITIONS), tl.arange(0, CHANNELS)
    inside = (n < N)[:, None] & (c < C)[None, :]
    position = (b.to(tl.int64) * N + n)[:, None]
    a = tl.load(factor + b * C_out + first + c, mask=c < C, other=0.0)[None, :]
    d = tl.load(offset + b * C_out + first + c, mask=c < C, other=0.0)[None, :]
    y = a * tl.load(x + position * C + c[None, :], mask=inside, other=0.0).to(tl.float32) + d
    if ACTIVATE:
        y = y / (1 + tl.exp(-y))
    tl.store(out + position * C_out + first + c[None, :], y, mask=inside)


@triton.jit(do_not_specialize=["factor"])
def residual_kernel(h, x, bias, out, N, C, factor, POSITIONS: tl.constexpr, CHANNELS: tl.constexpr):
    """out = h + bias + factor x; h, x, out: (N, C); bias: (C,)."""
    n, c = tl.program_id(0).to(tl.int64) * POSITIONS + tl.arange(0, POSITIONS), tl.arange(0, CHANNELS)
    inside = (n < N)[:, None] & (c < C)[None, :]
    at = n[:, None] * C + c[None, :]
    y = tl.load(h + at, mask=inside, other=0.0).to(tl.float32)
    y += tl.load(bias + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
    y += factor * tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, y, mask=inside)


@triton.jit
def resample_kernel(x, out, F, T, F_out, T_out, C, UP: tl.constexpr, POSITIONS: tl.constexpr, CHANNELS: tl.constexpr):
    """x: (B, F, T, C); out: (B, F_out, T_out, C)."""
    b = tl.program_id(1).to(tl.int64)
    n, c = tl.program_id(0) * POSITIONS + tl.arange(0, POSITIONS), tl.arange(0, CHANNELS)
    f, t = n // T_out, n % T_out
    channel = (c < C)[None, :]
    y = tl.full((POSITIONS, CHANNELS), 0.0, tl.float32)
    # inputs of an output on each axis: the near (3/4) and the far one (1/4) upwards, (1, 3, 3, 1)/8 downwards
    for u in range(2 if UP else 4):
        for v in range(2 if UP else 4):
            if UP:
                row, column = f // 2 + u * (2 * (f % 2) - 1), t // 2 + v * (2 * (t % 2) - 1)
                weight = (3 - 2 * u) * (3 - 2 * v) / 16
            else:
                row, column = 2 * f - 1 + u, 2 * t - 1 + v
                weight = (1 + 2 * ((u + 1) // 2 % 2)) * (1 + 2 * ((v + 1) // 2 % 2)) / 64
            inside = (row >= 0) & (row < F) & (column >= 0) & (column < T) & (n < F_out * T_out)
            at = ((b * F + row) * T + column)[:, None] * C + c[None, :]
            y += weight * tl.load(x + at, mask=inside[:, None] & channel, other=0.0).to(tl.float32)
    at = (b * F_out * T_out + n)[:, None] * C + c[None, :]
    tl.store(out + at, y, mask=(n < F_out * T_out)[:, None] & channel)


def _tile(channels: int) -> dict[str, int]:
    padded = triton.next_power_of_2(channels)
    return {"POSITIONS": max(TILE // padded, 1), "CHANNELS": padded}


def _statistics(
    x: torch.Tensor,
    h: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    factor: float = 0.0,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Those of x, or of out <- h + bias + factor x; maps are channels_last."""
    B, C, bins, frames = x.shape
    N = bins * frames
    length = reference.tile_length(N)
    tiles = triton.cdiv(N, length)
    statistics = x.new_empty((3, B, tiles, C), dtype=torch.float32)
    launch(statistics_kernel, (tiles, B), x, x, h, bias, factor, out, statistics, N, C, length, **_tile(C))
    return statistics


def tile_statistics(x: torch.Tensor) -> torch.Tensor:
    return _statistics(x.contiguous(memory_format=torch.channels_last))


def norm_film_silu(norm: Norm) -> torch.Tensor:
    x, weight, bias, groups, before, scale, shift, activate, skip, statistics = norm
    maps = [y.contiguous(memory_format=torch.channels_last) for y in (x, skip) if y is not None]
    known = [_statistics(y) if s is None else s for y, s in zip(maps, statistics, strict=False)]
    B, _, bins, frames = x.shape
    C, N = weight.numel(), bins * frames
    tiles = [statistics.shape[2] for statistics in known]
    factor, offset = x.new_empty((2, B, C), dtype=torch.float32)
    add, add_stride = condition_rows(before, x.dtype)
    by, to, film_stride = film_rows(scale, shift, x.dtype)
    launch(
        fold_kernel,
        (groups, B),
        x,
        known[0],
        known[1] if skip is not None else None,
        weight,
        bias,
        add,
        add_stride,
        by,
        to,
        film_stride,
        factor,
        offset,
        N,
        C,
        0 if skip is None else skip.shape[1],
        tiles[0],
        tiles[-1],
        max(tiles),
        EPS,
        WIDTH=C // groups,
        CHANNELS=triton.next_power_of_2(C // groups),
        TILES=min(triton.next_power_of_2(max(tiles)), reference.MAX_TILES),
    )
    out = torch.empty((B, C, bins, frames), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    first = 0
    for y in maps:
        width = y.shape[1]
        tile = _tile(width)
        programs = triton.cdiv(N, tile["POSITIONS"]), B
        launch(affine_silu_kernel, programs, x, y, factor, offset, out, N, width, first, C, ACTIVATE=activate, **tile)
        first += width
    return out


def residual_sum(h: torch.Tensor, x: torch.Tensor, bias: torch.Tensor, factor: float) -> torch.Tensor:
    h, x = (y.contiguous(memory_format=torch.channels_last) for y in (h, x))
    B, C, bins, frames = h.shape
    out, N, tile = torch.empty_like(h), B * bins * frames, _tile(C)
    launch(residual_kernel, (triton.cdiv(N, tile["POSITIONS"]),), h, h, x, bias, out, N, C, factor, **tile)
    return out


def measured_sum(
    h: torch.Tensor, x: torch.Tensor, bias: torch.Tensor, factor: float
) -> tuple[torch.Tensor, torch.Tensor]:
    h, x = (y.contiguous(memory_format=torch.channels_last) for y in (h, x))
    out = torch.empty_like(h)
    return out, _statistics(x, h, bias, factor, out)


def resample(x: torch.Tensor, up: bool) -> torch.Tensor:
    x = x.contiguous(memory_format=torch.channels_last)
    B, C, bins, frames = x.shape
    size = (B, C, 2 * bins, 2 * frames) if up else (B, C, bins // 2, frames // 2)
    out = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    tile = _tile(C)
    programs = triton.cdiv(size[2] * size[3], tile["POSITIONS"]), B
    launch(resample_kernel, programs, x, x, out, bins, frames, size[2], size[3], C, UP=up, **tile)
    return out

"""The Triton form, channels_last, for sm_80 and newer: norm and SiLU in a pass of their own, the rest in one kernel.

A program reads its input anew for each of the 9 taps, as Triton has no rectangle in shared memory that taps could
share, so that it would activate every number 9 times: 18 of the slow operations (exponential, reciprocal) instead of 2.
At 96 channels an H100 would take longer for these (16 a clock and multiprocessor: 0.12 ms at 4 x 256 x 256) than the
pass of its own takes to read and write the map (0.04 ms), and longer than the products themselves (0.1 ms).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from udse_fast.kernels.complex_normal.triton_kernel import launch
from udse_fast.kernels.convolution.packing import DEPTH, packed
from udse_fast.kernels.convolution.reference import Convolution, Convolved
from udse_fast.kernels.fused_layers import Norm, norm_film_silu

POSITIONS = 128
"""Neighbours that a program makes, and whose statistics it gives."""


@triton.jit
def with_products(
    first, second, x, weights, C, columns, column, b, n, F, T,
    TAPS: tl.constexpr, DEPTH: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr,
):  # fmt: skip
    """The sums of the columns from `column` on, in two parts, with the products of one map, (B, F, T, C), added.

    weights: (chunks, TAPS, columns, DEPTH).
    """
    k, f, t = tl.arange(0, DEPTH), n // T, n % T
    rows = tl.arange(0, FIRST)[None, :] * DEPTH + k[:, None]
    more_rows = (FIRST + tl.arange(0, SECOND))[None, :] * DEPTH + k[:, None]
    for step in range(0, tl.cdiv(C, DEPTH) * TAPS):
        tap, channel = step % TAPS, step // TAPS * DEPTH + k
        bin, frame = f, t
        if TAPS == 9:
            bin, frame = f + tap // 3 - 1, t + tap % 3 - 1
        inside = (n < F * T) & (bin >= 0) & (bin < F) & (frame >= 0) & (frame < T)
        at = ((b * F + bin) * T + frame) * C
        a = tl.load(x + at[:, None] + channel[None, :], mask=inside[:, None] & (channel < C)[None, :], other=0.0)
        of_step = weights + (step * columns + column) * DEPTH
        first = tl.dot(a, tl.load(of_step + rows), first)
        second = tl.dot(a, tl.load(of_step + more_rows), second)
    return first, second


@triton.jit
def finish(sums, c, bias, residual, factor, out, statistics, C, b, tile, tiles, n, N):
    """Bias and residual added, written and measured; c: the columns of the sums."""
    valid = (n < N)[:, None] & (c < C)[None, :]
    at = (b * N + n)[:, None] * C + c[None, :]
    if bias is not None:
        sums += tl.load(bias + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
    if residual is not None:
        sums += factor * tl.load(residual + at, mask=valid, other=0.0).to(tl.float32)
    kept = sums.to(out.dtype.element_ty)
    tl.store(out + at, kept, mask=valid)
    if statistics is not None:
        y = tl.where(valid, kept.to(tl.float32), 0.0)  # as those who read it will see it
        count = tl.sum(tl.where(n < N, 1.0, 0.0), 0)
        total = tl.sum(y, 0)
        distance = tl.where(valid, y - (total / count)[None, :], 0.0)
        place = statistics + (b * tiles + tile) * C + c
        plane = tl.num_programs(1) * tiles * C
        tl.store(place, total, mask=c < C)
        tl.store(place + plane, tl.sum(distance * distance, 0), mask=c < C)
        tl.store(place + 2 * plane, tl.where(c < C, count, 0.0), mask=c < C)


@triton.jit(do_not_specialize=["factor"])
def convolution_kernel(
    x, weights, C_x, more, weights_more, C_more, bias, residual, factor, out, statistics, C, columns, F, T,
    TAPS: tl.constexpr, DEPTH: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr, POSITIONS: tl.constexpr,
):  # fmt: skip
    """x: (B, F, T, C_x) under TAPS taps; more: two maps under one tap, or None; out, residual: (B, F, T, C)."""
    blocks = columns // (FIRST + SECOND)
    tile, column = tl.program_id(0) // blocks, tl.program_id(0) % blocks * (FIRST + SECOND)
    b = tl.program_id(1).to(tl.int64)
    n = tile * POSITIONS + tl.arange(0, POSITIONS)
    first = tl.full((POSITIONS, FIRST), 0.0, tl.float32)
    second = tl.full((POSITIONS, SECOND), 0.0, tl.float32)
    first, second = with_products(
        first, second, x, weights, C_x, columns, column, b, n, F, T, TAPS, DEPTH, FIRST, SECOND
    )
    if more[0] is not None:
        first, second = with_products(
            first, second, more[0], weights_more[0], C_more[0], columns, column, b, n, F, T, 1, DEPTH, FIRST, SECOND
        )
    if more[1] is not None:
        first, second = with_products(
            first, second, more[1], weights_more[1], C_more[1], columns, column, b, n, F, T, 1, DEPTH, FIRST, SECOND
        )
    c, tiles = column + tl.arange(0, FIRST), tl.num_programs(0) // blocks
    finish(first, c, bias, residual, factor, out, statistics, C, b, tile, tiles, n, F * T)
    c = column + FIRST + tl.arange(0, SECOND)
    finish(second, c, bias, residual, factor, out, statistics, C, b, tile, tiles, n, F * T)


def _parts(columns: int) -> tuple[int, int]:
    """Powers of two that a program's columns are the sum of."""
    if columns % 96 == 0:
        return 64, 32
    return next((half, half) for half in (64, 32, 16) if columns % (2 * half) == 0)


def convolution(job: Convolution) -> Convolved:
    x = norm_film_silu(job.input) if isinstance(job.input, Norm) else job.input
    x = x.contiguous(memory_format=torch.channels_last)
    added = [y.contiguous(memory_format=torch.channels_last) for y in job.added]
    (weights,) = packed(job.weight, (x.shape[1],))
    residual = added[0] if added and job.shortcut is None else None
    more: list[torch.Tensor | None] = [None, None]
    weights_more: list[torch.Tensor | None] = [None, None]
    widths = [0, 0]
    if job.shortcut is not None:
        for i, (y, w) in enumerate(zip(added, packed(job.shortcut, tuple(y.shape[1] for y in added)), strict=True)):
            more[i], weights_more[i], widths[i] = y, w, y.shape[1]
    B, _, bins, frames = x.shape
    C, columns, tiles = len(job.weight), weights.shape[2], triton.cdiv(bins * frames, POSITIONS)
    out = torch.empty((B, C, bins, frames), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    statistics = x.new_empty((3, B, tiles, C), dtype=torch.float32) if job.measured else None
    first, second = _parts(columns)
    launch(
        convolution_kernel, (tiles * (columns // (first + second)), B), x,
        x, weights, x.shape[1], tuple(more), tuple(weights_more), tuple(widths), job.bias, residual, job.factor, out,
        statistics, C, columns, bins, frames,
        TAPS=weights.shape[1], DEPTH=DEPTH, FIRST=first, SECOND=second, POSITIONS=POSITIONS,
    )  # fmt: skip
    return out, statistics

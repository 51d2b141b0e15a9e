"""The Triton form: V is formed on the fly, float32 on GPUs."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from udse_fast.kernels.complex_normal.triton_kernel import launch

FRAMES = 64  # of a tile, where a program owns a bin
BINS, FEW_FRAMES = 32, 16  # of a tile, where a program owns frames


@triton.jit
def statistics(power, W, H, f, T, R, floor, RANK: tl.constexpr, FRAMES: tl.constexpr):
    """(P V^-2) H^T and V^-1 H^T of bin f, (RANK,) each."""
    k = tl.arange(0, RANK)
    w = tl.load(W + f * R + k, mask=k < R, other=0.0)
    a, b = w * 0, w * 0
    for first in range(0, T, FRAMES):
        t = first + tl.arange(0, FRAMES)
        h = tl.load(H + k[:, None] * T + t[None, :], mask=(k < R)[:, None] & (t < T)[None, :], other=0.0)
        inverse = 1 / tl.maximum(tl.sum(w[:, None] * h, 0), floor)
        p = tl.load(power + f * T + t, mask=t < T, other=0.0)
        a += tl.sum(h * (p * inverse * inverse)[None, :], 1)
        b += tl.sum(h * inverse[None, :], 1)
    return w, a, b


@triton.jit(do_not_specialize=["floor"])
def w_kernel(power, W, H, out, T, R, floor, RANK: tl.constexpr, FRAMES: tl.constexpr):
    """out = max(W * ((P V^-2) H^T) / (V^-1 H^T), floor); power: (F, T); W, out: (F, R); H: (R, T)."""
    f = tl.program_id(0)
    w, a, b = statistics(power, W, H, f, T, R, floor, RANK, FRAMES)
    k = tl.arange(0, RANK)
    tl.store(out + f * R + k, tl.maximum(w * a / tl.maximum(b, 1e-30), floor), mask=k < R)


@triton.jit(do_not_specialize=["floor", "forgetting"])
def online_w_kernel(
    power, W, H, A, B, out, A_out, B_out, T, R, floor, forgetting, RANK: tl.constexpr, FRAMES: tl.constexpr
):
    """A_out = rho A + W^2 ((P V^-2) H^T), B_out = rho B + V^-1 H^T, out = sqrt(A_out / B_out): (F, R)."""
    f = tl.program_id(0)
    w, a, b = statistics(power, W, H, f, T, R, floor, RANK, FRAMES)
    k = tl.arange(0, RANK)
    at, inside = f * R + k, k < R
    a = forgetting * tl.load(A + at, mask=inside, other=0.0) + w * w * a
    b = forgetting * tl.load(B + at, mask=inside, other=0.0) + b
    tl.store(A_out + at, a, mask=inside)
    tl.store(B_out + at, b, mask=inside)
    tl.store(out + at, tl.maximum(tl.sqrt(a / tl.maximum(b, 1e-30)), floor), mask=inside)


@triton.jit(do_not_specialize=["floor"])
def h_kernel(power, W, H, out, F, T, R, floor, RANK: tl.constexpr, BINS: tl.constexpr, FRAMES: tl.constexpr):
    """out = max(H * (W^T (P V^-2)) / (W^T V^-1), floor); power: (F, T); W: (F, R); H, out: (R, T)."""
    t = tl.program_id(0) * FRAMES + tl.arange(0, FRAMES)
    k = tl.arange(0, RANK)
    at, inside = k[:, None] * T + t[None, :], (k < R)[:, None] & (t < T)[None, :]
    h = tl.load(H + at, mask=inside, other=0.0)
    a, b = h * 0, h * 0
    for first in range(0, F, BINS):
        f = first + tl.arange(0, BINS)
        w = tl.load(W + f[:, None] * R + k[None, :], mask=(f < F)[:, None] & (k < R)[None, :], other=0.0)
        inverse = 1 / tl.maximum(tl.sum(w[:, :, None] * h[None, :, :], 1), floor)  # (BINS, FRAMES)
        p = tl.load(power + f[:, None] * T + t[None, :], mask=(f < F)[:, None] & (t < T)[None, :], other=0.0)
        a += tl.sum(w[:, :, None] * (p * inverse * inverse)[:, None, :], 0)
        b += tl.sum(w[:, :, None] * inverse[:, None, :], 0)
    tl.store(out + at, tl.maximum(h * a / tl.maximum(b, 1e-30), floor), mask=inside)


@triton.jit
def normalise_kernel(W, H, A, B, F, T, R, BLOCK: tl.constexpr):
    """Column k of W to sum 1: W and A divided by the sum, H and B multiplied, in place. W, A, B: (F, R)."""
    k = tl.program_id(0)
    total = 0.0
    for first in range(0, F, BLOCK):
        f = first + tl.arange(0, BLOCK)
        total += tl.sum(tl.load(W + f * R + k, mask=f < F, other=0.0), 0)
    for first in range(0, F, BLOCK):
        f = first + tl.arange(0, BLOCK)
        at, inside = f * R + k, f < F
        tl.store(W + at, tl.load(W + at, mask=inside, other=0.0) / total, mask=inside)
        if A is not None:
            tl.store(A + at, tl.load(A + at, mask=inside, other=0.0) / total, mask=inside)
            tl.store(B + at, tl.load(B + at, mask=inside, other=0.0) * total, mask=inside)
    for first in range(0, T, BLOCK):
        t = first + tl.arange(0, BLOCK)
        at, inside = k * T + t, t < T
        tl.store(H + at, tl.load(H + at, mask=inside, other=0.0) * total, mask=inside)


def _update_h(power: Tensor, W: Tensor, H: Tensor, floor: float) -> Tensor:
    out = torch.empty_like(H)
    (bins, frames), rank = power.shape, H.shape[0]
    launch(
        h_kernel,
        (triton.cdiv(frames, FEW_FRAMES),),
        power,
        power,
        W,
        H,
        out,
        bins,
        frames,
        rank,
        floor,
        RANK=triton.next_power_of_2(rank),
        BINS=BINS,
        FRAMES=FEW_FRAMES,
    )
    return out


def _normalise(W: Tensor, H: Tensor, A: Tensor | None = None, B: Tensor | None = None) -> None:
    launch(normalise_kernel, (H.shape[0],), W, W, H, A, B, W.shape[0], H.shape[1], H.shape[0], BLOCK=256)


def nmf_update(power: Tensor, W: Tensor, H: Tensor, iterations: int, floor: float) -> tuple[Tensor, Tensor]:
    bins, rank = W.shape
    constants = {"RANK": triton.next_power_of_2(rank), "FRAMES": FRAMES}
    if iterations == 0:
        return W.clone(), H.clone()
    for _ in range(iterations):
        next_w = torch.empty_like(W)
        launch(w_kernel, (bins,), W, power, W, H, next_w, power.shape[1], rank, floor, **constants)
        W, H = next_w, _update_h(power, next_w, H, floor)
        _normalise(W, H)
    return W, H


def online_nmf_update(
    power: Tensor, W: Tensor, H: Tensor, A: Tensor, B: Tensor, forgetting: float, iterations: int, floor: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    bins, rank = W.shape
    if iterations == 0:
        H = H.clone()
    for _ in range(iterations):
        H = _update_h(power, W, H, floor)
    next_w, next_a, next_b = torch.empty_like(W), torch.empty_like(W), torch.empty_like(W)
    launch(
        online_w_kernel,
        (bins,),
        W,
        power,
        W,
        H,
        A,
        B,
        next_w,
        next_a,
        next_b,
        power.shape[1],
        rank,
        floor,
        forgetting,
        RANK=triton.next_power_of_2(rank),
        FRAMES=FRAMES,
    )
    _normalise(next_w, H, next_a, next_b)
    return next_w, H, next_a, next_b

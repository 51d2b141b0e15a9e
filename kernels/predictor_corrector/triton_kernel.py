"""The Triton form: one pass, noise drawn inside, complex64 on GPUs.

A complex tile is (N, 2): real and imaginary part obey the same real equations.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from udse_fast.kernels.coefficients import Coefficients
from udse_fast.kernels.complex_normal.reference import Noise
from udse_fast.kernels.complex_normal.triton_kernel import BLOCK, drawn, launch, words


@triton.jit
def load(p, at, inside):
    """Complex numbers (N, 2) at (N,)."""
    return tl.load(p + 2 * at[:, None] + tl.arange(0, 2)[None, :], mask=inside[:, None], other=0.0)


@triton.jit
def store(p, at, inside, value):
    """Complex numbers (N, 2) to (N,)."""
    tl.store(p + 2 * at[:, None] + tl.arange(0, 2)[None, :], value, mask=inside[:, None])


@triton.jit
def number(value, t, inside, PER_FRAME: tl.constexpr):
    """A coefficient: one for all, or (N, 1) of the frames t."""
    if PER_FRAME:
        return tl.load(value + t, mask=inside, other=1.0)[:, None]
    else:
        return value


@triton.jit
def noise_of(z, key, sample, at, f, t, inside):
    """Noise of an update: given, drawn, or zero."""
    if z is not None:
        return load(z, at, inside)
    elif key is not None:
        return drawn(key, sample, f, t)
    else:
        return 0.0


@triton.jit
def predicted(s, S, z, gamma, g, dt):
    """s + gamma s dt + g^2 S dt + g sqrt(dt) z"""
    return s + gamma * dt * s + g * g * dt * S + g * tl.sqrt(dt) * z


@triton.jit
def update_kernel(
    state, score, z, key, out, c, F, T, CORRECTOR: tl.constexpr, PER_FRAME: tl.constexpr, BLOCK: tl.constexpr
):
    """state, score, z, out: (B, F, T, 2)."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    sample = tl.program_id(1)
    inside = i < F * T
    f, t = i // T, i % T
    at = sample.to(tl.int64) * F * T + i
    s, S = load(state, at, inside), load(score, at, inside)
    noise = noise_of(z, key, sample, at, f, t, inside)
    if CORRECTOR:
        root = number(c[5], t, inside, PER_FRAME) * number(c[2], t, inside, PER_FRAME)
        s = s + root * root * S + 1.41421356 * root * noise
    else:
        gamma, g = number(c[0], t, inside, PER_FRAME), number(c[3], t, inside, PER_FRAME)
        s = predicted(s, S, noise, gamma, g, number(c[4], t, inside, PER_FRAME))
    store(out, at, inside, s)


def real(z: torch.Tensor | None) -> torch.Tensor | None:
    """Complex (...) as real (..., 2), without copying."""
    return None if z is None else torch.view_as_real(z)


def given(noise: Noise) -> torch.Tensor | None:
    """The numbers of a noise that is not drawn inside."""
    return real(noise) if isinstance(noise, torch.Tensor) else None


def numbers(
    coefficients: Coefficients, like: torch.Tensor, *more: float | torch.Tensor
) -> tuple[bool, tuple[float, ...] | tuple[torch.Tensor, ...]]:
    """Whether they are per frame; the 6 coefficients and more numbers as floats or rows (T,) float32."""
    values = (*coefficients.values(), *more)
    if not any(isinstance(value, torch.Tensor) and value.ndim for value in values):
        return False, tuple(float(value) for value in values)
    rows = like.new_empty((len(values), like.shape[-1]), dtype=torch.float32)
    for row, value in zip(rows, values, strict=True):
        row.copy_(value) if isinstance(value, torch.Tensor) else row.fill_(value)
    return True, rows.unbind()


def _update(
    state: torch.Tensor,
    score: torch.Tensor,
    coefficients: Coefficients,
    noise: Noise,
    out: torch.Tensor | None,
    corrects: bool,
) -> torch.Tensor:
    out = torch.empty_like(state) if out is None else out
    per_frame, c = numbers(coefficients, state)
    samples, bins, frames = state.shape
    launch(
        update_kernel,
        (triton.cdiv(bins * frames, BLOCK), samples),
        state,
        real(state),
        real(score),
        given(noise),
        words(noise),
        real(out),
        c,
        bins,
        frames,
        CORRECTOR=corrects,
        PER_FRAME=per_frame,
        BLOCK=BLOCK,
    )
    return out


def corrector(
    state: torch.Tensor,
    score: torch.Tensor,
    coefficients: Coefficients,
    noise: Noise,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    return _update(state, score, coefficients, noise, out, True)


def predictor(
    state: torch.Tensor,
    score: torch.Tensor,
    coefficients: Coefficients,
    noise: Noise,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    return _update(state, score, coefficients, noise, out, False)

"""The Triton form: complex64 on GPUs. `drawn` is the noise inside every fused update."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import triton
import triton.language as tl

from udse_fast.kernels.complex_normal.reference import MASK, ROLES, Noise, NoiseKey, Shape

BLOCK = 256  # bins of a program


@triton.jit
def load(p, at, inside):
    """Complex numbers (N, 2) at (N,)."""
    return tl.load(p + 2 * at[:, None] + tl.arange(0, 2)[None, :], mask=inside[:, None], other=0.0)


@triton.jit
def store(p, at, inside, value):
    """Complex numbers (N, 2) to (N,)."""
    tl.store(p + 2 * at[:, None] + tl.arange(0, 2)[None, :], value, mask=inside[:, None])


@triton.jit
def word(value, like):
    """A word of the key as uint32 of the shape of `like` (N,) int32."""
    return (like * 0 + ((value - 3) >> 1)).to(tl.uint32)


@triton.jit
def first_frame_word(first, like):
    """The word of the first frame, which comes by value or, an int64 pointer, by where it is."""
    if first.dtype.is_ptr():
        return like.to(tl.uint32) * 0 + tl.load(first).to(tl.uint32)
    else:
        return word(first, like)


@triton.jit
def philox(c0, c1, c2, c3, k0, k1):
    """Philox 4x32-10; all (N,) uint32."""
    for _ in tl.static_range(10):
        high0, high1 = tl.umulhi(c0, 0xD2511F53), tl.umulhi(c2, 0xCD9E8D57)
        low0, low1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def log_uniform(k):
    """ln((k + 1/2) / 2^24) for k < 2^24 (N,) int32. The upper half from the distance to 1, which is exact."""
    upper = k >= 8388608
    v = (tl.where(upper, 16777215 - k, k).to(tl.float32) + 0.5) * 5.9604644775390625e-08
    exponent = (v.to(tl.int32, bitcast=True) - 0x3F2AAAAB) >> 23  # v = (1 + f) 2^exponent, 1 + f in [2/3, 4/3)
    lower_f = (v.to(tl.int32, bitcast=True) - exponent * 8388608).to(tl.float32, bitcast=True) - 1
    near_one = v <= 0.33333334
    f = tl.where(upper, tl.where(near_one, -v, 1 - 2 * v), lower_f)
    e = tl.where(upper, tl.where(near_one, 0.0, -1.0), exponent.to(tl.float32))
    p = -0.121255808
    p = p * f + 0.134257495
    p = p * f - 0.123461902
    p = p * f + 0.141183093
    p = p * f - 0.166701406
    p = p * f + 0.200037807
    p = p * f - 0.249999881
    p = p * f + 0.333333194
    return e * 0.693147181 + (f + f * f * (p * f - 0.5))


@triton.jit
def normal(x0, x1):
    """sqrt(-ln u_0) exp(2 pi j u_1), u = ((x >> 8) + 1/2) / 2^24: (N,) uint32 to (N, 2)."""
    modulus = tl.sqrt(-log_uniform((x0 >> 8).to(tl.int32)))
    k = (x1 >> 8).to(tl.int32)
    quadrant = (k + 2097152) >> 22
    d = ((k - quadrant * 4194304).to(tl.float32) + 0.5) * 5.9604644775390625e-08  # turns, in [-1/8, 1/8]
    u = d * d
    sine = d * (6.28318548 + u * (-41.3416634 + u * (81.5925446 - u * 75.4016113)))
    cosine = 1 + u * (-19.7392082 + u * (64.9393158 + u * (-85.4428482 + u * 59.2201691)))
    odd = (quadrant & 1) == 1
    real, imaginary = tl.where(odd, sine, cosine), tl.where(odd, cosine, sine)
    real = tl.where(((quadrant + 1) & 2) == 2, -real, real)
    imaginary = tl.where((quadrant & 2) == 2, -imaginary, imaginary)
    return tl.join(modulus * real, modulus * imaginary)


@triton.jit
def drawn(key, sample, bin, frame):
    """z (N, 2) at sample, bin (N,) and frame (N,); words 2 and 3 of a counter serve the odd bin."""
    x0, x1, x2, x3 = philox(
        first_frame_word(key[4], frame) + frame.to(tl.uint32),
        (bin >> 1).to(tl.uint32) | (word(key[5], frame) + sample) << 16,
        word(key[2], frame),
        word(key[3], frame),
        word(key[0], frame),
        word(key[1], frame),
    )
    even = (bin & 1) == 0
    return normal(tl.where(even, x0, x2), tl.where(even, x1, x3))


@triton.jit
def complex_normal_kernel(out, key, F, T, BLOCK: tl.constexpr):
    """out: (B, F, T, 2)."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    sample = tl.program_id(1)
    store(out, sample.to(tl.int64) * F * T + i, i < F * T, drawn(key, sample, i // T, i % T))


def words(noise: Noise) -> tuple[int | torch.Tensor, ...] | None:
    """A draw as kernels take it: seed (low, high), step, role, first frame, sample, each as 2 w + 3.

    Neither 1 nor a multiple of 16, for which Triton would compile a kernel of its own. A first frame in memory stays
    there.
    """
    if not isinstance(noise, NoiseKey):
        return None
    low, high, step, role, sample = (
        2 * word + 3
        for word in (noise.seed & MASK, noise.seed >> 32, noise.step, ROLES[noise.role], noise.first_sample)
    )
    frame = noise.first_frame
    return low, high, step, role, frame if isinstance(frame, torch.Tensor) else 2 * (frame & MASK) + 3, sample


def launch(kernel: Any, programs: tuple[int, ...], like: torch.Tensor, *arguments: object, **constants: Any) -> None:
    """Run a kernel on the device of `like`; no programs is no work."""
    if 0 in programs:
        return
    with torch.cuda.device_of(like) if like.is_cuda else nullcontext():
        # said here, as Triton 3.9 warns of a default that is going to change
        kernel[programs](*arguments, **constants, enable_fp_fusion=True)


def complex_normal(key: NoiseKey, shape: Shape, dtype: torch.dtype, device: torch.device | str) -> torch.Tensor:
    z = torch.empty(shape, dtype=dtype, device=device)
    samples, bins, frames = shape
    programs = triton.cdiv(bins * frames, BLOCK), samples
    launch(complex_normal_kernel, programs, z, torch.view_as_real(z), words(key), bins, frames, BLOCK=BLOCK)
    return z

"""The Triton form: complex64 on GPUs."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from udse_fast.kernels.complex_normal.triton_kernel import BLOCK, launch, load, store


@triton.jit
def scale_by_modulus_kernel(z, out, scale, factor, N, POWER: tl.constexpr, BLOCK: tl.constexpr):
    """out = factor r^POWER (scale z), r = |scale z|, formed without overflow of its square. (N, 2)"""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < N
    scaled = load(z, i, inside) * scale
    large = tl.maximum(tl.max(tl.abs(scaled), 1), 1e-37)
    ratio = tl.min(tl.abs(scaled), 1) / large
    modulus = large * tl.sqrt(1 + ratio * ratio)
    if POWER == -0.5:
        gain = factor / tl.sqrt(modulus)
    elif POWER == 1:
        gain = factor * modulus
    else:
        gain = factor * tl.exp2(POWER * tl.log2(modulus))
    store(out, i, inside, scaled * gain[:, None])


def _scale_by_modulus(z: torch.Tensor, scale: float, power: float, factor: float) -> torch.Tensor:
    out = torch.empty_like(z)
    programs = (triton.cdiv(z.numel(), BLOCK),)
    tensors = torch.view_as_real(z), torch.view_as_real(out)
    launch(scale_by_modulus_kernel, programs, z, *tensors, scale, factor, z.numel(), POWER=power, BLOCK=BLOCK)
    return out


def compress(z: torch.Tensor, exponent: float, factor: float) -> torch.Tensor:
    return _scale_by_modulus(z, 1.0, exponent - 1, factor)


def decompress(z: torch.Tensor, exponent: float, factor: float) -> torch.Tensor:
    return _scale_by_modulus(z, 1 / factor, 1 / exponent - 1, 1.0)

"""The Triton form: complex64 on GPUs to float32, bfloat16 or float16."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from udse_fast.kernels.complex_normal.triton_kernel import BLOCK, launch
from udse_fast.kernels.predictor_corrector.triton_kernel import load, number


@triton.jit(do_not_specialize=["scale"])
def network_input_kernel(state, scale, out, F, T, PER_FRAME: tl.constexpr, BLOCK: tl.constexpr):
    """state: (B, F, T, 2); out: (B, 2, F, T)."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < F * T
    first = tl.program_id(1).to(tl.int64) * F * T
    z = load(state, first + i, inside) * number(scale, i % T, inside, PER_FRAME)
    at = 2 * first + i[:, None] + tl.arange(0, 2)[None, :] * (F * T)
    tl.store(out + at, z, mask=inside[:, None])


def network_input(
    state: torch.Tensor, scale: float | torch.Tensor = 1.0, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    samples, bins, frames = state.shape
    out = torch.empty((samples, 2, bins, frames), dtype=dtype, device=state.device)
    value: float | torch.Tensor
    if isinstance(scale, torch.Tensor) and scale.ndim:
        value = scale.to(state.device, torch.float32).contiguous()
    else:
        value = float(scale)  # a number stays on the host: nothing to copy, nothing to wait for
    programs = triton.cdiv(bins * frames, BLOCK), samples
    launch(
        network_input_kernel,
        programs,
        state,
        torch.view_as_real(state),
        value,
        out,
        bins,
        frames,
        PER_FRAME=isinstance(value, torch.Tensor),
        BLOCK=BLOCK,
    )
    return out

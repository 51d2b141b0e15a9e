"""The CUDA form: complex64 on GPUs to float32; other dtypes are rounded from that."""

from __future__ import annotations

from ctypes import byref

import torch

from udse_fast.backends.cuda_library import PerFrame, cuda_library, shape_argument


def network_input(
    state: torch.Tensor, scale: float | torch.Tensor = 1.0, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    samples, bins, frames = state.shape
    out = torch.empty((samples, 2, bins, frames), dtype=torch.float32, device=state.device)
    if isinstance(scale, torch.Tensor) and scale.ndim:
        scale = scale.to(state.device, torch.float32).contiguous()
        factor = PerFrame(0.0, scale.data_ptr())
    else:
        factor = PerFrame(float(scale), None)
    arguments = byref(shape_argument(state.shape)), byref(factor), out.data_ptr()
    cuda_library().call("network_input", state, state.data_ptr(), *arguments)
    return out.to(dtype)

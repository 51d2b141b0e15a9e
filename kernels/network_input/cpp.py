"""The C++ form: complex64 on CPUs to float32 or bfloat16."""

from __future__ import annotations

import torch

from udse_fast import _core
from udse_fast.kernels.predictor_corrector.cpp import per_frame


def network_input(
    state: torch.Tensor, scale: float | torch.Tensor = 1.0, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    samples, bins, frames = state.shape
    out = torch.empty((samples, 2, bins, frames), dtype=dtype)
    arguments = state.numpy(), per_frame(scale)
    if dtype == torch.bfloat16:
        _core.network_input_bfloat16(*arguments, out.view(torch.uint16).numpy(), torch.get_num_threads())
    else:
        _core.network_input(*arguments, out.numpy(), torch.get_num_threads())
    return out

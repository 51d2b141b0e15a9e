"""The CUDA form: complex64 on GPUs."""

from __future__ import annotations

import torch

from udse_fast.backends.cuda_library import cuda_library


def compress(z: torch.Tensor, exponent: float, factor: float) -> torch.Tensor:
    out = torch.empty_like(z)
    cuda_library().call("compress", z, z.data_ptr(), z.numel(), exponent, factor, out.data_ptr())
    return out


def decompress(z: torch.Tensor, exponent: float, factor: float) -> torch.Tensor:
    out = torch.empty_like(z)
    cuda_library().call("decompress", z, z.data_ptr(), z.numel(), exponent, factor, out.data_ptr())
    return out

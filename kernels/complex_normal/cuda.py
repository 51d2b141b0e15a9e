"""The CUDA form: complex64 on GPUs."""

from __future__ import annotations

from ctypes import byref

import torch

from udse_fast.backends.cuda_library import cuda_library, key_argument, shape_argument
from udse_fast.kernels.complex_normal.reference import NoiseKey, Shape


def complex_normal(key: NoiseKey, shape: Shape, dtype: torch.dtype, device: torch.device | str) -> torch.Tensor:
    z = torch.empty(shape, dtype=dtype, device=device)
    cuda_library().call("complex_normal", z, byref(key_argument(key)), byref(shape_argument(shape)), z.data_ptr())
    return z

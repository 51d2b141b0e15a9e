"""The C++ form: complex64 on CPUs."""

from __future__ import annotations

import torch

from udse_fast import _core


def compress(z: torch.Tensor, exponent: float, factor: float) -> torch.Tensor:
    out = torch.empty_like(z)
    _core.compress(z.numpy(), exponent, factor, out.numpy(), torch.get_num_threads())
    return out


def decompress(z: torch.Tensor, exponent: float, factor: float) -> torch.Tensor:
    out = torch.empty_like(z)
    _core.decompress(z.numpy(), exponent, factor, out.numpy(), torch.get_num_threads())
    return out

"""What stands between the convolutions of a U-Net: norm, FiLM and SiLU, residual sum, FIR resampling."""

from __future__ import annotations

import importlib
import os
from types import ModuleType

import torch

from udse_fast.backends import MODULES, backends
from udse_fast.kernels.fused_layers import reference

__all__ = ["norm_film_silu", "resample", "residual_sum"]

DTYPES = torch.float32, torch.float16, torch.bfloat16


def _module(x: torch.Tensor) -> ModuleType:
    """Triton or CUDA on GPUs, or what UDSE_BACKEND says; else the reference, which CPUs always take."""
    if not x.is_cuda or x.dtype not in DTYPES:
        return reference
    there = [backend.name for backend in backends() if backend.available]
    order = [os.environ["UDSE_BACKEND"]] if os.environ.get("UDSE_BACKEND") else ["triton", "cuda"]
    name = next((name for name in order if name in there and name in ("triton", "cuda")), "reference")
    return importlib.import_module(f"{__name__}.{MODULES[name]}")


def norm_film_silu(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    groups: int,
    before: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    shift: torch.Tensor | None = None,
    activate: bool = True,
) -> torch.Tensor:
    """See `reference.norm_film_silu`."""
    per_frame = any(c is not None and c.shape[-1] > 1 for c in (before, scale, shift))
    module = reference if per_frame else _module(x)
    result: torch.Tensor = module.norm_film_silu(x, weight, bias, groups, before, scale, shift, activate)
    return result


def residual_sum(h: torch.Tensor, x: torch.Tensor, bias: torch.Tensor, factor: float) -> torch.Tensor:
    """See `reference.residual_sum`."""
    result: torch.Tensor = _module(h).residual_sum(h, x, bias, factor)
    return result


def resample(x: torch.Tensor, up: bool) -> torch.Tensor:
    """See `reference.resample`."""
    result: torch.Tensor = _module(x).resample(x, up)
    return result

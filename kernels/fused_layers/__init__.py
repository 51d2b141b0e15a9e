"""What stands between the convolutions of a U-Net: norm, FiLM and SiLU, residual sum, FIR resampling."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import torch

from udse_fast.kernels.fused_layers import reference

__all__ = ["norm_film_silu", "resample", "residual_sum"]


def _module(x: torch.Tensor) -> ModuleType:
    if x.is_cuda and torch.cuda.get_device_capability(x.device) >= (8, 0) and importlib.util.find_spec("triton"):
        from udse_fast.kernels.fused_layers import triton_kernel

        return triton_kernel
    return reference


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

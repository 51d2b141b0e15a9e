"""What stands between the convolutions of a U-Net: norm, FiLM and SiLU, residual sum, FIR resampling."""

from __future__ import annotations

from types import ModuleType

import torch

from udse_fast.backends.dispatch import chosen_backend, implementation
from udse_fast.kernels.fused_layers import reference
from udse_fast.kernels.fused_layers.reference import Norm

__all__ = ["Norm", "backend_of", "measured_sum", "norm_film_silu", "resample", "residual_sum", "tile_statistics"]

DTYPES = torch.float32, torch.float16, torch.bfloat16


def backend_of(device: torch.device) -> str:
    """Triton or CUDA on GPUs, or what UDSE_BACKEND says; CPUs have the reference."""
    if device.type != "cuda":
        return "reference"
    return chosen_backend("the fused layers", (device,), ("triton", "cuda"))  # sm_75 has no Triton


def _module(x: torch.Tensor) -> ModuleType:
    """The one for a map."""
    return implementation(__name__, backend_of(x.device) if x.dtype in DTYPES else "reference")


def tile_statistics(x: torch.Tensor) -> torch.Tensor | None:
    """See `reference.tile_statistics`; None where norms have no use for them."""
    module = _module(x)
    result: torch.Tensor | None = None if module is reference else module.tile_statistics(x)
    return result


def norm_film_silu(norm: Norm) -> torch.Tensor:
    """See `reference.norm_film_silu`."""
    per_frame = any(c is not None and c.shape[-1] > 1 for c in (norm.before, norm.scale, norm.shift))
    result: torch.Tensor = (reference if per_frame else _module(norm.x)).norm_film_silu(norm)
    return result


def residual_sum(h: torch.Tensor, x: torch.Tensor, bias: torch.Tensor, factor: float) -> torch.Tensor:
    """See `reference.residual_sum`."""
    result: torch.Tensor = _module(h).residual_sum(h, x, bias, factor)
    return result


def measured_sum(
    h: torch.Tensor, x: torch.Tensor, bias: torch.Tensor, factor: float
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`residual_sum` and its `tile_statistics`."""
    module = _module(h)
    if module is reference:
        return reference.residual_sum(h, x, bias, factor), None
    result: tuple[torch.Tensor, torch.Tensor] = module.measured_sum(h, x, bias, factor)
    return result


def resample(x: torch.Tensor, up: bool) -> torch.Tensor:
    """See `reference.resample`."""
    result: torch.Tensor = _module(x).resample(x, up)
    return result

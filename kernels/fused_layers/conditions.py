"""What a norm is told beside its map, as the compiled kernels read it: rows of channels and how far apart they are."""

from __future__ import annotations

import torch

Rows = tuple[torch.Tensor | None, int]
"""(B or 1, C) with neighbouring channels, and the distance of two samples: 0 where all share one."""


def condition_rows(condition: torch.Tensor | None, dtype: torch.dtype) -> Rows:
    """Of (B or 1, C, 1, 1), without a copy where the channels lie side by side already."""
    if condition is None:
        return None, 0
    flat = condition.flatten(1).to(dtype)
    if flat.stride(1) != 1:
        flat = flat.contiguous()
    return flat, flat.stride(0) if len(flat) > 1 else 0


def film_rows(
    scale: torch.Tensor | None, shift: torch.Tensor | None, dtype: torch.dtype
) -> tuple[torch.Tensor | None, torch.Tensor | None, int]:
    """Of both, at one distance."""
    (by, stride), (to, other) = condition_rows(scale, dtype), condition_rows(shift, dtype)
    if by is not None and to is not None and stride != other:
        by, to = by.contiguous(), to.contiguous()
        stride = by.stride(0) if len(by) > 1 else 0
    return by, to, stride

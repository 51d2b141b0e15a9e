"""The layers in plain torch, for any device."""

from __future__ import annotations

import torch
import torch.nn.functional as F

EPS = 1e-6


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
    """SiLU(GroupNorm(x + before) * scale + shift).

    Args:
        x: (B, C, F, T) real.
        weight, bias: (C,), of the norm.
        groups: of channels that share mean and variance over F and T.
        before: (B or 1, C, 1, 1 or T), None: 0.
        scale, shift: (B, C, 1, 1 or T), both or neither.
        activate: False leaves SiLU out.

    Returns:
        (B, C, F, T), dtype of x.
    """
    h = F.group_norm(x if before is None else x + before, groups, weight, bias, EPS)
    if scale is not None and shift is not None:
        h = h * scale + shift
    return F.silu(h) if activate else h


def residual_sum(h: torch.Tensor, x: torch.Tensor, bias: torch.Tensor, factor: float) -> torch.Tensor:
    """h + bias + factor x; h, x: (B, C, F, T), bias: (C,)."""
    return torch.add(h + bias[:, None, None], x, alpha=factor)


def resample(x: torch.Tensor, up: bool) -> torch.Tensor:
    """Double or halve F and T with the filter [1, 3, 3, 1]: (B, C, F, T) -> (B, C, 2 F, 2 T) or (B, C, F/2, T/2).

    The borders are zero; the weights add up to 1 for every output inside.
    """
    channels = x.shape[1]
    # [1, 3, 3, 1], made on the device: copies from the host cannot be captured in a CUDA graph
    taps = (4 - 2 * (torch.arange(4, dtype=x.dtype, device=x.device) - 1.5).abs()) / (4 if up else 8)
    kernel = torch.outer(taps, taps).expand(channels, 1, 4, 4)
    if up:
        return F.conv_transpose2d(x, kernel, stride=2, padding=1, groups=channels)
    return F.conv2d(x, kernel, stride=2, padding=1, groups=channels)

"""The layers in plain torch, for any device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

EPS = 1e-6
LEAST_TILE = 32  # positions
MAX_TILES = 512  # of a sample: enough programs for a GPU, and few enough for one of them to read all sums at once


def tile_length(positions: int) -> int:
    """Positions of a tile; the last may have fewer."""
    return LEAST_TILE * -(-positions // (LEAST_TILE * MAX_TILES))


def tile_statistics(x: torch.Tensor) -> torch.Tensor:
    """Sum, centred sum of squares and count of every tile and channel: (B, C, F, T) -> (3, B, tiles, C).

    float32 or more. A tile is any part of the positions; here they are as many neighbours each.
    """
    tiles = x.flatten(2).to(torch.promote_types(x.dtype, torch.float32)).split(tile_length(x[0, 0].numel()), 2)
    sums = [tile.sum(2) for tile in tiles]
    squares = [(tile - tile.mean(2, keepdim=True)).square().sum(2) for tile in tiles]
    counts = [torch.full_like(tile[..., 0], tile.shape[2]) for tile in tiles]
    return torch.stack([torch.stack(each, 1) for each in (sums, squares, counts)])


def moments(statistics: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of every channel, (B, C) each, from those of tiles (Chan, Golub, LeVeque 1983)."""
    sums, squares, counts = statistics
    count = counts.sum(1)
    mean = sums.sum(1) / count
    between = counts * (sums / counts - mean[:, None]).square()
    return mean, (squares + between).sum(1) / count


class Norm(NamedTuple):
    """A map and what `norm_film_silu` does to it."""

    x: torch.Tensor
    """(B, C', F, T) real."""
    weight: torch.Tensor
    """(C,), of the norm."""
    bias: torch.Tensor
    groups: int
    """Of channels that share mean and variance over F and T."""
    before: torch.Tensor | None = None
    """(B or 1, C, 1, 1 or T), None: 0."""
    scale: torch.Tensor | None = None
    """(B, C, 1, 1 or T), with `shift`, or neither."""
    shift: torch.Tensor | None = None
    activate: bool = True
    """False leaves SiLU out."""
    skip: torch.Tensor | None = None
    """(B, C - C', F, T), the channels that follow those of x, None: C' = C."""
    statistics: Sequence[torch.Tensor | None] = (None, None)
    """`tile_statistics` of x and of skip, None: not known."""


def norm_film_silu(norm: Norm) -> torch.Tensor:
    """SiLU(GroupNorm([x, skip] + before) * scale + shift): (B, C, F, T), dtype of x."""
    x = norm.x if norm.skip is None else torch.cat([norm.x, norm.skip], dim=1)
    h = F.group_norm(x if norm.before is None else x + norm.before, norm.groups, norm.weight, norm.bias, EPS)
    if norm.scale is not None and norm.shift is not None:
        h = h * norm.scale + norm.shift
    return F.silu(h) if norm.activate else h


def residual_sum(h: torch.Tensor, x: torch.Tensor, bias: torch.Tensor, factor: float) -> torch.Tensor:
    """h + bias + factor x; h, x: (B, C, F, T), bias: (C,)."""
    return torch.add(h + bias[:, None, None], x, alpha=factor)


def measured_sum(
    h: torch.Tensor, x: torch.Tensor, bias: torch.Tensor, factor: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`residual_sum` and its `tile_statistics`."""
    summed = residual_sum(h, x, bias, factor)
    return summed, tile_statistics(summed)


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

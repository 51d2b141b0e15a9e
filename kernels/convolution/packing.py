"""Weights in the order in which the kernels read them, made once for each weight."""

from __future__ import annotations

import torch
from torch.utils.weak import WeakTensorKeyDictionary

DEPTH = 32
"""Channels of the input that are multiplied at a time; those of the output are rounded up to a multiple of it."""

_packed = WeakTensorKeyDictionary()
"""Weight -> what it was when it was packed, and the packs."""


def packed(weight: torch.Tensor, widths: tuple[int, ...]) -> list[torch.Tensor]:
    """(C', C, k, k) or (C', C), C = sum of `widths`, of maps side by side -> (chunks, k k, columns, DEPTH) for each.

    Zeros stand where a map or the output has no channel. Weights must not change in place.
    """
    form = weight.data_ptr(), weight.dtype, weight.device, widths
    known = _packed.get(weight)
    if known is None or known[0] != form:
        with torch.inference_mode(False), torch.no_grad():
            taps = weight.detach().reshape(*weight.shape[:2], -1)
            known = form, [_pack(part) for part in taps.split(list(widths), 1)]
        _packed[weight] = known
    packs: list[torch.Tensor] = known[1]
    return packs


def _pack(weight: torch.Tensor) -> torch.Tensor:
    """(C', C, taps) -> (chunks, taps, columns, DEPTH)."""
    rows, channels, taps = weight.shape
    chunks, columns = -(-channels // DEPTH), -(-rows // DEPTH) * DEPTH
    whole = weight.new_zeros(columns, chunks * DEPTH, taps)
    whole[:rows, :channels] = weight
    return whole.view(columns, chunks, DEPTH, taps).permute(1, 3, 0, 2).contiguous()

"""Layer by layer, for any device: the convolution is the library's (cuDNN's on GPUs), the rest `fused_layers`."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F

from udse_fast.kernels.fused_layers import Norm, measured_sum, norm_film_silu, residual_sum


class Convolution(NamedTuple):
    """out = weight * input + bias + (factor added[0], or shortcut [added])."""

    input: Norm | torch.Tensor
    """(B, C, F, T) as it is, or SiLU(norm) of one or two maps."""
    weight: torch.Tensor
    """(C', C, 3, 3) or (C', C, 1, 1)."""
    bias: torch.Tensor | None = None
    """(C',)."""
    added: tuple[torch.Tensor, ...] = ()
    """(B, C', F, T), or what `shortcut` maps to it: one or two maps of C'' channels in all."""
    shortcut: torch.Tensor | None = None
    """(C', C'')."""
    factor: float = 1.0
    measured: bool = False
    """The statistics of the sum are wanted, where they cost little."""


Convolved: TypeAlias = tuple[torch.Tensor, torch.Tensor | None]
"""(B, C', F, T) and its tile statistics (see `fused_layers.reference`), None: not known."""


def convolution(job: Convolution) -> Convolved:
    """See `Convolution`; the dtype is that of the input."""
    h = norm_film_silu(job.input) if isinstance(job.input, Norm) else job.input
    h = F.conv2d(h, job.weight, padding=job.weight.shape[-1] // 2)
    if not job.added:
        return h if job.bias is None else h + job.bias[:, None, None], None
    x, factor, bias = job.added[0], job.factor, job.bias
    if job.shortcut is not None:
        x, factor = product(x, job.shortcut[:, : x.shape[1]]), 1.0
        for other in job.added[1:]:
            x = product(other, job.shortcut[:, -other.shape[1] :], x)
    bias = job.weight.new_zeros(len(job.weight)) if bias is None else bias
    if job.measured:
        return measured_sum(h, x, bias, factor)
    return residual_sum(h, x, bias, factor), None


def product(x: torch.Tensor, weight: torch.Tensor, onto: torch.Tensor | None = None) -> torch.Tensor:
    """The 1x1 convolution of a channels_last map, (B, C, F, T) and (C', C) -> (B, C', F, T); added into `onto`."""
    rows = x.movedim(1, -1)
    flat = rows.reshape(-1, rows.shape[-1])
    sums = None if onto is None else onto.movedim(1, -1).reshape(-1, len(weight))
    result = flat @ weight.T if sums is None else sums.addmm_(flat, weight.T)
    return result.view(*rows.shape[:-1], len(weight)).movedim(-1, 1)

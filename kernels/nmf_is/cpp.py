"""The C++ form: V is formed on the fly, float32 on CPUs."""

from __future__ import annotations

import torch
from torch import Tensor

from udse_fast import _core


def nmf_update(power: Tensor, W: Tensor, H: Tensor, iterations: int, floor: float) -> tuple[Tensor, Tensor]:
    w, h = W.numpy().copy(), H.numpy().copy()
    _core.nmf_update(power.numpy(), w, h, iterations, floor, torch.get_num_threads())
    return torch.from_numpy(w), torch.from_numpy(h)


def online_nmf_update(
    power: Tensor, W: Tensor, H: Tensor, A: Tensor, B: Tensor, forgetting: float, iterations: int, floor: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    w, h, a, b = (x.numpy().copy() for x in (W, H, A, B))
    _core.online_nmf_update(power.numpy(), w, h, a, b, forgetting, iterations, floor, torch.get_num_threads())
    return torch.from_numpy(w), torch.from_numpy(h), torch.from_numpy(a), torch.from_numpy(b)

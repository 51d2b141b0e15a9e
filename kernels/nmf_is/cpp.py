"""The C++ form: V is formed on the fly, float32 on CPUs."""

from __future__ import annotations

import torch
from torch import Tensor

from udse_fast import _core
from udse_fast.kernels.nmf_is.reference import even_start


def nmf_update(power: Tensor, W: Tensor, H: Tensor, iterations: int, floor: float) -> tuple[Tensor, Tensor]:
    w, h = W.numpy().copy(), H.numpy().copy()
    _core.nmf_update(power.numpy(), w, h, iterations, floor, torch.get_num_threads())
    return torch.from_numpy(w), torch.from_numpy(h)


def online_nmf_update(
    power: Tensor, W: Tensor, numerator: Tensor, denominator: Tensor, forgetting: float, iterations: int, floor: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    p, w, a, b = power.numpy(), W.numpy().copy(), numerator.numpy().copy(), denominator.numpy().copy()
    h = even_start(power, W, floor).numpy()
    _core.online_nmf_update(p, w, h, a, b, forgetting, iterations, floor, torch.get_num_threads())
    return torch.from_numpy(w), torch.from_numpy(h), torch.from_numpy(a), torch.from_numpy(b)

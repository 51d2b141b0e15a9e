"""The C++ form: V is formed on the fly, float32 on CPUs."""

from __future__ import annotations

import torch

from udse_fast import _core
from udse_fast.kernels.nmf_is.reference import even_start


def nmf_update(
    power: torch.Tensor,
    W: torch.Tensor,
    H: torch.Tensor,
    iterations: int = 1,
    floor: float = 1e-10,
) -> tuple[torch.Tensor, torch.Tensor]:
    w, h = W.numpy().copy(), H.numpy().copy()
    _core.nmf_update(power.numpy(), w, h, iterations, floor, torch.get_num_threads())
    return torch.from_numpy(w), torch.from_numpy(h)


def online_nmf_update(
    power: torch.Tensor,
    W: torch.Tensor,
    numerator: torch.Tensor,
    denominator: torch.Tensor,
    forgetting: float,
    iterations: int = 1,
    floor: float = 1e-10,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    p, w, a, b = power.numpy(), W.numpy().copy(), numerator.numpy().copy(), denominator.numpy().copy()
    h = even_start(power, W, floor).numpy()
    _core.online_nmf_update(p, w, h, a, b, forgetting, iterations, floor, torch.get_num_threads())
    return torch.from_numpy(w), torch.from_numpy(h), torch.from_numpy(a), torch.from_numpy(b)

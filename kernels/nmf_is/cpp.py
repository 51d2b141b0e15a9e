"""The C++ form: V is formed on the fly, float32 on CPUs."""

from __future__ import annotations

import numpy as np
import torch

from udse_fast import _core


def nmf_update(
    power: torch.Tensor,
    W: torch.Tensor,
    H: torch.Tensor,
    iterations: int = 1,
    floor: float = 1e-10,
    fixed_w: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    w, h = W.numpy().copy(), H.numpy().copy()
    _core.nmf_update(power.numpy(), w, h, iterations, floor, fixed_w, torch.get_num_threads())
    return torch.from_numpy(w), torch.from_numpy(h)


def online_nmf_update(
    power: torch.Tensor,
    W: torch.Tensor,
    numerator: torch.Tensor,
    denominator: torch.Tensor,
    forgetting: float,
    iterations: int = 1,
    H: torch.Tensor | None = None,
    floor: float = 1e-10,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    p, w, a, b = power.numpy(), W.numpy().copy(), numerator.numpy().copy(), denominator.numpy().copy()
    if H is None:  # as reference.even_start
        h = np.empty((w.shape[1], p.shape[1]), np.float32)
        h[:] = np.maximum(p.sum(0) / w.sum(), floor)
    else:
        h = H.numpy().copy()
    _core.online_nmf_update(p, w, h, a, b, forgetting, iterations, floor, torch.get_num_threads())
    return torch.from_numpy(w), torch.from_numpy(h), torch.from_numpy(a), torch.from_numpy(b)

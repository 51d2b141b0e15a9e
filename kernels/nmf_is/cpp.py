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
    fixed_w: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    W, H = W.clone(), H.clone()
    _core.nmf_update(power.numpy(), W.numpy(), H.numpy(), iterations, floor, fixed_w, torch.get_num_threads())
    return W, H


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
    H = even_start(power, W, floor) if H is None else H.clone()
    W, A, B = W.clone(), numerator.clone(), denominator.clone()
    _core.online_nmf_update(
        power.numpy(),
        W.numpy(),
        H.numpy(),
        A.numpy(),
        B.numpy(),
        forgetting,
        iterations,
        floor,
        torch.get_num_threads(),
    )
    return W, H, A, B

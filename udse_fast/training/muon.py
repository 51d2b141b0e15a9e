"""Muon (Jordan et al. 2024), with the matrices of one shape as one batch.

The update is the momentum, orthogonalised by Newton-Schulz iterations: 15 products for each matrix of a network, most
of them too small to fill a GPU. A batch of all of one shape is as few launches as one matrix.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.95
COEFFICIENTS = 3.4445, -4.7750, 2.0315
"""Of the quintic X <- a X + (b G + c G^2) X, G = X X^T, that lifts small singular values fastest."""
ITERATIONS = 5
LEAST_NORM = 1e-7
UPDATE_SIZE = 0.2
"""Root mean square of an element of the update, as of AdamW's (Liu et al. 2025, "Muon is scalable")."""


class Muon(torch.optim.Optimizer):
    """theta <- (1 - lr decay) theta - 0.2 lr sqrt(max(A, B)) orthogonalised(g + momentum), Nesterov's form.

    Its states are those of `torch.optim.Muon(..., adjust_lr_fn="match_rms_adamw")`, which goes matrix by matrix.

    Args:
        matrices: parameters (A, B).
        lr: learning rate.
        weight_decay: decoupled, times the learning rate.
    """

    def __init__(self, matrices: Iterable[Tensor], lr: float, weight_decay: float) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step with the gradients that are there; `closure` is not called."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for matrix in group["params"]:
                if matrix.grad is not None:
                    by_shape.setdefault(matrix.shape, []).append(matrix)
            for matrices in by_shape.values():
                self._step(matrices, group["lr"], group["weight_decay"])

    def _step(self, matrices: list[Tensor], rate: float, decay: float) -> None:
        """Of matrices of one shape."""
        gradients = [matrix.grad for matrix in matrices if matrix.grad is not None]
        for matrix in matrices:
            if "momentum_buffer" not in self.state[matrix]:
                self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)
        momenta = [self.state[matrix]["momentum_buffer"] for matrix in matrices]
        torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
        updates = orthogonalised(torch.stack(torch._foreach_lerp(gradients, momenta, MOMENTUM)))
        torch._foreach_mul_(matrices, 1 - rate * decay)
        scale = UPDATE_SIZE * math.sqrt(max(matrices[0].shape))
        torch._foreach_add_(matrices, list(updates.to(matrices[0].dtype).unbind()), alpha=-rate * scale)


def orthogonalised(batch: Tensor) -> Tensor:
    """U S V^T of each matrix of a batch (N, A, B), with S about 0.7 to 1.2 in the place of its own; bfloat16."""
    a, b, c = COEFFICIENTS
    wide = batch.shape[1] <= batch.shape[2]
    x = (batch if wide else batch.transpose(1, 2)).bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=LEAST_NORM)
    for _ in range(ITERATIONS):
        gram = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.transpose(1, 2)

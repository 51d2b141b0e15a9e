"""From the complex state to the real tensor a network takes."""

from __future__ import annotations

import torch


def network_input(
    state: torch.Tensor, scale: float | torch.Tensor = 1.0, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Real and imaginary part as channels, scaled.

    Args:
        state: (B, F, T) complex.
        scale: one number or (T,).
        dtype: real dtype of the result, e.g. bfloat16.

    Returns:
        (B, 2, F, T) of dtype.
    """
    return (torch.stack([state.real, state.imag], 1) * scale).to(dtype)

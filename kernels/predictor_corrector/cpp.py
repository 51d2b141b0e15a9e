"""The C++ form: one pass, noise drawn inside, complex64 on CPUs."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from udse_fast import _core
from udse_fast.kernels.coefficients import Coefficients
from udse_fast.kernels.complex_normal.cpp import noise_argument
from udse_fast.kernels.complex_normal.reference import Noise


def per_frame(number: float | torch.Tensor) -> NDArray[np.float32]:
    """One number, or one per frame, as (1,) or (T,) float32."""
    return np.atleast_1d(np.asarray(number, np.float32))


def rows(coefficients: Coefficients) -> NDArray[np.float32]:
    """The coefficients as (6, 1) or (6, T) float32."""
    values = coefficients.values()
    if any([isinstance(value, torch.Tensor) for value in values]):
        return np.stack(np.broadcast_arrays(*[per_frame(value) for value in values]))
    return np.array(values, np.float32)[:, None]


def corrector(
    state: torch.Tensor,
    score: torch.Tensor,
    coefficients: Coefficients,
    noise: Noise,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    out = torch.empty_like(state) if out is None else out
    _core.corrector(
        state.numpy(),
        score.numpy(),
        rows(coefficients),
        noise_argument(noise),
        out.numpy(),
        torch.get_num_threads(),
    )
    return out


def predictor(
    state: torch.Tensor,
    score: torch.Tensor,
    coefficients: Coefficients,
    noise: Noise,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    out = torch.empty_like(state) if out is None else out
    _core.predictor(
        state.numpy(),
        score.numpy(),
        rows(coefficients),
        noise_argument(noise),
        out.numpy(),
        torch.get_num_threads(),
    )
    return out

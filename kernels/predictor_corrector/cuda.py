"""The CUDA form: one pass, noise drawn inside, complex64 on GPUs."""

from __future__ import annotations

import torch

from udse_fast.backends.cuda_library import StepArguments
from udse_fast.kernels.coefficients import Coefficients
from udse_fast.kernels.complex_normal.reference import Noise


def corrector(
    state: torch.Tensor,
    score: torch.Tensor,
    coefficients: Coefficients,
    noise: Noise,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    out = torch.empty_like(state) if out is None else out
    StepArguments(state, score, coefficients, noise, out).run("corrector")
    return out


def predictor(
    state: torch.Tensor,
    score: torch.Tensor,
    coefficients: Coefficients,
    noise: Noise,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    out = torch.empty_like(state) if out is None else out
    StepArguments(state, score, coefficients, noise, out).run("predictor")
    return out

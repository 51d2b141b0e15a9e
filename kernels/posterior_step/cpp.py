"""The C++ form: each step in one pass, V = W H formed on the fly, noise drawn inside, complex64 on CPUs."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from udse_fast import _core
from udse_fast.kernels.coefficients import Coefficients
from udse_fast.kernels.complex_normal.cpp import noise_argument
from udse_fast.kernels.complex_normal.reference import Noise
from udse_fast.kernels.posterior_step.reference import NoiseVariance
from udse_fast.kernels.predictor_corrector.cpp import per_frame, rows

Floats = NDArray[np.float32]


def variance_argument(noise_variance: NoiseVariance) -> Floats | tuple[Floats, Floats]:
    """V, or its factors, as the core takes it."""
    if isinstance(noise_variance, tuple):
        return noise_variance[0].numpy(), noise_variance[1].numpy()
    return noise_variance.numpy()


def marginal_guidance(
    state: torch.Tensor,
    score: torch.Tensor,
    mixture: torch.Tensor,
    noise_variance: NoiseVariance,
    coefficients: Coefficients,
    noise: Noise,
    guidance: float | torch.Tensor = 1.5,
    *,
    apply: bool = True,
    power_of_state: bool = False,
    divide_tweedie: bool = False,
    out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    out = torch.empty_like(state) if out is None else out
    power = torch.empty(mixture.shape)
    _core.marginal_guidance(
        state.numpy(),
        score.numpy(),
        mixture.numpy(),
        variance_argument(noise_variance),
        rows(coefficients),
        noise_argument(noise),
        per_frame(guidance),
        apply,
        power_of_state,
        divide_tweedie,
        out.numpy(),
        power.numpy(),
        torch.get_num_threads(),
    )
    return out, power


def product_of_gaussians(
    state: torch.Tensor,
    score: torch.Tensor,
    mixture: torch.Tensor,
    noise_variance: NoiseVariance,
    coefficients: Coefficients,
    noise: Noise,
    *,
    forward_noise: Noise = None,
    divide_tweedie: bool = False,
    out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    out = torch.empty_like(state) if out is None else out
    power = torch.empty(mixture.shape)
    _core.product_of_gaussians(
        state.numpy(),
        score.numpy(),
        mixture.numpy(),
        variance_argument(noise_variance),
        rows(coefficients),
        noise_argument(noise),
        noise_argument(forward_noise),
        divide_tweedie,
        out.numpy(),
        power.numpy(),
        torch.get_num_threads(),
    )
    return out, power


def noise_posterior_guidance(
    state: torch.Tensor,
    score: torch.Tensor,
    mixture: torch.Tensor,
    noise_variance: NoiseVariance,
    coefficients: Coefficients,
    noise: Noise,
    guidance: float | torch.Tensor = 1.75,
    *,
    observation_variance: float = 5e-4,
    paper_posterior: bool = False,
    want_noise: bool = False,
    out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    out = torch.empty_like(state) if out is None else out
    power = torch.empty(mixture.shape)
    noise_mean = torch.empty_like(state) if want_noise else None
    _core.noise_posterior_guidance(
        state.numpy(),
        score.numpy(),
        mixture.numpy(),
        variance_argument(noise_variance),
        rows(coefficients),
        noise_argument(noise),
        per_frame(guidance),
        observation_variance,
        paper_posterior,
        out.numpy(),
        power.numpy(),
        None if noise_mean is None else noise_mean.numpy(),
        torch.get_num_threads(),
    )
    return out, power, noise_mean


def predictor_residual(
    state: torch.Tensor,
    score: torch.Tensor,
    mixture: torch.Tensor,
    coefficients: Coefficients,
    noise: Noise,
    residual_noise: Noise = None,
    out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    out = torch.empty_like(state) if out is None else out
    residual = torch.empty_like(state)
    _core.predictor_residual(
        state.numpy(),
        score.numpy(),
        mixture.numpy(),
        rows(coefficients),
        noise_argument(noise),
        noise_argument(residual_noise),
        out.numpy(),
        residual.numpy(),
        torch.get_num_threads(),
    )
    return out, residual


def score_noise_guidance(
    state: torch.Tensor,
    noise_score: torch.Tensor,
    coefficients: Coefficients,
    guidance: float | torch.Tensor = 1.0,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    out = torch.empty_like(state) if out is None else out
    _core.score_noise_guidance(
        state.numpy(),
        noise_score.numpy(),
        rows(coefficients),
        per_frame(guidance),
        out.numpy(),
        torch.get_num_threads(),
    )
    return out


def joint_guidance(
    speech: torch.Tensor,
    speech_score: torch.Tensor,
    noise: torch.Tensor,
    noise_score: torch.Tensor,
    mixture: torch.Tensor,
    coefficients: Coefficients,
    speech_draw: Noise,
    noise_draw: Noise,
    guidance: float | torch.Tensor,
    *,
    apply: bool = True,
    observation_variance: float = 1e-3,
    out: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    out = (torch.empty_like(speech), torch.empty_like(noise)) if out is None else out
    _core.joint_guidance(
        speech.numpy(),
        speech_score.numpy(),
        noise.numpy(),
        noise_score.numpy(),
        mixture.numpy(),
        rows(coefficients),
        noise_argument(speech_draw),
        noise_argument(noise_draw),
        per_frame(guidance),
        apply,
        observation_variance,
        out[0].numpy(),
        out[1].numpy(),
        torch.get_num_threads(),
    )
    return out


def unexplained_power(
    state: torch.Tensor,
    score: torch.Tensor,
    posterior_variance: torch.Tensor,
    mixture: torch.Tensor,
    noise_variance: NoiseVariance,
    coefficients: Coefficients,
    noise_bias: float = 1.0,
) -> torch.Tensor:
    power = torch.empty(mixture.shape)
    _core.unexplained_power(
        state.numpy(),
        score.numpy(),
        posterior_variance.numpy(),
        mixture.numpy(),
        variance_argument(noise_variance),
        rows(coefficients),
        noise_bias,
        power.numpy(),
        torch.get_num_threads(),
    )
    return power


def ddrm_step(
    state: torch.Tensor,
    score: torch.Tensor,
    posterior_variance: torch.Tensor,
    mixture: torch.Tensor,
    noise_variance: NoiseVariance,
    coefficients: Coefficients,
    following: Coefficients | None,
    noise: Noise,
    eta: float = 0.85,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    out = torch.empty_like(state) if out is None else out
    _core.ddrm_step(
        state.numpy(),
        score.numpy(),
        posterior_variance.numpy(),
        mixture.numpy(),
        variance_argument(noise_variance),
        rows(coefficients),
        None if following is None else rows(following),
        noise_argument(noise),
        eta,
        out.numpy(),
        torch.get_num_threads(),
    )
    return out

"""The CUDA form: each step in one pass, V = W H formed on the fly, noise drawn inside, complex64 on GPUs."""

from __future__ import annotations

import torch

from udse_fast.backends.cuda_library import StepArguments
from udse_fast.kernels.coefficients import Coefficients
from udse_fast.kernels.complex_normal.reference import Noise
from udse_fast.kernels.posterior_step.reference import NoiseVariance


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
    power = torch.empty_like(mixture, dtype=torch.float32)
    StepArguments(
        state,
        score,
        coefficients,
        noise,
        out,
        mixture=mixture,
        noise_variance=noise_variance,
        guidance=guidance,
        power=power,
        apply=apply,
        power_of_state=power_of_state,
        divide_tweedie=divide_tweedie,
    ).run("marginal_guidance")
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
    power = torch.empty_like(mixture, dtype=torch.float32)
    StepArguments(
        state,
        score,
        coefficients,
        noise,
        out,
        mixture=mixture,
        noise_variance=noise_variance,
        second_noise=forward_noise,
        power=power,
        divide_tweedie=divide_tweedie,
    ).run("product_of_gaussians")
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
    power = torch.empty_like(mixture, dtype=torch.float32)
    noise_mean = torch.empty_like(state) if want_noise else None
    StepArguments(
        state,
        score,
        coefficients,
        noise,
        out,
        mixture=mixture,
        noise_variance=noise_variance,
        guidance=guidance,
        power=power,
        second_out=noise_mean,
        observation_variance=observation_variance,
        paper_posterior=paper_posterior,
    ).run("noise_posterior_guidance")
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
    StepArguments(
        state,
        score,
        coefficients,
        noise,
        out,
        mixture=mixture,
        second_noise=residual_noise,
        second_out=residual,
    ).run("predictor_residual")
    return out, residual


def score_noise_guidance(
    state: torch.Tensor,
    noise_score: torch.Tensor,
    coefficients: Coefficients,
    guidance: float | torch.Tensor = 1.0,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    out = torch.empty_like(state) if out is None else out
    StepArguments(state, noise_score, coefficients, None, out, guidance=guidance).run("score_noise_guidance")
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
    StepArguments(
        speech,
        speech_score,
        coefficients,
        speech_draw,
        out[0],
        mixture=mixture,
        guidance=guidance,
        second_state=noise,
        second_score=noise_score,
        second_noise=noise_draw,
        second_out=out[1],
        observation_variance=observation_variance,
        apply=apply,
    ).run("joint_guidance")
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
    power = torch.empty_like(mixture, dtype=torch.float32)
    StepArguments(
        state,
        score,
        coefficients,
        None,
        None,
        mixture=mixture,
        noise_variance=noise_variance,
        posterior_variance=posterior_variance,
        noise_bias=noise_bias,
        power=power,
    ).run("unexplained_power")
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
    StepArguments(
        state,
        score,
        coefficients,
        None if following is None else noise,
        out,
        mixture=mixture,
        noise_variance=noise_variance,
        posterior_variance=posterior_variance if following is None else None,
        following=following,
        eta=eta,
    ).run("ddrm_step")
    return out

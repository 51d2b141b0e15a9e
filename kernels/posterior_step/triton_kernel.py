"""The Triton form: a step in one pass, V = W H formed on the fly, noise drawn inside, complex64 on GPUs."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from udse_fast.kernels.coefficients import Coefficients
from udse_fast.kernels.complex_normal.reference import Noise
from udse_fast.kernels.complex_normal.triton_kernel import BLOCK, launch, words
from udse_fast.kernels.posterior_step.reference import NoiseVariance
from udse_fast.kernels.predictor_corrector.triton_kernel import (
    given,
    load,
    noise_of,
    number,
    numbers,
    predicted,
    real,
    store,
)


@triton.jit
def variance(V, W, H, i, f, t, T, R, inside):
    """V (N, 1), or of W H where V is None."""
    if V is not None:
        v = tl.load(V + i, mask=inside, other=1.0)
    else:
        v = f * 0.0
        for k in range(R):
            v += tl.load(W + f * R + k, mask=inside, other=1.0) * tl.load(H + k * T + t, mask=inside, other=1.0)
    return v[:, None]


@triton.jit
def step_kernel(
    state,
    score,
    mixture,
    V,
    W,
    H,
    other_state,
    other_score,
    z,
    key,
    z2,
    key2,
    out,
    out2,
    power,
    c,
    B,
    F,
    T,
    R,
    w,
    FORM: tl.constexpr,
    PER_FRAME: tl.constexpr,
    APPLY: tl.constexpr,
    POWER_OF_STATE: tl.constexpr,
    DIVIDE: tl.constexpr,
    PAPER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """States, scores, noises: (B, F, T, 2); mixture: (F, T, 2); V, power: (F, T); W: (F, R); H: (R, T).

    The symbols are those of the reference. All samples of a bin in one program, which sums their power.
    """
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < F * T
    f, t = i // T, i % T
    gamma, delta = number(c[0], t, inside, PER_FRAME), number(c[1], t, inside, PER_FRAME)
    sigma, g = number(c[2], t, inside, PER_FRAME), number(c[3], t, inside, PER_FRAME)
    dt, guidance = number(c[4], t, inside, PER_FRAME), number(c[6], t, inside, PER_FRAME)
    sigma2, a2 = sigma * sigma, (sigma / delta) * (sigma / delta)
    pull = guidance * g * g * dt / delta
    x = load(mixture, i, inside)
    p = i * 0.0
    if FORM == "marginal" or FORM == "product" or FORM == "posterior":
        v = variance(V, W, H, i, f, t, T, R, inside)
    if FORM == "product":
        q, r, y = g * g * dt, delta * delta * v, delta * x
        if z2 is None and key2 is None:
            r += sigma2
        to_prior, to_mixture, spread = r / (r + q), q / (r + q), tl.sqrt(q * r / (r + q))
    if FORM == "posterior":
        q = a2 + w
        q_n = w if PAPER else q
        gain = v / (v + q_n)
        p += tl.sum(q_n * gain, 1) * B  # Sig, the same for every sample
    at = i.to(tl.int64)
    for sample in range(B):
        s, S = load(state, at, inside), load(score, at, inside)
        noise = noise_of(z, key, sample, at, f, t, inside)
        if FORM == "marginal":
            s = predicted(s, S, noise, gamma, g, dt)
            if APPLY:
                s += pull * (x - s / delta) / (a2 + v)
            if POWER_OF_STATE:
                estimate = s
            else:
                estimate = s + sigma2 * S
                if DIVIDE:
                    estimate = estimate / delta
            p += tl.sum((x - estimate) * (x - estimate), 1)
        elif FORM == "product":
            m = predicted(s, S, 0.0, gamma, g, dt)
            forward = noise_of(z2, key2, sample, at, f, t, inside)
            s = to_prior * m + to_mixture * (y + sigma * forward) + spread * noise
            estimate = s + sigma2 * S
            if DIVIDE:
                estimate = estimate / delta
            p += tl.sum((x - estimate) * (x - estimate), 1)
        elif FORM == "posterior":
            s = predicted(s, S, noise, gamma, g, dt)
            mu = gain * (x - (s + sigma2 * S) / delta)
            s += pull * (x - s / delta - mu) / q
            p += tl.sum(mu * mu, 1)
            if out2 is not None:
                store(out2, at, inside, mu)
        elif FORM == "residual":
            s = predicted(s, S, noise, gamma, g, dt)
            perturbed = s - sigma * noise_of(z2, key2, sample, at, f, t, inside)
            store(out2, at, inside, x - perturbed / delta)
        else:
            n, N = load(other_state, at, inside), load(other_score, at, inside)
            s = predicted(s, S, noise, gamma, g, dt)
            n = predicted(n, N, noise_of(z2, key2, sample, at, f, t, inside), gamma, g, dt)
            if APPLY:
                s0, n0, step = (s + sigma2 * S) / delta, (n + sigma2 * N) / delta, pull / (a2 + w)
                s, n = s + step * (x - s / delta - n0), n + step * (x - n / delta - s0)
            store(out2, at, inside, n)
        store(out, at, inside, s)
        at += F * T
    if power is not None:
        tl.store(power + i, p / B, mask=inside)


@triton.jit
def score_noise_kernel(state, score, out, c, F, T, PER_FRAME: tl.constexpr, BLOCK: tl.constexpr):
    """state, score, out: (B, F, T, 2)."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < F * T
    t = i % T
    at = tl.program_id(1).to(tl.int64) * F * T + i
    delta, g = number(c[1], t, inside, PER_FRAME), number(c[3], t, inside, PER_FRAME)
    pull = number(c[6], t, inside, PER_FRAME) * g * g * number(c[4], t, inside, PER_FRAME) / delta
    store(out, at, inside, load(state, at, inside) - pull * load(score, at, inside))


@triton.jit
def tweedie_mean(state, score, at, inside, delta, sigma):
    """s0 (N, 2) of the states and scores at (N,)."""
    return (load(state, at, inside) + sigma * sigma * load(score, at, inside)) / delta


@triton.jit
def unexplained_power_kernel(
    state,
    score,
    posterior_variance,
    mixture,
    V,
    W,
    H,
    power,
    c,
    noise_bias,
    B,
    F,
    T,
    R,
    PER_FRAME: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """state, score: (B, F, T, 2); posterior_variance: (B, F, T); mixture: (F, T, 2); V, power: (F, T)."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < F * T
    f, t = i // T, i % T
    delta, sigma = number(c[1], t, inside, PER_FRAME), number(c[2], t, inside, PER_FRAME)
    x = load(mixture, i, inside)
    v = variance(V, W, H, i, f, t, T, R, inside)
    a2 = (sigma / delta) * (sigma / delta)
    weaker = v < a2
    extra = tl.where(weaker, 1 / v - 1 / a2, 0.0)
    p = i * 0.0
    at = i.to(tl.int64)
    for _ in range(B):
        residual = x - tweedie_mean(state, score, at, inside, delta, sigma)
        C = tl.load(posterior_variance + at, mask=inside, other=0.0)[:, None]
        uncertain = C / (1 + extra * C)
        residual -= uncertain * tl.where(weaker, residual / v + delta * load(score, at, inside), 0.0)
        p += tl.sum(residual * residual, 1) + tl.sum(uncertain, 1)
        at += F * T
    tl.store(power + i, noise_bias * p / B, mask=inside)


@triton.jit
def ddrm_step_kernel(
    state,
    score,
    posterior_variance,
    mixture,
    V,
    W,
    H,
    z,
    key,
    out,
    c,
    eta,
    B,
    F,
    T,
    R,
    PER_FRAME: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """state, score, z, out: (B, F, T, 2); posterior_variance: (B, F, T); mixture: (F, T, 2); V: (F, T)."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < F * T
    f, t = i // T, i % T
    delta, sigma = number(c[1], t, inside, PER_FRAME), number(c[2], t, inside, PER_FRAME)
    x = load(mixture, i, inside)
    v = variance(V, W, H, i, f, t, T, R, inside)
    if posterior_variance is None:
        next_delta = number(c[6], t, inside, PER_FRAME)
        b = number(c[7], t, inside, PER_FRAME) / next_delta
        weaker = v <= b * b
        root = tl.sqrt(tl.where(weaker, b * b - v, v))
        share = tl.where(weaker, 1.0, tl.sqrt(1 - eta * eta) * b / tl.where(weaker, 1.0, root))
        spread = tl.where(weaker, root, eta * b)
    at = i.to(tl.int64)
    for sample in range(B):
        s0 = tweedie_mean(state, score, at, inside, delta, sigma)
        if posterior_variance is None:
            s = next_delta * (s0 + share * (x - s0) + spread * noise_of(z, key, sample, at, f, t, inside))
        else:
            C = tl.load(posterior_variance + at, mask=inside, other=1.0)[:, None]
            s = s0 + C / (C + v) * (x - s0)
        store(out, at, inside, s)
        at += F * T


def _step(
    form: str,
    state: torch.Tensor,
    score: torch.Tensor,
    mixture: torch.Tensor,
    coefficients: Coefficients,
    noise: Noise,
    out: torch.Tensor,
    *,
    noise_variance: NoiseVariance | None = None,
    guidance: float | torch.Tensor = 1.0,
    other: tuple[torch.Tensor, torch.Tensor] | None = None,
    second_noise: Noise = None,
    second_out: torch.Tensor | None = None,
    power: torch.Tensor | None = None,
    observation_variance: float = 0.0,
    **options: Any,
) -> None:
    samples, bins, frames = state.shape
    V, (W, H) = (None, noise_variance) if isinstance(noise_variance, tuple) else (noise_variance, (None, None))
    per_frame, c = numbers(coefficients, state, guidance)
    other_state, other_score = other or (None, None)
    launch(
        step_kernel,
        (triton.cdiv(bins * frames, BLOCK),),
        state,
        real(state),
        real(score),
        real(mixture),
        V,
        W,
        H,
        real(other_state),
        real(other_score),
        given(noise),
        words(noise),
        given(second_noise),
        words(second_noise),
        real(out),
        real(second_out),
        power,
        c,
        samples,
        bins,
        frames,
        0 if W is None else W.shape[1],
        observation_variance,
        FORM=form,
        PER_FRAME=per_frame,
        APPLY=options.get("apply", True),
        POWER_OF_STATE=options.get("power_of_state", False),
        DIVIDE=options.get("divide_tweedie", False),
        PAPER=options.get("paper_posterior", False),
        BLOCK=BLOCK,
    )


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
    _step(
        "marginal",
        state,
        score,
        mixture,
        coefficients,
        noise,
        out,
        noise_variance=noise_variance,
        guidance=guidance,
        power=power,
        apply=apply,
        power_of_state=power_of_state,
        divide_tweedie=divide_tweedie,
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
    power = torch.empty_like(mixture, dtype=torch.float32)
    _step(
        "product",
        state,
        score,
        mixture,
        coefficients,
        noise,
        out,
        noise_variance=noise_variance,
        second_noise=forward_noise,
        power=power,
        divide_tweedie=divide_tweedie,
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
    power = torch.empty_like(mixture, dtype=torch.float32)
    noise_mean = torch.empty_like(state) if want_noise else None
    _step(
        "posterior",
        state,
        score,
        mixture,
        coefficients,
        noise,
        out,
        noise_variance=noise_variance,
        guidance=guidance,
        second_out=noise_mean,
        power=power,
        observation_variance=observation_variance,
        paper_posterior=paper_posterior,
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
    _step(
        "residual",
        state,
        score,
        mixture,
        coefficients,
        noise,
        out,
        second_noise=residual_noise,
        second_out=residual,
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
    samples, bins, frames = state.shape
    per_frame, c = numbers(coefficients, state, guidance)
    programs = triton.cdiv(bins * frames, BLOCK), samples
    tensors = real(state), real(noise_score), real(out)
    launch(score_noise_kernel, programs, state, *tensors, c, bins, frames, PER_FRAME=per_frame, BLOCK=BLOCK)
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
    _step(
        "joint",
        speech,
        speech_score,
        mixture,
        coefficients,
        speech_draw,
        out[0],
        guidance=guidance,
        other=(noise, noise_score),
        second_noise=noise_draw,
        second_out=out[1],
        observation_variance=observation_variance,
        apply=apply,
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
    power = torch.empty_like(mixture, dtype=torch.float32)
    samples, bins, frames = state.shape
    V, (W, H) = (None, noise_variance) if isinstance(noise_variance, tuple) else (noise_variance, (None, None))
    per_frame, c = numbers(coefficients, state)
    launch(
        unexplained_power_kernel,
        (triton.cdiv(bins * frames, BLOCK),),
        state,
        real(state),
        real(score),
        posterior_variance,
        real(mixture),
        V,
        W,
        H,
        power,
        c,
        noise_bias,
        samples,
        bins,
        frames,
        0 if W is None else W.shape[1],
        PER_FRAME=per_frame,
        BLOCK=BLOCK,
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
    samples, bins, frames = state.shape
    V, (W, H) = (None, noise_variance) if isinstance(noise_variance, tuple) else (noise_variance, (None, None))
    last = following is None
    per_frame, c = numbers(coefficients, state, *(() if following is None else (following.delta, following.sigma)))
    launch(
        ddrm_step_kernel,
        (triton.cdiv(bins * frames, BLOCK),),
        state,
        real(state),
        real(score),
        posterior_variance if last else None,
        real(mixture),
        V,
        W,
        H,
        None if last else given(noise),
        None if last else words(noise),
        real(out),
        c,
        eta,
        samples,
        bins,
        frames,
        0 if W is None else W.shape[1],
        PER_FRAME=per_frame,
        BLOCK=BLOCK,
    )
    return out

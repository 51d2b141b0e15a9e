"""One reverse step of each posterior sampler: the next state and the power of the M-step.

x: mixture; s: state; S_p: score at the state before the predictor; a = sigma / delta; V: noise variance;
m, q: mean and variance of the prior transition.
"""

from __future__ import annotations

from typing import TypeAlias

import torch

from udse_fast.kernels.coefficients import Coefficients
from udse_fast.kernels.complex_normal.reference import Noise, as_tensor
from udse_fast.kernels.predictor_corrector.reference import predictor, tweedie_mean, written

NoiseVariance: TypeAlias = torch.Tensor | tuple[torch.Tensor, torch.Tensor]
"""V itself, (F, T) real, or its NMF factors W (F, R) and H (R, T)."""


def variance(noise_variance: NoiseVariance) -> torch.Tensor:
    """V (F, T), formed from its factors where these are given."""
    return noise_variance[0] @ noise_variance[1] if isinstance(noise_variance, tuple) else noise_variance


def mean_power(z: torch.Tensor) -> torch.Tensor:
    """mean over the samples of |z|^2: (B, F, T) complex -> (F, T) real."""
    return (z.real**2 + z.imag**2).mean(0)


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
    """UDiffSE and UDiffSE+: predictor, then s <- s + lambda g^2 dt (1/delta) (x - s/delta) / (a^2 + V).

    Args:
        state: s, (B, F, T) complex.
        score: S_p, (B, F, T) complex.
        mixture: x, (F, T) complex.
        noise_variance: V.
        coefficients: of the step.
        noise: z_p of the predictor.
        guidance: lambda, one number or (T,).
        apply: False leaves the guidance out (UDiffSE: round 0, odd steps).
        power_of_state: P = mean |x - s|^2 (UDiffSE), not mean |x - s0|^2.
        divide_tweedie: s0 = (s + sigma^2 S_p) / delta (the paper's), not s + sigma^2 S_p (the public code's).
        out: where the next state goes, may be `state`; None: a new tensor.

    Returns:
        the next state (B, F, T) and P (F, T).
    """
    c = coefficients
    s = predictor(state, score, c, noise)
    if apply:
        residual = mixture - s / c.delta
        total_variance = (c.sigma / c.delta) ** 2 + variance(noise_variance)
        s = s + guidance * c.g**2 * c.dt / c.delta * residual / total_variance
    if power_of_state:
        return written(s, out), mean_power(mixture - s)
    s0 = tweedie_mean(s, score, c) if divide_tweedie else s + c.sigma**2 * score
    return written(s, out), mean_power(mixture - s0)


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
    """DEPSE: a draw from the product of the prior transition and the likelihood, both Gaussian.

    m = s + gamma s dt + g^2 S_p dt, q = g^2 dt; s <- (R m + q y)/(R + q) + sqrt(q R/(R + q)) z_p.
    IL (no forward noise): y = delta x, R = delta^2 (a^2 + V). TL: y = delta x + sigma z_f, R = delta^2 V.

    Args:
        state: s, (B, F, T) complex.
        score: S_p, (B, F, T) complex.
        mixture: x, (F, T) complex.
        noise_variance: V.
        coefficients: of the step.
        noise: z_p, None on the last step.
        forward_noise: z_f of the TL form, drawn on every step; None selects the IL form.
        divide_tweedie: s0 = (s + sigma^2 S_p) / delta (TL), not s + sigma^2 S_p (IL of the published code).
        out: where the next state goes, may be `state`; None: a new tensor.

    Returns:
        the next state (B, F, T) and P = mean |x - s0|^2 (F, T).
    """
    c = coefficients
    m = predictor(state, score, c, None)
    q = c.g**2 * c.dt
    R, y = c.delta**2 * variance(noise_variance), c.delta * mixture
    if forward_noise is None:
        R = R + c.sigma**2
    else:
        y = y + c.sigma * as_tensor(forward_noise, state)
    s = (R * m + q * y) / (R + q) + (q * R / (R + q)) ** 0.5 * as_tensor(noise, state)
    s0 = tweedie_mean(s, score, c) if divide_tweedie else s + c.sigma**2 * score
    return written(s, out), mean_power(mixture - s0)


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
    """DiffUSEEN: predictor, noise posterior given the Tweedie mean s0, guidance with the noise taken off.

    q = a^2 + w; mu = V/(V + q) (x - s0), Sig = V q/(V + q);
    s <- s + lambda g^2 dt (1/delta) (x - s/delta - mu) / q.

    Args:
        state: s, (B, F, T) complex.
        score: S_p, (B, F, T) complex.
        mixture: x, (F, T) complex.
        noise_variance: V.
        coefficients: of the step.
        noise: z_p of the predictor.
        guidance: lambda, one number or (T,).
        observation_variance: w.
        paper_posterior: w in place of q in mu and Sig (paper eq. 35).
        want_noise: return mu as well.
        out: where the next state goes, may be `state`; None: a new tensor.

    Returns:
        the next state (B, F, T), P = mean |mu|^2 + Sig (F, T), and mu (B, F, T) or None.
    """
    c = coefficients
    V = variance(noise_variance)
    s = predictor(state, score, c, noise)
    s0 = tweedie_mean(s, score, c)
    q = (c.sigma / c.delta) ** 2 + observation_variance
    q_n = observation_variance if paper_posterior else q
    mu = V / (V + q_n) * (mixture - s0)
    s = s + guidance * c.g**2 * c.dt / c.delta * (mixture - s / c.delta - mu) / q
    return written(s, out), mean_power(mu) + V * q_n / (V + q_n), mu if want_noise else None


def predictor_residual(
    state: torch.Tensor,
    score: torch.Tensor,
    mixture: torch.Tensor,
    coefficients: Coefficients,
    noise: Noise,
    residual_noise: Noise = None,
    out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """ParaDiffUSE-IN, first half: predictor, and the residual x - (s - sigma z)/delta for the noise network.

    Args:
        state: s, (B, F, T) complex.
        score: S_p, (B, F, T) complex.
        mixture: x, (F, T) complex.
        coefficients: of the step.
        noise: z_p of the predictor.
        residual_noise: z of the paper's form; None is the published code's.
        out: where the next state goes, may be `state`; None: a new tensor.

    Returns:
        the state after the predictor and the residual, both (B, F, T).
    """
    s = predictor(state, score, coefficients, noise)
    perturbed = s - coefficients.sigma * as_tensor(residual_noise, state)
    return written(s, out), mixture - perturbed / coefficients.delta


def score_noise_guidance(
    state: torch.Tensor,
    noise_score: torch.Tensor,
    coefficients: Coefficients,
    guidance: float | torch.Tensor = 1.0,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """ParaDiffUSE-IN, second half: s - lambda g^2 dt (1/delta) S_noise(x - s/delta, t).

    Args:
        state: s after the predictor, (B, F, T) complex.
        noise_score: the noise network's score at the residual of `predictor_residual`, (B, F, T) complex.
        coefficients: of the step.
        guidance: lambda, one number or (T,).
        out: where the next state goes, may be `state`; None: a new tensor.

    Returns:
        the next state (B, F, T).
    """
    c = coefficients
    return written(state - guidance * c.g**2 * c.dt / c.delta * noise_score, out)


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
    """ParaDiffUSE-EN: predictors of speech and noise, then guidance of each with the other's Tweedie mean.

    s <- s + lambda g^2 dt (1/delta) (x - s/delta - n0)/(a^2 + w),
    n <- n + lambda g^2 dt (1/delta) (x - n/delta - s0)/(a^2 + w).

    Args:
        speech: s, (B, F, T) complex.
        speech_score: S_p of the speech, (B, F, T) complex.
        noise: n, (B, F, T) complex.
        noise_score: S_p of the noise, (B, F, T) complex.
        mixture: x, (F, T) complex.
        coefficients: of the step.
        speech_draw: z_p of the speech predictor.
        noise_draw: z_p of the noise predictor.
        guidance: lambda, one number or (T,).
        apply: False leaves the guidance out (the last step).
        observation_variance: w.
        out: where the next states go, may be `speech` and `noise`; None: new tensors.

    Returns:
        the next speech and noise states, both (B, F, T).
    """
    c = coefficients
    s = predictor(speech, speech_score, c, speech_draw)
    n = predictor(noise, noise_score, c, noise_draw)
    if apply:
        s0, n0 = tweedie_mean(s, speech_score, c), tweedie_mean(n, noise_score, c)
        step = guidance * c.g**2 * c.dt / c.delta / ((c.sigma / c.delta) ** 2 + observation_variance)
        s, n = s + step * (mixture - s / c.delta - n0), n + step * (mixture - n / c.delta - s0)
    s_out, n_out = out or (None, None)
    return written(s, s_out), written(n, n_out)


def unexplained_power(
    state: torch.Tensor,
    score: torch.Tensor,
    posterior_variance: torch.Tensor,
    mixture: torch.Tensor,
    noise_variance: NoiseVariance,
    coefficients: Coefficients,
    noise_bias: float = 1.0,
) -> torch.Tensor:
    """DDRM's power for the M-step: kappa E(|x - s_0|^2 | x), the expected power of the noise.

    The network knows the mixture only with its noise brought up to a = sigma/delta: u = s/delta, where the speech is
    N(s0, C), s0 = (s + sigma^2 S)/delta. Where V < a^2 the mixture itself knows more. Its likelihood N(x; s_0, V) takes
    the place of N(u; s_0, a^2), which gives N(m, 1/p) with p = 1/C + 1/V - 1/a^2 and
    m = s0 + ((x - s0)/V - (u - s0)/a^2)/p; elsewhere m = s0 and p = 1/C. For Gaussian speech and noise of the variances
    given the mean of P / kappa is V.

    Args:
        state: s, (B, F, T) complex.
        score: S(s, t), (B, F, T) complex.
        posterior_variance: C = E|s_0 - s0|^2, what is uncertain about s0, (B, F, T) real.
        mixture: x, (F, T) complex.
        noise_variance: V, of the step before.
        coefficients: of the step.
        noise_bias: kappa; above 1 errs towards more noise.

    Returns:
        P = kappa mean (|x - m|^2 + 1/p), (F, T).
    """
    V, a2 = variance(noise_variance), (coefficients.sigma / coefficients.delta) ** 2
    weaker = a2 > V
    uncertain = posterior_variance / (1 + posterior_variance * torch.where(weaker, 1 / V - 1 / a2, 0))
    residual = mixture - tweedie_mean(state, score, coefficients)
    # (u - s0)/a^2 = -delta S
    pull = torch.where(weaker, residual / V + coefficients.delta * score, 0)
    return noise_bias * (mean_power(residual - uncertain * pull) + uncertain.mean(0))


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
    """Denoising diffusion restoration (Kawar et al., NeurIPS 2022, eq. 7 and 8 with eta_b = 1), every bin on its own.

    With b = sigma'/delta' of the next step, s0 = (s + sigma^2 S)/delta and u' = s'/delta': where the noise of the
    mixture is weaker than b, u' = x + sqrt(b^2 - V) z, the mixture with its noise brought up to the level that the
    prior expects; elsewhere u' = s0 + sqrt(1 - eta^2) b (x - s0)/sqrt(V) + eta b z. After the last step the state is
    the mean of N(s0, C) N(x; s, V), s0 + C/(C + V) (x - s0).

    Args:
        state: s, (B, F, T) complex.
        score: S(s, t), (B, F, T) complex.
        posterior_variance: C = E|s_0 - s0|^2, (B, F, T) real; read on the last step only.
        mixture: x, (F, T) complex.
        noise_variance: V.
        coefficients: of the step.
        following: of the next step, None on the last.
        noise: z, None on the last step.
        eta: eta, in [0, 1].
        out: where the next state goes, may be `state`; None: a new tensor.

    Returns:
        the next state (B, F, T).
    """
    s0, V = tweedie_mean(state, score, coefficients), variance(noise_variance)
    residual = mixture - s0
    if following is None:
        return written(s0 + posterior_variance / (posterior_variance + V) * residual, out)
    z = as_tensor(noise, state)
    b = torch.as_tensor(following.sigma / following.delta, dtype=V.dtype, device=V.device)
    weaker = mixture + (b**2 - V).clamp_min(0).sqrt() * z
    stronger = s0 + (1 - eta**2) ** 0.5 * b / V.sqrt() * residual + eta * b * z
    return written(following.delta * torch.where(b**2 >= V, weaker, stronger), out)

"""One reverse step of each posterior sampler: the next state and the power of the M-step.

x: mixture; s: state; S_p: score at the state before the predictor; a = sigma / delta; V: noise variance;
m, q: mean and variance of the prior transition. Powers and variances are (F, T), states (B, F, T).
"""

from __future__ import annotations

import torch

from udse_fast.kernels.complex_normal.reference import as_tensor
from udse_fast.kernels.predictor_corrector.reference import predictor, tweedie_mean
from udse_fast.kernels.step import NoiseVariance, Step, update


def variance(noise_variance: NoiseVariance) -> torch.Tensor:
    """V (F, T), formed from its factors where these are given."""
    return noise_variance[0] @ noise_variance[1] if isinstance(noise_variance, tuple) else noise_variance


def mean_power(z: torch.Tensor) -> torch.Tensor:
    """mean over the samples of |z|^2: (B, F, T) complex -> (F, T) real."""
    return (z.real**2 + z.imag**2).mean(0)


def clean_estimate(s: torch.Tensor, step: Step, divide_tweedie: bool) -> torch.Tensor:
    """s0: the Tweedie mean (the papers'), or that times delta, s + sigma^2 S_p (the public code's)."""
    S, c = step.score, step.coefficients
    return tweedie_mean(s, S, c) if divide_tweedie else s + c.sigma**2 * S


@update(reads="noise mixture variance", gives="next power")
def marginal_guidance(
    step: Step,
    *,
    guidance: float | torch.Tensor = 1.5,
    apply: bool = True,
    power_of_state: bool = False,
    divide_tweedie: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """UDiffSE and UDiffSE+: predictor, then s <- s + lambda g^2 dt (1/delta) (x - s/delta) / (a^2 + V).

    Args:
        guidance: lambda, one number or (T,).
        apply: False leaves the guidance out (UDiffSE: round 0, odd steps).
        power_of_state: P = mean |x - s|^2 (UDiffSE), not mean |x - s0|^2.
        divide_tweedie: s0 = (s + sigma^2 S_p) / delta (the paper's), not s + sigma^2 S_p (the public code's).

    Returns:
        the next state and P.
    """
    x, c = step.mixture, step.coefficients
    s = predictor(step)
    if apply:
        total_variance = (c.sigma / c.delta) ** 2 + variance(step.variance)
        s = s + guidance * c.g**2 * c.dt / c.delta * (x - s / c.delta) / total_variance
    s0 = s if power_of_state else clean_estimate(s, step, divide_tweedie)
    return s, mean_power(x - s0)


@update(reads="noise mixture variance other_noise", gives="next power")
def product_of_gaussians(step: Step, *, divide_tweedie: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """DEPSE: a draw from the product of the prior transition and the likelihood, both Gaussian.

    m = s + gamma s dt + g^2 S_p dt, q = g^2 dt; s <- (R m + q y)/(R + q) + sqrt(q R/(R + q)) z_p.
    IL (no forward noise): y = delta x, R = delta^2 (a^2 + V). TL: y = delta x + sigma z_f, R = delta^2 V.
    z_f is `other_noise` of the step: drawn on every step in the TL form, None selects the IL form.

    Args:
        divide_tweedie: s0 = (s + sigma^2 S_p) / delta (TL), not s + sigma^2 S_p (IL of the published code).

    Returns:
        the next state and P = mean |x - s0|^2.
    """
    x, c = step.mixture, step.coefficients
    m = predictor(step._replace(noise=None))
    q = c.g**2 * c.dt
    R, y = c.delta**2 * variance(step.variance), c.delta * x
    if step.other_noise is None:
        R = R + c.sigma**2
    else:
        y = y + c.sigma * as_tensor(step.other_noise, step.state)
    s = (R * m + q * y) / (R + q) + (q * R / (R + q)) ** 0.5 * as_tensor(step.noise, step.state)
    return s, mean_power(x - clean_estimate(s, step, divide_tweedie))


@update(reads="noise mixture variance", gives="next power other_next")
def noise_posterior_guidance(
    step: Step,
    *,
    guidance: float | torch.Tensor = 1.75,
    observation_variance: float = 5e-4,
    paper_posterior: bool = False,
    want_noise: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """DiffUSEEN: predictor, noise posterior given the Tweedie mean s0, guidance with the noise taken off.

    q = a^2 + w; mu = V/(V + q) (x - s0), Sig = V q/(V + q);
    s <- s + lambda g^2 dt (1/delta) (x - s/delta - mu) / q.

    Args:
        guidance: lambda, one number or (T,).
        observation_variance: w.
        paper_posterior: w in place of q in mu and Sig (paper eq. 35).
        want_noise: return mu as well.

    Returns:
        the next state, P = mean |mu|^2 + Sig, and mu (B, F, T) or None.
    """
    x, c, V = step.mixture, step.coefficients, variance(step.variance)
    s = predictor(step)
    s0 = tweedie_mean(s, step.score, c)
    q = (c.sigma / c.delta) ** 2 + observation_variance
    q_n = observation_variance if paper_posterior else q
    mu = V / (V + q_n) * (x - s0)
    s = s + guidance * c.g**2 * c.dt / c.delta * (x - s / c.delta - mu) / q
    return s, mean_power(mu) + V * q_n / (V + q_n), mu if want_noise else None


@update(reads="noise mixture other_noise", gives="next other_next")
def predictor_residual(step: Step) -> tuple[torch.Tensor, torch.Tensor]:
    """ParaDiffUSE-IN, first half: predictor, and the residual x - (s - sigma z)/delta for the noise network.

    z is `other_noise` of the step in the paper's form; None is the published code's.

    Returns:
        the state after the predictor and the residual.
    """
    c = step.coefficients
    s = predictor(step)
    return s, step.mixture - (s - c.sigma * as_tensor(step.other_noise, step.state)) / c.delta


@update(reads="", gives="next")
def score_noise_guidance(step: Step, *, guidance: float | torch.Tensor = 1.0) -> torch.Tensor:
    """ParaDiffUSE-IN, second half: s - lambda g^2 dt (1/delta) S_noise(x - s/delta, t).

    The state is the one after the predictor, the score the noise network's at the residual of `predictor_residual`.

    Args:
        guidance: lambda, one number or (T,).

    Returns:
        the next state.
    """
    c = step.coefficients
    return step.state - guidance * c.g**2 * c.dt / c.delta * step.score


@update(reads="noise mixture other_state other_score other_noise", gives="next other_next")
def joint_guidance(
    step: Step,
    *,
    guidance: float | torch.Tensor = 1.0,
    apply: bool = True,
    observation_variance: float = 1e-3,
) -> tuple[torch.Tensor, torch.Tensor]:
    """ParaDiffUSE-EN: predictors of speech and noise, then guidance of each with the other's Tweedie mean.

    s <- s + lambda g^2 dt (1/delta) (x - s/delta - n0)/(a^2 + w),
    n <- n + lambda g^2 dt (1/delta) (x - n/delta - s0)/(a^2 + w), n being the other source of the step.

    Args:
        guidance: lambda, one number or (T,).
        apply: False leaves the guidance out (the last step).
        observation_variance: w.

    Returns:
        the next speech and noise states.
    """
    x, c = step.mixture, step.coefficients
    other = step._replace(state=step.other_state, score=step.other_score, noise=step.other_noise)
    s, n = predictor(step), predictor(other)
    if apply:
        s0, n0 = tweedie_mean(s, step.score, c), tweedie_mean(n, step.other_score, c)
        pull = guidance * c.g**2 * c.dt / c.delta / ((c.sigma / c.delta) ** 2 + observation_variance)
        s, n = s + pull * (x - s / c.delta - n0), n + pull * (x - n / c.delta - s0)
    return s, n


@update(reads="mixture variance posterior_variance", gives="power")
def unexplained_power(step: Step, *, noise_bias: float = 1.0) -> torch.Tensor:
    """DDRM's power for the M-step: kappa E(|x - s_0|^2 | x), the expected power of the noise.

    The network knows the mixture only with its noise brought up to a = sigma/delta: u = s/delta, where the speech is
    N(s0, C), s0 = (s + sigma^2 S)/delta. Where V < a^2 the mixture itself knows more. Its likelihood N(x; s_0, V) takes
    the place of N(u; s_0, a^2), which gives N(m, 1/p) with p = 1/C + 1/V - 1/a^2 and
    m = s0 + ((x - s0)/V - (u - s0)/a^2)/p; elsewhere m = s0 and p = 1/C. For Gaussian speech and noise of the variances
    given the mean of P / kappa is V.

    Args:
        noise_bias: kappa; above 1 errs towards more noise.

    Returns:
        P = kappa mean (|x - m|^2 + 1/p).
    """
    c, C, V = step.coefficients, step.posterior_variance, variance(step.variance)
    a2 = (c.sigma / c.delta) ** 2
    weaker = a2 > V
    uncertain = C / (1 + C * torch.where(weaker, 1 / V - 1 / a2, 0))
    residual = step.mixture - tweedie_mean(step.state, step.score, c)
    # (u - s0)/a^2 = -delta S
    pull = torch.where(weaker, residual / V + c.delta * step.score, 0)
    return noise_bias * (mean_power(residual - uncertain * pull) + uncertain.mean(0))


@update(reads="noise mixture variance following", gives="next")
def ddrm_step(step: Step, *, eta: float = 0.85) -> torch.Tensor:
    """Denoising diffusion restoration (Kawar et al., NeurIPS 2022, eq. 7 and 8 with eta_b = 1), every bin on its own.

    With b = sigma'/delta' of the next step, s0 = (s + sigma^2 S)/delta and u' = s'/delta': where the noise of the
    mixture is weaker than b, u' = x + sqrt(b^2 - V) z, the mixture with its noise brought up to the level that the
    prior expects; elsewhere u' = s0 + sqrt(1 - eta^2) b (x - s0)/sqrt(V) + eta b z. The last step is `posterior_mean`.

    Args:
        eta: eta, in [0, 1].

    Returns:
        the next state.
    """
    x, V, z = step.mixture, variance(step.variance), as_tensor(step.noise, step.state)
    s0 = tweedie_mean(step.state, step.score, step.coefficients)
    b = torch.as_tensor(step.following.sigma / step.following.delta, dtype=V.dtype, device=V.device)
    weaker = x + (b**2 - V).clamp_min(0).sqrt() * z
    stronger = s0 + (1 - eta**2) ** 0.5 * b / V.sqrt() * (x - s0) + eta * b * z
    return step.following.delta * torch.where(b**2 >= V, weaker, stronger)


@update(reads="mixture variance posterior_variance", gives="next")
def posterior_mean(step: Step) -> torch.Tensor:
    """DDRM's last step: the mean of N(s0, C) N(x; s, V), s0 + C/(C + V) (x - s0) with the Tweedie mean s0.

    Returns:
        the clean signal (B, F, T).
    """
    s0, C = tweedie_mean(step.state, step.score, step.coefficients), step.posterior_variance
    return s0 + C / (C + variance(step.variance)) * (step.mixture - s0)

"""The Triton form: an update in one pass, V = W H formed on the fly, noise drawn inside, complex64 on GPUs.

A complex tile is (N, 2): real and imaginary part obey the same real equations, those of reference.py. V and
coefficients are (N, 1), or a number where all frames have one time. `prepared` and `updated` are the two halves of an
update, as in posterior_step.cu.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from udse_fast.kernels.complex_normal.reference import Noise
from udse_fast.kernels.complex_normal.triton_kernel import BLOCK, drawn, launch, load, store, words
from udse_fast.kernels.step import Update, as_declared, empty_results

GAMMA, DELTA, SIGMA, G, DT = (tl.constexpr(index) for index in range(5))
CORRECTOR_SNR, GUIDANCE, NEXT_DELTA, NEXT_SIGMA = (tl.constexpr(index) for index in range(5, 9))
"""Places of the numbers of a step in the tuple `c` of the kernels."""
OBSERVATION_VARIANCE, ETA, NOISE_BIAS = (tl.constexpr(index) for index in range(3))
"""Places of the options in `o`."""


@triton.jit
def number(value, t, inside, PER_FRAME: tl.constexpr):
    """A coefficient: one for all, or (N, 1) of the frames t."""
    if PER_FRAME:
        return tl.load(value + t, mask=inside, other=1.0)[:, None]
    else:
        return value


@triton.jit
def noise_at(z, key, sample, at, f, t, inside):
    """Noise of an update: given, drawn, or zero."""
    if z is not None:
        return load(z, at, inside)
    elif key is not None:
        return drawn(key, sample, f, t)
    else:
        return 0.0


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
def predicted(s, S, z, c):
    """s + gamma s dt + g^2 S dt + g sqrt(dt) z"""
    return s + c[GAMMA] * c[DT] * s + c[G] * c[G] * c[DT] * S + c[G] * tl.sqrt(c[DT]) * z


@triton.jit
def tweedie_mean(s, S, c):
    """(s + sigma^2 S) / delta"""
    return (s + c[SIGMA] * c[SIGMA] * S) / c[DELTA]


@triton.jit
def clean_estimate(s, S, c, DIVIDE: tl.constexpr):
    """The Tweedie mean, or that times delta."""
    if DIVIDE:
        return tweedie_mean(s, S, c)
    else:
        return s + c[SIGMA] * c[SIGMA] * S


@triton.jit
def squared(z):
    """|z|^2: (N, 2) -> (N,)"""
    return tl.sum(z * z, 1)


@triton.jit
def prepared(v, c, o, FORM: tl.constexpr, APPLY: tl.constexpr, PAPER: tl.constexpr, MARGINAL: tl.constexpr):
    """What an update makes of V, for all samples of a bin: up to three weights, each (N, 1) or a number."""
    a2 = (c[SIGMA] / c[DELTA]) * (c[SIGMA] / c[DELTA])
    q = c[G] * c[G] * c[DT]
    pull = c[GUIDANCE] * q / c[DELTA]
    if FORM == "marginal_guidance":
        return pull / (a2 + v) if APPLY else 0.0, 0.0, 0.0
    elif FORM == "product_of_gaussians":
        r = c[DELTA] * c[DELTA] * v
        if MARGINAL:
            r += c[SIGMA] * c[SIGMA]
        return r / (r + q), q / (r + q), tl.sqrt(q * r / (r + q))
    elif FORM == "noise_posterior_guidance":
        q_n = o[OBSERVATION_VARIANCE] if PAPER else a2 + o[OBSERVATION_VARIANCE]
        return v / (v + q_n), pull / (a2 + o[OBSERVATION_VARIANCE]), q_n * v / (v + q_n)
    elif FORM == "joint_guidance":
        return pull / (a2 + o[OBSERVATION_VARIANCE]) if APPLY else 0.0, 0.0, 0.0
    elif FORM == "unexplained_power":
        weaker = v < a2
        return tl.where(weaker, 1 / v, 0.0), tl.where(weaker, c[DELTA], 0.0), tl.where(weaker, 1 / v - 1 / a2, 0.0)
    elif FORM == "ddrm_step":
        b = c[NEXT_SIGMA] / c[NEXT_DELTA]
        weaker = v <= b * b
        root = tl.sqrt(tl.where(weaker, b * b - v, v))
        share = tl.where(weaker, 1.0, tl.sqrt(1 - o[ETA] * o[ETA]) * b / tl.where(weaker, 1.0, root))
        return share, tl.where(weaker, root, o[ETA] * b), 0.0
    else:
        return pull, 0.0, 0.0


@triton.jit
def updated(
    s, S, z, n, N, z2, C, x, v, weights, c, o, FORM: tl.constexpr, OF_STATE: tl.constexpr, DIVIDE: tl.constexpr
):
    """The next state, the next of the other source (or what else is given there) and the power (N,) of one sample."""
    w1, w2, w3 = weights
    if FORM == "corrector":
        root = c[CORRECTOR_SNR] * c[SIGMA]
        return s + root * root * S + 1.41421356 * root * z, 0.0, 0.0
    elif FORM == "predictor":
        return predicted(s, S, z, c), 0.0, 0.0
    elif FORM == "marginal_guidance":
        m = predicted(s, S, z, c)
        m += w1 * (x - m / c[DELTA])
        return m, 0.0, squared(x - m) if OF_STATE else squared(x - clean_estimate(m, S, c, DIVIDE))
    elif FORM == "product_of_gaussians":
        y = c[DELTA] * x + c[SIGMA] * z2
        m = w1 * predicted(s, S, 0.0, c) + w2 * y + w3 * z
        return m, 0.0, squared(x - clean_estimate(m, S, c, DIVIDE))
    elif FORM == "noise_posterior_guidance":
        m = predicted(s, S, z, c)
        mu = w1 * (x - tweedie_mean(m, S, c))
        return m + w2 * (x - m / c[DELTA] - mu), mu, squared(mu) + tl.sum(w3, 1)
    elif FORM == "predictor_residual":
        m = predicted(s, S, z, c)
        return m, x - (m - c[SIGMA] * z2) / c[DELTA], 0.0
    elif FORM == "score_noise_guidance":
        return s - w1 * S, 0.0, 0.0
    elif FORM == "joint_guidance":
        m, k = predicted(s, S, z, c), predicted(n, N, z2, c)
        s0, n0 = tweedie_mean(m, S, c), tweedie_mean(k, N, c)
        return m + w1 * (x - m / c[DELTA] - n0), k + w1 * (x - k / c[DELTA] - s0), 0.0
    elif FORM == "unexplained_power":
        residual = x - tweedie_mean(s, S, c)
        uncertain = C / (1 + w3 * C)
        return (
            0.0,
            0.0,
            o[NOISE_BIAS] * (squared(residual - uncertain * (w1 * residual + w2 * S)) + tl.sum(uncertain, 1)),
        )
    elif FORM == "ddrm_step":
        s0 = tweedie_mean(s, S, c)
        return c[NEXT_DELTA] * (s0 + w1 * (x - s0) + w2 * z), 0.0, 0.0
    else:
        tl.static_assert(FORM == "posterior_mean")
        s0 = tweedie_mean(s, S, c)
        return s0 + C / (C + v) * (x - s0), 0.0, 0.0


@triton.jit
def sweep_kernel(
    state, score, mixture, V, W, H, posterior_variance, other_state, other_score, z, key, z2, key2,
    next, other_next, power, numbers, o, B, F, T, R,
    FORM: tl.constexpr, PER_FRAME: tl.constexpr, APPLY: tl.constexpr, OF_STATE: tl.constexpr, DIVIDE: tl.constexpr,
    PAPER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """States, scores, noises: (B, F, T, 2); mixture: (F, T, 2); V, power: (F, T); W: (F, R); H: (R, T).

    A program has all samples of its bins where it sums their power, else one.
    """
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < F * T
    f, t = i // T, i % T
    c = (
        number(numbers[0], t, inside, PER_FRAME), number(numbers[1], t, inside, PER_FRAME),
        number(numbers[2], t, inside, PER_FRAME), number(numbers[3], t, inside, PER_FRAME),
        number(numbers[4], t, inside, PER_FRAME), number(numbers[5], t, inside, PER_FRAME),
        number(numbers[6], t, inside, PER_FRAME), number(numbers[7], t, inside, PER_FRAME),
        number(numbers[8], t, inside, PER_FRAME),
    )  # fmt: skip
    x = load(mixture, i, inside) if mixture is not None else 0.0
    v = variance(V, W, H, i, f, t, T, R, inside) if V is not None or W is not None else 0.0
    weights = prepared(v, c, o, FORM, APPLY, PAPER, z2 is None and key2 is None)
    p = i * 0.0
    first = tl.program_id(1) if power is None else 0
    last = first + 1 if power is None else B
    for sample in range(first, last):
        at = i + tl.cast(sample, tl.int64) * F * T
        s, S = load(state, at, inside), load(score, at, inside)
        noise, noise2 = noise_at(z, key, sample, at, f, t, inside), noise_at(z2, key2, sample, at, f, t, inside)
        n = load(other_state, at, inside) if other_state is not None else 0.0
        N = load(other_score, at, inside) if other_score is not None else 0.0
        C = tl.load(posterior_variance + at, mask=inside, other=1.0)[:, None] if posterior_variance is not None else 0.0
        s, n, q = updated(s, S, noise, n, N, noise2, C, x, v, weights, c, o, FORM, OF_STATE, DIVIDE)
        if next is not None:
            store(next, at, inside, s)
        if other_next is not None:
            store(other_next, at, inside, n)
        if power is not None:
            p += q
    if power is not None:
        tl.store(power + i, p / B, mask=inside)


def real(z: torch.Tensor | None) -> torch.Tensor | None:
    """Complex (...) as real (..., 2), without copying."""
    return None if z is None else torch.view_as_real(z)


def given(noise: Noise) -> torch.Tensor | None:
    """The numbers of a noise that is not drawn inside."""
    return real(noise) if isinstance(noise, torch.Tensor) else None


def numbers(arguments: dict[str, Any]) -> tuple[bool, tuple[float, ...] | tuple[torch.Tensor, ...]]:
    """Whether they are per frame; the coefficients, guidance and the next step's as floats or rows (T,) float32."""
    state, following = arguments["state"], arguments.get("following")
    after = (1.0, 0.0) if following is None else (following.delta, following.sigma)
    values = (*arguments["coefficients"].values(), arguments.get("guidance", 1.0), *after)
    if not any(isinstance(value, torch.Tensor) and value.ndim for value in values):
        return False, tuple(float(value) for value in values)
    rows = state.new_empty((len(values), state.shape[-1]), dtype=torch.float32)
    for row, value in zip(rows, values, strict=True):
        row.copy_(value) if isinstance(value, torch.Tensor) else row.fill_(value)
    return True, rows.unbind()


def run(declared: Update, arguments: dict[str, Any]) -> Any:
    state, have = arguments["state"], arguments.get
    results = empty_results(declared, state, have("want_noise", True))
    samples, bins, frames = state.shape
    noise_variance = have("variance")
    V, (W, H) = (None, noise_variance) if isinstance(noise_variance, tuple) else (noise_variance, (None, None))
    per_frame, c = numbers(arguments)
    power = results.get("power")
    launch(
        sweep_kernel,
        (triton.cdiv(bins * frames, BLOCK), 1 if "power" in results else samples),
        state,
        *(real(have(name)) for name in ("state", "score", "mixture")),
        V,
        W,
        H,
        have("posterior_variance"),
        *(real(have(name)) for name in ("other_state", "other_score")),
        *(part(have(name)) for name in ("noise", "other_noise") for part in (given, words)),
        *(real(results.get(name)) for name in ("next", "other_next")),
        power,
        c,
        (have("observation_variance", 0.0), have("eta", 0.0), have("noise_bias", 1.0)),
        samples,
        bins,
        frames,
        0 if W is None else W.shape[1],
        FORM=declared.name,
        PER_FRAME=per_frame,
        APPLY=have("apply", True),
        OF_STATE=have("power_of_state", False),
        DIVIDE=have("divide_tweedie", False),
        PAPER=have("paper_posterior", False),
        BLOCK=BLOCK,
    )
    return as_declared(results)

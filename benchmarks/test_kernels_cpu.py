"""The updates on a CPU: the C++ core beside the plain reference and other libraries, results asserted.

    pytest benchmarks/test_kernels_cpu.py --benchmark-group-by=group --benchmark-columns=min,median,rounds

`extra_info` of the JSON has the bytes that must be moved (each input read once, each output written once) per
second of the fastest round, and as a share of a memory copy measured here. Threads follow OMP_NUM_THREADS.
`benchmarks/kernels_cpu.py` makes the table results/kernels_cpu.md of it.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from udse_fast.kernels import complex_normal, compression
from udse_fast.kernels import nmf_is as nmf
from udse_fast.kernels import posterior_step as lg
from udse_fast.kernels import predictor_corrector as pc
from udse_fast.kernels.coefficients import Coefficients
from udse_fast.kernels.step import Step

B, F, T, R = 4, 256, 256, 4
C = Coefficients(gamma=1.5, delta=0.6, sigma=0.25, g=0.5, dt=1 / 30)
KEY = complex_normal.NoiseKey(1, "predictor_speech", 3)
GENERATOR = torch.Generator().manual_seed(0)
S, SCORE, N, N_SCORE = (torch.randn(B, F, T, generator=GENERATOR, dtype=torch.complex64) for _ in range(4))
X = torch.randn(F, T, generator=GENERATOR, dtype=torch.complex64)
W = torch.rand(F, R, generator=GENERATOR) + 0.1
W /= W.sum(0)
H = torch.rand(R, T, generator=GENERATOR) + 0.1
POWER = X.abs().square() + 1e-3
Benchmark = Callable[..., Any]


@pytest.fixture(scope="session")
def copy_rate() -> float:
    """Bytes per second, read and written, of copying arrays of the size of a state."""
    a, b = torch.empty_like(S), S.clone()
    seconds = []
    for _ in range(50):
        start = time.perf_counter()
        a.copy_(b)
        seconds.append(time.perf_counter() - start)
    return 2 * S.nbytes / min(seconds)


def record(benchmark: Any, moved_bytes: int, copy_rate: float) -> None:
    if benchmark.stats is not None:
        rate = moved_bytes / benchmark.stats.stats.min
        benchmark.extra_info.update(
            bytes_per_second=round(rate),
            copy_bytes_per_second=round(copy_rate),
            share_of_copy=round(rate / copy_rate, 3),
        )


def with_torch_noise(step: Callable[..., Any]) -> Callable[[], Any]:
    """The plain torch step as one would write it: its noise from torch's generator, not from the counter."""
    return lambda: step(torch.randn(B, F, T, dtype=torch.complex64))


def step_of(noise: Any) -> Step:
    return Step(S, SCORE, C, noise, X, (W, H), other_state=N, other_score=N_SCORE)


STEP_BYTES, OBSERVED_BYTES = 3 * S.nbytes, X.nbytes + POWER.nbytes
STEPS: dict[str, tuple[Any, Callable[[Any, Any], Any], int]] = {
    "corrector": (pc, lambda m, z: m.corrector(step_of(z)), STEP_BYTES),
    "predictor": (pc, lambda m, z: m.predictor(step_of(z)), STEP_BYTES),
    "udiffse_plus": (lg, lambda m, z: m.marginal_guidance(step_of(z)), STEP_BYTES + OBSERVED_BYTES),
    "depse_il": (lg, lambda m, z: m.product_of_gaussians(step_of(z)), STEP_BYTES + OBSERVED_BYTES),
    "diffuseen": (lg, lambda m, z: m.noise_posterior_guidance(step_of(z))[:2], STEP_BYTES + OBSERVED_BYTES),
    "paradiffuse_in, predictor and residual": (
        lg,
        lambda m, z: m.predictor_residual(step_of(z)),
        STEP_BYTES + S.nbytes + X.nbytes,
    ),
    "paradiffuse_en": (
        lg,
        lambda m, z: m.joint_guidance(step_of(z), guidance=5.75 * C.sigma),
        2 * STEP_BYTES + X.nbytes,
    ),
}


@pytest.mark.parametrize("variant", ["cpp", "torch", "reference"])
@pytest.mark.parametrize("name", STEPS)
def test_step(benchmark: Any, copy_rate: float, name: str, variant: str) -> None:
    """One reverse step of 4 samples of 2 s, its noise drawn on the way."""
    benchmark.group = f"{name} step, noise drawn, B={B} F={F} T={T}"
    module, step, moved_bytes = STEPS[name]
    if variant == "torch":
        result = benchmark(with_torch_noise(lambda noise: step(module.reference, noise)))
        assert result[0].shape[-2:] == (F, T)
    else:
        result = benchmark(step, module if variant == "cpp" else module.reference, KEY)
        torch.testing.assert_close(result, step(module.reference, KEY), rtol=1e-4, atol=1e-5)
    record(benchmark, moved_bytes, copy_rate)


@pytest.mark.parametrize("variant", ["cpp", "reference"])
@pytest.mark.parametrize("name", ["predictor", "diffuseen"])
def test_step_given_noise(benchmark: Any, copy_rate: float, name: str, variant: str) -> None:
    """The arithmetic alone: noise from an array."""
    benchmark.group = f"{name} step, noise given, B={B} F={F} T={T}"
    module, step, moved_bytes = STEPS[name]
    noise = complex_normal.complex_normal(KEY, (B, F, T))
    result = benchmark(step, module if variant == "cpp" else module.reference, noise)
    torch.testing.assert_close(result, step(module.reference, noise), rtol=1e-4, atol=1e-5)
    record(benchmark, moved_bytes + S.nbytes, copy_rate)


@pytest.mark.parametrize("variant", ["cpp", "torch.randn", "reference"])
def test_noise(benchmark: Any, copy_rate: float, variant: str) -> None:
    benchmark.group = f"complex normal noise, B={B} F={F} T={T}"
    if variant == "torch.randn":
        assert benchmark(lambda: torch.randn(B, F, T, dtype=torch.complex64)).shape == (B, F, T)
    else:
        module = complex_normal if variant == "cpp" else complex_normal.reference
        result = benchmark(module.complex_normal, KEY, (B, F, T))
        expected = complex_normal.reference.complex_normal(KEY, (B, F, T))
        torch.testing.assert_close(result, expected, rtol=0, atol=2e-6)
    record(benchmark, S.nbytes, copy_rate)


def sklearn_update(frames: int, iterations: int) -> tuple[np.ndarray, np.ndarray]:
    """Multiplicative updates of scikit-learn's NMF, called as its users call it."""
    from sklearn.decomposition import NMF

    model = NMF(R, init="custom", solver="mu", beta_loss="itakura-saito", max_iter=iterations, tol=0)
    power, W0, H0 = (a.numpy().copy() for a in problem(frames))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that so few iterations do not converge
        W1 = model.fit_transform(power, W=W0, H=H0)
    return W1, model.components_


def problem(frames: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    repeats = -(-frames // T)
    return POWER.repeat(1, repeats)[:, :frames].contiguous(), W, H.repeat(1, repeats)[:, :frames].contiguous()


@pytest.mark.parametrize("variant", ["cpp", "reference", "scikit-learn"])
@pytest.mark.parametrize(("frames", "iterations"), [(T, 1), (4 * T, 1), (127, 4), (T, 4)])
def test_nmf(benchmark: Any, copy_rate: float, frames: int, iterations: int, variant: str) -> None:
    """NMF-IS updates in one call; 4 of them for 2 s (127 frames) is the M-step of the built-in settings. P is read
    twice."""
    benchmark.group = f"NMF-IS, iterations: {iterations}, F={F} T={frames} R={R}"
    arguments = problem(frames)
    if variant == "scikit-learn":
        assert np.isfinite(benchmark(sklearn_update, frames, iterations)[0]).all()
    else:
        result = benchmark((nmf if variant == "cpp" else nmf.reference).nmf_update, *arguments, iterations)
        expected = nmf.reference.nmf_update(*(a.double() for a in arguments), iterations)
        for one, other in zip(result, expected, strict=True):
            torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-8)
    record(benchmark, iterations * 2 * arguments[0].nbytes, copy_rate)


@pytest.mark.parametrize("variant", ["cpp", "reference"])
@pytest.mark.parametrize(("frames", "rank"), [(2, 4), (5, 8)])
def test_online_nmf(benchmark: Any, copy_rate: float, frames: int, rank: int, variant: str) -> None:
    """A block of a stream: one H update, then W from its statistics. P is read twice."""
    benchmark.group = f"online NMF-IS block, F={F} T={frames} R={rank}"
    factors = torch.rand(3, F, rank, generator=torch.Generator().manual_seed(1)) + 0.1
    start = torch.ones(rank, frames)
    arguments = POWER[:, :frames].contiguous(), factors[0], start, factors[1], factors[2], 0.9
    result = benchmark((nmf if variant == "cpp" else nmf.reference).online_nmf_update, *arguments)
    for one, other in zip(result, nmf.reference.online_nmf_update(*arguments), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-8)
    record(benchmark, 2 * arguments[0].nbytes + 2 * factors.nbytes + 4 * rank * frames, copy_rate)


@pytest.mark.parametrize("variant", ["cpp", "reference"])
@pytest.mark.parametrize("name", ["compress", "decompress"])
def test_compression(benchmark: Any, copy_rate: float, name: str, variant: str) -> None:
    benchmark.group = f"{name}, F={F} T={T}"
    result = benchmark(getattr(compression if variant == "cpp" else compression.reference, name), X)
    torch.testing.assert_close(result, getattr(compression.reference, name)(X), rtol=1e-5, atol=1e-6)
    record(benchmark, 2 * X.nbytes, copy_rate)

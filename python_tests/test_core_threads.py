"""Threads never change a bit: those of the core's pool, and Python threads that call the core at once."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from udse_fast.kernels import compression
from udse_fast.kernels import nmf_is as nmf
from udse_fast.kernels import posterior_step as lg
from udse_fast.kernels import predictor_corrector as pc
from udse_fast.kernels.coefficients import Coefficients
from udse_fast.kernels.complex_normal import NoiseKey, complex_normal
from udse_fast.kernels.step import Step

B, F, T, R = 2, 65, 150, 4  # large enough to be shared, no whole number of blocks
C = Coefficients(gamma=1.5, delta=0.6, sigma=0.25, g=0.5, dt=1 / 30)
KEYS = [NoiseKey(1, "predictor_speech"), NoiseKey(1, "predictor_noise")]
GENERATOR = torch.Generator().manual_seed(0)
S, SCORE, N, N_SCORE = torch.randn(4, B, F, T, generator=GENERATOR, dtype=torch.complex64)
X = torch.randn(F, T, generator=GENERATOR, dtype=torch.complex64)
W, H = torch.rand(F, R, generator=GENERATOR) + 0.1, torch.rand(R, T, generator=GENERATOR) + 0.1
POWER = X.abs().square() + 1e-3
STEP = Step(S, SCORE, C, KEYS[0], X, (W, H), None, None, N, N_SCORE, KEYS[1])
Result = torch.Tensor | tuple[torch.Tensor | None, ...]

OPERATIONS: dict[str, Callable[[], Result]] = {
    "complex_normal": lambda: complex_normal(KEYS[0], (B, F, T)),
    "corrector": lambda: pc.corrector(STEP),
    "predictor": lambda: pc.predictor(STEP),
    "marginal_guidance": lambda: lg.marginal_guidance(STEP),
    "product_of_gaussians": lambda: lg.product_of_gaussians(STEP),
    "noise_posterior_guidance": lambda: lg.noise_posterior_guidance(STEP, want_noise=True),
    "predictor_residual": lambda: lg.predictor_residual(STEP),
    "score_noise_guidance": lambda: lg.score_noise_guidance(STEP),
    "joint_guidance": lambda: lg.joint_guidance(STEP),
    "nmf_update": lambda: nmf.nmf_update(POWER, W, H, 3),
    "online_nmf_update": lambda: nmf.online_nmf_update(POWER, W, H, W, W, 0.9, 3),
    "compress": lambda: compression.compress(X),
    "decompress": lambda: compression.decompress(X),
}


def same_bits(one: Result, other: Result) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one, other)
    return all(a is not None and b is not None and torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.fixture
def serial(isa: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Result]:
    """What one thread gives. After it, every call asks for eight."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    results = {name: operation() for name, operation in OPERATIONS.items()}
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    return results


def test_eight_threads_of_the_pool_give_the_serial_results(serial: dict[str, Result]) -> None:
    for name, operation in OPERATIONS.items():
        for _ in range(3):
            assert same_bits(operation(), serial[name]), name


def test_eight_python_threads_give_the_serial_results(serial: dict[str, Result]) -> None:
    """Who gets the pool and who works alone is up to chance, call by call."""
    names = list(OPERATIONS) * 8
    with ThreadPoolExecutor(8) as callers:
        results = list(callers.map(lambda name: OPERATIONS[name](), names))
    for name, result in zip(names, results, strict=True):
        assert same_bits(result, serial[name]), name

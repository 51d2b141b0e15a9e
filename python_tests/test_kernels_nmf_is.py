"""NMF-IS: the equations written out, the divergence they minimise, the C++ core against float64."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from udse_fast.errors import UdseError
from udse_fast.kernels.nmf_is import nmf_update, online_nmf_update, reference

TOLERANCE = 2e-5  # relative: sums of up to 300 positive float32 numbers, over three iterations
SHAPES = [
    (1, 1, 1),
    (3, 65, 2),
    (7, 63, 3),
    (16, 64, 4),
    (31, 127, 5),
    (64, 33, 8),
    (5, 129, 17),
    (33, 300, 32),
    (256, 2, 4),
    (256, 5, 8),
    (30, 15, 6),
    (17, 17, 7),
]


def problem(F: int, T: int, R: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """P of a random model with exponential (speckle) noise, and a random start."""
    g = torch.Generator().manual_seed(F * T + R)
    model = torch.rand(F, R, generator=g) @ torch.rand(R, T, generator=g)
    power = model * -torch.rand(F, T, generator=g).clamp_min(1e-6).log()
    W, H = torch.rand(F, R, generator=g) + 1e-3, torch.rand(R, T, generator=g) + 1e-3
    return power.to(dtype), W.to(dtype), H.to(dtype)


def divergence(power: torch.Tensor, W: torch.Tensor, H: torch.Tensor) -> float:
    """Itakura-Saito: sum of P/V - log(P/V) - 1."""
    ratio = power / (W @ H)
    return float((ratio - ratio.log() - 1).sum())


def test_one_iteration_written_out() -> None:
    """The update of one entry at a time, with loops."""
    power, W, H = (a.numpy() for a in problem(5, 7, 2, torch.float64))
    new_w = np.empty_like(W)
    for f, k in np.ndindex(*W.shape):
        v = W[f] @ H
        new_w[f, k] = W[f, k] * sum(power[f] / v**2 * H[k]) / sum(H[k] / v)
    new_h = np.empty_like(H)
    for k, t in np.ndindex(*H.shape):
        v = new_w @ H[:, t]
        new_h[k, t] = H[k, t] * sum(new_w[:, k] * power[:, t] / v**2) / sum(new_w[:, k] / v)
    sums = new_w.sum(0)
    W1, H1 = nmf_update(*map(torch.from_numpy, (power, W, H)))
    np.testing.assert_allclose(W1, new_w / sums, rtol=1e-12)
    np.testing.assert_allclose(H1, new_h * sums[:, None], rtol=1e-12)


def test_the_divergence_falls() -> None:
    power, W, H = problem(20, 50, 4, torch.float64)
    values = [divergence(power, W, H)]
    for _ in range(30):
        W, H = nmf_update(power, W, H)
        values.append(divergence(power, W, H))
    assert all(after <= before * (1 + 1e-9) for before, after in pairwise(values))
    assert values[-1] < 0.8 * values[1]
    torch.testing.assert_close(W.sum(0), torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_core_is_the_float64_reference(isa: str, shape: tuple[int, int, int]) -> None:
    for iterations in (0, 1, 3):
        expected = reference.nmf_update(*problem(*shape, torch.float64), iterations=iterations)
        result = nmf_update(*problem(*shape, torch.float32), iterations=iterations)
        for one, other in zip(result, expected, strict=True):
            torch.testing.assert_close(one.double(), other, rtol=TOLERANCE, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_online_core_is_the_float64_reference(isa: str, shape: tuple[int, int, int]) -> None:
    F, T, R = shape
    statistics = torch.rand(2, F, R, generator=torch.Generator().manual_seed(0))
    results = []
    for dtype, update in ((torch.float64, reference.online_nmf_update), (torch.float32, online_nmf_update)):
        results.append(update(*problem(F, T, R, dtype), *statistics.to(dtype), 0.9, 2))
    for one, other in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(one.double(), other, rtol=TOLERANCE, atol=1e-9)


def test_inputs_are_left_alone(isa: str) -> None:
    arguments = problem(9, 70, 3, torch.float32)
    copies = [a.clone() for a in arguments]
    nmf_update(*arguments)
    online_nmf_update(*arguments, torch.ones(9, 3), torch.ones(9, 3), 0.5, 1)
    assert all(torch.equal(a, b) for a, b in zip(arguments, copies, strict=True))


def test_zeros_in_the_factors(isa: str) -> None:
    """Exact zeros, which the core divides by, and a whole column of them become the floor or grow as in float64."""
    for rank in (1, 4, 9):
        power, W, H = problem(16, 37, rank, torch.float64)
        W[::3, 0] = 0
        H[0, 1::4] = 0
        W[2], H[:, 5] = 0, 0
        for iterations in (1, 3):
            expected = reference.nmf_update(power, W, H, iterations)
            result = nmf_update(power.float(), W.float(), H.float(), iterations)
            for one, other in zip(result, expected, strict=True):
                torch.testing.assert_close(one.double(), other, rtol=TOLERANCE, atol=1e-9)


def test_thread_count_changes_nothing(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = problem(65, 300, 4, torch.float32)
    serial = nmf_update(*arguments, iterations=3)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert all(map(torch.equal, serial, nmf_update(*arguments, iterations=3)))


@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_silence_then_sound_stays_finite(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence drives W and H to the floor; P V^-2 of the next loud frame must not overflow float32."""
    monkeypatch.setenv("UDSE_BACKEND", backend)
    power, W, H = problem(16, 40, 4, torch.float32)
    for P in (torch.zeros_like(power), power, torch.zeros_like(power), 100 * power):
        for _ in range(3):
            W, H = nmf_update(P, W, H)
        assert W.isfinite().all()
        assert H.isfinite().all()


@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_online_on_repeated_blocks_finds_the_model(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exact model heard block by block: W comes close to the true one up to order, and V close to P."""
    monkeypatch.setenv("UDSE_BACKEND", backend)
    g = torch.Generator().manual_seed(1)
    true_w = torch.rand(24, 2, generator=g) ** 3 + 0.01
    W = torch.rand(24, 2, generator=g) + 0.1
    W = W / W.sum(0)
    A, B = torch.zeros(24, 2), torch.zeros(24, 2)
    for _ in range(200):
        power = true_w @ torch.rand(2, 12, generator=g)
        W, H, A, B = online_nmf_update(power, W, reference.even_start(power, W, 1e-10), A, B, 0.7, 20)
    ratio = power / (W @ H)
    assert float((ratio - ratio.log() - 1).mean()) < 1e-3
    torch.testing.assert_close(W.sum(0), torch.ones(2))


def test_online_from_nothing_is_the_minimum_of_its_auxiliary_function() -> None:
    """With no past, W is sqrt(A / B) of this block: W times the root of the multiplicative factor."""
    power, W, H = problem(6, 9, 2, torch.float64)
    zero = torch.zeros(6, 2, dtype=torch.float64)
    new_w, _, _, _ = online_nmf_update(power, W, H, zero, zero, 1.0, 0)
    V = W @ H
    expected = W * (((power / V**2) @ H.T) / ((1 / V) @ H.T)).sqrt()
    torch.testing.assert_close(new_w, expected / expected.sum(0))


@pytest.mark.parametrize("rank", [0, 33])
def test_rank_out_of_range(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UDSE_BACKEND", "cpp")
    with pytest.raises(UdseError, match=rf"rank must be in 1..32; got {rank}"):
        nmf_update(torch.ones(4, 5), torch.ones(4, rank), torch.ones(rank, 5))


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(UdseError, match=r"H must have shape \(2, 5\); got \(2, 6\)"):
        nmf_update(torch.ones(4, 5), torch.ones(4, 2), torch.ones(2, 6))

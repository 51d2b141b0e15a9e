"""The read-out against its equations, written out bin by bin in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from udse_fast.audio.spectral import Spectral
from udse_fast.sampling.noise_models import NMF, FixedVariance
from udse_fast.sampling.posterior import Posterior, Sources
from udse_fast.sampling.read_out import ReadOut

SPECTRAL = Spectral(n_fft=30, hop_length=10)
F, T, LEVEL = 16, 7, torch.tensor(0.3)


def draw(seed: int, frames: int = T) -> tuple[Posterior, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    speech = torch.randn(3, F, frames, dtype=torch.complex64, generator=generator)
    mixture = torch.randn(F, frames, dtype=torch.complex64, generator=generator)
    W, H = torch.rand(F, 2, generator=generator), torch.rand(2, frames, generator=generator)
    return Posterior(Sources(speech=speech), NMF(W, H), 1), mixture


def parts(posterior: Posterior, mixture: torch.Tensor, exponent: float) -> tuple[np.ndarray, ...]:
    """Filtered mixture, mean of the samples, powers of speech and noise; |z|^0.5 is undone as z |z|."""
    s, x, lv = posterior.speech.numpy().astype(complex), mixture.numpy().astype(complex), float(LEVEL)
    assert posterior.noise_model is not None
    V = posterior.noise_model.variance
    v = (V[0] @ V[1] if isinstance(V, tuple) else V).numpy().astype(float)
    undo = lambda z: (z * lv) * np.abs(z * lv) / SPECTRAL.factor**2  # noqa: E731
    power = np.abs(s) ** 2
    return (power / (power + v)).mean(0) ** exponent * undo(x), undo(s).mean(0), power.mean(0), v


def assert_close(actual: torch.Tensor, expected: np.ndarray) -> None:
    np.testing.assert_allclose(actual.numpy(), expected, rtol=0, atol=2e-6 * np.abs(expected).max())


def test_filter_and_mean() -> None:
    posterior, mixture = draw(0)
    filtered, mean, _, _ = parts(posterior, mixture, 0.7)
    assert_close(ReadOut(SPECTRAL, "wiener", 0.7)(posterior, mixture, LEVEL), filtered)
    assert_close(ReadOut(SPECTRAL, "mean")(posterior, mixture, LEVEL), mean)
    assert_close(ReadOut(SPECTRAL)(posterior, mixture, LEVEL), mean)
    known = Posterior(posterior.sources, FixedVariance(torch.full((F, T), 0.2)), 1)
    assert_close(ReadOut(SPECTRAL, "wiener")(known, mixture, LEVEL), parts(known, mixture, 1)[0])


@pytest.mark.parametrize("ratio", [0.1, 1.0, 20.0])
def test_blend_weighs_by_what_is_in_the_band(ratio: float) -> None:
    posterior, mixture = draw(1)
    filtered, mean, power, V = parts(posterior, mixture, 0.5)
    r = (power.sum(1) / V.sum(1))[:, None]
    expected = (r * filtered + ratio * mean) / (r + ratio)
    assert_close(ReadOut(SPECTRAL, "blend", 0.5, ratio)(posterior, mixture, LEVEL), expected)


def test_blend_of_a_stream_remembers_the_powers_at_the_level_of_the_input() -> None:
    keep = 0.6
    read_out = ReadOut(SPECTRAL, "blend", 1.0, 0.5, keep)
    sums = np.zeros((2, F, 1))
    for seed, level in ((2, 0.3), (3, 0.3), (4, 0.15)):
        posterior, mixture = draw(seed)
        if level != 0.3:  # the same signal, divided by another level
            scale = 0.3 / level
            assert isinstance(posterior.noise_model, NMF)
            W, H = posterior.noise_model.variance
            scaled = Posterior(Sources(speech=posterior.speech * scale), NMF(W * scale**2, H), 1)
            result = read_out(scaled, mixture * scale, torch.tensor(level))
        else:
            result = read_out(posterior, mixture, LEVEL)
        filtered, mean, power, V = parts(posterior, mixture, 1.0)
        sums = keep * sums + 0.3**2 * np.stack([power.sum(1), V.sum(1)])[..., None]
        r = sums[0] / sums[1]
        assert_close(result, (r * filtered + 0.5 * mean) / (r + 0.5))


def test_goes_on_from_its_state() -> None:
    first, again = (ReadOut(SPECTRAL, "blend", forgetting=0.9) for _ in range(2))
    first(*draw(5), LEVEL)
    again.restore(first.state())
    torch.testing.assert_close(again(*draw(6), LEVEL), first(*draw(6), LEVEL), rtol=0, atol=0)


def test_a_band_of_silence_is_silence() -> None:
    posterior, mixture = draw(7)
    posterior.speech[:, 3], mixture[3] = 0, 0
    assert isinstance(posterior.noise_model, NMF)
    posterior.noise_model.W[3] = 0
    result = ReadOut(SPECTRAL, "blend")(posterior, mixture, LEVEL)
    assert torch.isfinite(torch.view_as_real(result)).all()
    assert not result[3].any()

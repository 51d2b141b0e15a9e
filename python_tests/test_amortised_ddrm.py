"""Sampler "amortised_ddrm": EM by a posterior network, then DDRM. Checked with networks that are exact."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import udse_fast
from udse_fast.audio.spectral import Spectral
from udse_fast.checkpoints.checkpoint import complete_config, save_checkpoint
from udse_fast.commands.bench import NetworkClock
from udse_fast.errors import UdseError
from udse_fast.networks import build_network
from udse_fast.networks.estimate import Estimate
from udse_fast.sampling.likelihoods.amortised import NOISE_POWER
from udse_fast.sampling.noise_models import NMF, FixedVariance
from udse_fast.sampling.posterior import Posterior, posterior_sample
from udse_fast.sampling.read_out import ReadOut
from udse_fast.sampling.requests import Answer, Prior, Request
from udse_fast.sampling.sde import OUVE

SPEECH = 0.1
"""Variance of the speech in the domain of the mixture."""
QUICK: dict[str, Any] = {"precision": "float32", "device": "cpu"}


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))


class Exact(Prior):
    """Speech N(0, 0.1): its score, and the posterior in noise of the variance that it is told; the noise has V."""

    def __init__(self, V: Tensor, heard: Tensor | None = None) -> None:
        self.V, self.heard = V, heard
        self.told: list[Tensor] = []
        self.asked: list[str] = []

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        (request,) = requests
        if not request.wants_estimate:
            self.asked.append("prior")
            level2 = OUVE().noise_level(request.time) ** 2
            delta, sigma = OUVE().delta(request.time), OUVE().sigma(request.time)
            clean = request.state / delta * SPEECH / (SPEECH + level2)
            variance = torch.full(request.state.shape, SPEECH * level2 / (SPEECH + level2))
            return [Answer((delta * clean - request.state) / sigma**2, variance)]
        self.asked.append("posterior")
        x, noise_variance = request.conditions.noisy, request.conditions.noise_variance
        assert x is not None
        assert noise_variance is not None
        self.told.append(noise_variance[0])
        blur = (noise_variance / NOISE_POWER).sqrt()
        mean, variance = x * SPEECH / (SPEECH + blur), SPEECH * blur / (SPEECH + blur)
        heard = None if self.heard is None else self.heard[None]
        return [Answer.of(Estimate(mean, variance, self.V[None], heard), request)]


def low_rank(bins: int = 24, frames: int = 40) -> Tensor:
    """V of rank 2 in the linear domain whose square root is of rank 1: what the noise model can say."""
    W, H = numbers(bins, 1, seed=1).abs() + 0.1, numbers(1, frames, seed=2).abs() + 0.1
    return NOISE_POWER * (0.02 * W @ H) ** 2


def mixture(bins: int = 24, frames: int = 40) -> Tensor:
    x = numbers(bins, frames)
    return x / x.abs().max()


def sample(prior: Prior, x: Tensor, **options: Any) -> Posterior:
    settings: dict[str, Any] = {"steps": 3, "samples": 2, "em_rounds": 2, "rank": 2, "corrector_snr": 0.0}
    return posterior_sample(x, prior, "amortised_ddrm", **settings | options)


def test_the_posterior_network_is_asked_first_and_every_call_counts() -> None:
    prior = Exact(low_rank())
    posterior = sample(prior, mixture())
    assert prior.asked == ["posterior"] * 2 + ["prior"] * 3
    assert posterior.score_evaluations == 5


def test_the_noise_that_the_network_believes_in_is_what_it_is_told_next_and_where_ddrm_starts() -> None:
    V = low_rank()
    prior, model = Exact(V), NMF(torch.rand(24, 2) + 0.1, torch.rand(2, 40) + 0.1)
    sample(prior, mixture(), noise_model=model, em_rounds=6, steps=1, noise_bias=0.0, variance_scale=0.0)
    torch.testing.assert_close(prior.told[-1], V, rtol=0.1, atol=0)
    assert float((prior.told[0] / V).log().abs().mean()) > 0.5  # it was not there before


def test_it_starts_from_the_mixture_where_the_noise_is_weak_and_from_the_posterior_mean_where_it_is_strong() -> None:
    x, z = mixture(), numbers(2, 24, 40, seed=5)
    V = torch.full((24, 40), 1e-9)
    V[12:] = 1e5
    seen: list[Tensor] = []

    class Watched(Exact):
        def answer(self, requests: Sequence[Request]) -> list[Answer]:
            if not requests[0].wants_estimate:
                seen.append(requests[0].state)
            return super().answer(requests)

    for sampler in ("amortised_ddrm", "ddrm"):
        posterior_sample(
            x, Watched(low_rank()), sampler, steps=2, samples=2, corrector_snr=0.0, noise_model=FixedVariance(V),
            randomness=lambda name, index: z if name.startswith("init") else torch.zeros_like(z),
        )  # fmt: skip
    started, _, by_ddrm, _ = seen
    torch.testing.assert_close(started[:, :12], by_ddrm[:, :12])
    delta, level = OUVE().delta(1.0), OUVE().noise_level(1.0)
    mean = x * SPEECH / (SPEECH + V)
    torch.testing.assert_close(started[:, 12:], (delta * (mean + level * z))[:, 12:], rtol=1e-3, atol=1e-3)
    assert float((started - by_ddrm)[:, 12:].abs().min()) > 0


def test_what_it_is_told_first_is_the_noise_model() -> None:
    prior, known = Exact(low_rank()), FixedVariance(0.05 * numbers(24, 40, seed=3).abs())
    sample(prior, mixture(), noise_model=known)
    torch.testing.assert_close(prior.told[0], NOISE_POWER * known.variance**2)


@pytest.mark.parametrize("readout", ["mean", "wiener", "blend"])
def test_both_estimates_are_averaged_as_sounds_are(readout: str) -> None:
    spectral = Spectral()
    x, heard = mixture(spectral.bins, 12), 0.3 * numbers(spectral.bins, 12, seed=4)
    level = torch.tensor(1.7)
    prior = Exact(low_rank(spectral.bins, 12), heard)
    signals = {}
    for share in (0.0, 0.25, 1.0):
        posterior = sample(prior, x, listening=share)
        spectrum = ReadOut(spectral, readout)(posterior, x, level)
        signals[share] = spectral.istft(spectrum, 1408)
    to_hear = spectral.istft(spectral.decompress(heard * level), 1408)
    torch.testing.assert_close(signals[1.0], to_hear)
    torch.testing.assert_close(signals[0.25], 0.75 * signals[0.0] + 0.25 * to_hear, rtol=1e-4, atol=1e-6)
    assert float((signals[0.0] - to_hear).abs().max()) > 1e-3


def test_a_function_cannot_be_both_networks() -> None:
    with pytest.raises(UdseError, match="expected a prior that knows a posterior network too"):
        posterior_sample(mixture(), lambda s, t, source: -s, "amortised_ddrm", steps=1)


# -- with the networks that come with the package ------------------------------------------------------------------


@pytest.fixture(scope="module")
def noisy() -> np.ndarray:
    return (0.1 * numbers(24000).real).numpy()


def test_it_is_the_default_of_whole_signals_and_of_streams(noisy: np.ndarray) -> None:
    enhancer = udse_fast.Enhancer(steps=1, listening=0.2, **QUICK)
    assert enhancer.sampler == "amortised_ddrm"
    assert enhancer.enhance(noisy, 16000).shape == noisy.shape
    for asked in (enhancer, udse_fast.Enhancer(sampler="amortised_ddrm", **QUICK)):
        for causal in (True, False):
            model = asked.open_stream(causal=causal).enhancer.model
            assert model.sampler == "amortised_ddrm"
            assert model.posterior_network is not None
            assert bool(model.posterior_network.causal_block) is causal
    assert udse_fast.Enhancer(sampler="ddrm", **QUICK).open_stream().enhancer.model.sampler == "ddrm"


def test_blocks_do_not_depend_on_each_other(noisy: np.ndarray) -> None:
    settings = {"steps": 2, "block_seconds": 0.5, "overlap_seconds": 0.1, **QUICK}
    one, four = (udse_fast.Enhancer(batch_blocks=n, **settings).enhance(noisy, 16000) for n in (1, 4))
    np.testing.assert_allclose(four, one, rtol=1e-3, atol=1e-4 * float(np.abs(one).max()))


def test_checkpoints_that_do_not_fit_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UdseError, match="posterior_checkpoint: expected a posterior network"):
        udse_fast.Enhancer(posterior_checkpoint="speech", **QUICK)
    with pytest.raises(UdseError, match="posterior_checkpoint: expected none for the sampler 'ddrm'"):
        udse_fast.Enhancer(sampler="ddrm", posterior_checkpoint="posterior", **QUICK)
    small = {"channels": (8, 8), "blocks": (1, 1), "frame_channels": 16, "dilations": (1, 2), "embedding": 16}
    architecture = {"name": "compact-posterior", **small}
    config = complete_config({"architecture": architecture, "stft": {"n_fft": 510, "hop_length": 128}})
    path = tmp_path / "other.safetensors"
    save_checkpoint(path, build_network(architecture).state_dict(), config)
    with pytest.raises(UdseError, match="posterior_checkpoint: expected the stft settings"):
        udse_fast.Enhancer(posterior_checkpoint=path, **QUICK)


def test_the_clock_of_bench_sees_the_calls_of_both_networks(noisy: np.ndarray) -> None:
    enhancer = udse_fast.Enhancer(steps=3, em_rounds=2, **QUICK)
    clock = NetworkClock(enhancer)
    clock.start()
    enhancer.enhance(noisy, 16000)
    assert len(clock._seconds) == 5

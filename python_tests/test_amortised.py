"""Sampler "amortised": EM whose E-step is a function that says E[s | x, V]. Checked with one that is exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import udse_fast
from udse_fast.checkpoints.checkpoint import complete_config, load_network, save_checkpoint
from udse_fast.errors import UdseError
from udse_fast.networks import build_network
from udse_fast.networks.conditions import Conditions
from udse_fast.networks.estimate import Estimate
from udse_fast.networks.score_network import ScoreNetwork
from udse_fast.prior import NetworkPrior
from udse_fast.sampling.likelihoods.amortised import NOISE_POWER, Amortised
from udse_fast.sampling.noise_models import FixedVariance
from udse_fast.sampling.passes import gather, run
from udse_fast.sampling.posterior import SamplerSettings, posterior_pass, posterior_sample
from udse_fast.sampling.sde import OUVE, time_grid

SMALL = {"channels": (8, 8), "blocks": (1, 1), "frame_channels": 16, "dilations": (1, 2), "embedding": 16}
TRUE_V = 0.02


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))


def mixture(bins: int = 24, frames: int = 40) -> Tensor:
    x = numbers(bins, frames)
    return x / x.abs().max()


class EStep:
    """Speech is N(0, 0.1) in the domain of the mixture, where the noise has the variance sqrt(V / 1.273)."""

    def __init__(self) -> None:
        self.told: list[Tensor] = []
        self.levels: list[float] = []

    def __call__(self, x: Tensor, noise_variance: Tensor, state: Tensor | None = None, level: Any = 0.0) -> Estimate:
        self.told.append(noise_variance)
        blur = (noise_variance / NOISE_POWER).sqrt()
        precision, mean = 1 / 0.1 + 1 / blur, x / blur
        if state is not None:
            self.levels.append(float(torch.as_tensor(level).max()))
            precision, mean = precision + 1 / level**2, mean + state / level**2
        speech = mean / precision
        return Estimate(speech, (1 / precision).expand(speech.shape), torch.full(x.shape, TRUE_V))


def test_calls_are_steps_times_rounds_and_only_the_later_steps_see_a_state() -> None:
    e_step = EStep()
    posterior = posterior_sample(mixture(), e_step, sampler="amortised", steps=3, em_rounds=2, samples=2)
    assert posterior.score_evaluations == len(e_step.told) == 6
    assert len(e_step.levels) == 4
    assert max(e_step.levels) <= 1
    assert posterior.speech.shape == (2, 24, 40)


def test_the_rounds_end_at_the_variance_that_the_network_believes_in_and_its_mean() -> None:
    x, e_step = mixture(), EStep()
    posterior = posterior_sample(
        x, e_step, sampler="amortised", steps=1, em_rounds=40, samples=1, rank=3, mixture_share=0
    )
    assert float((e_step.told[-1] / TRUE_V - 1).abs().max()) < 0.1
    expected = e_step(x[None], e_step.told[-1]).speech
    torch.testing.assert_close(posterior.speech, expected, rtol=1e-4, atol=1e-5)


def test_the_bias_is_that_of_the_power_in_the_domain_of_the_mixture() -> None:
    e_step = EStep()
    posterior_sample(mixture(), e_step, sampler="amortised", steps=1, em_rounds=60, samples=1, noise_bias=1.5)
    assert float(e_step.told[-1].mean() / TRUE_V) == pytest.approx(1.5**2, rel=0.05)


def test_an_oracle_is_told_to_the_network_as_it_is() -> None:
    e_step = EStep()
    known = FixedVariance(0.3 * numbers(24, 40, seed=1).abs())
    posterior_sample(mixture(), e_step, sampler="amortised", steps=1, em_rounds=1, samples=1, noise_model=known)
    torch.testing.assert_close(e_step.told[0][0], NOISE_POWER * known.variance**2)


def test_few_steps_draw_from_the_posterior() -> None:
    """Mean and variance of the samples are those of N(0, 0.1) observed in noise of a known variance."""
    x, known = mixture(8, 8), FixedVariance(torch.full((8, 8), 0.05))
    settings = {
        "steps": 30,
        "samples": 1000,
        "em_rounds": 1,
        "mixture_share": 0,
        "noise_model": known,
        "times": time_grid(30, 1.0, 0.005),
    }
    posterior = posterior_sample(x, EStep(), sampler="amortised", **settings)  # type: ignore[arg-type]
    precision = 1 / 0.1 + 1 / 0.05
    torch.testing.assert_close(posterior.speech.mean(0), x / 0.05 / precision, rtol=0, atol=0.03)
    assert float(posterior.speech.var(0).mean()) == pytest.approx(1 / precision, rel=0.03)


def test_what_is_read_out_lies_between_the_mean_and_what_is_for_the_ear() -> None:
    def e_step(x: Tensor, noise_variance: Tensor) -> Estimate:
        return Estimate(0.5 * x, noise_variance, noise_variance, heard=x)

    x = mixture()
    for share, mixture_share, gain in ((0, 0, 0.25), (0.5, 0, 0.625), (1, 0, 1), (0, 0.5, 0.625)):  # of |s| s
        options: dict[str, Any] = {"steps": 1, "em_rounds": 1, "samples": 1, "listening": share}
        options["mixture_share"] = mixture_share
        speech = posterior_sample(x, e_step, sampler="amortised", **options).speech[0]
        torch.testing.assert_close(speech * speech.abs(), gain * x * x.abs(), rtol=1e-4, atol=1e-6)


def test_one_time_per_frame_equals_one_time() -> None:
    times, x = [1.0, 0.3, 0.03], mixture()
    runs = [
        posterior_sample(x, EStep(), sampler="amortised", samples=2, em_rounds=2, times=grid).speech  # type: ignore
        for grid in (times, [torch.full((40,), t) for t in times])
    ]
    torch.testing.assert_close(runs[0], runs[1], rtol=1e-3, atol=1e-4)


def test_digital_silence_and_silent_frames_stay_finite() -> None:
    x = mixture()
    x[:, 10:20] = 0
    for silent in (x, torch.zeros_like(x)):
        posterior = posterior_sample(silent, EStep(), sampler="amortised", steps=2, em_rounds=2, samples=1)
        assert not posterior.diverged


@pytest.mark.parametrize("given", [None, (1, 2, 3), "speech"])
def test_a_function_that_says_something_else_is_one_clear_line(given: object) -> None:
    with pytest.raises(UdseError, match="expected"):
        posterior_sample(mixture(), lambda x, v: given, sampler="amortised", steps=1)  # type: ignore[arg-type]


# -- the network ---------------------------------------------------------------------------------------------------


def network(**architecture: Any) -> ScoreNetwork:
    torch.manual_seed(0)
    config = complete_config(
        {
            "architecture": {"name": "compact-posterior", **SMALL, **architecture},
            "stft": {"n_fft": 510, "hop_length": 255, "window": "sqrt_hann"},
        }
    )
    module = build_network(config["architecture"])
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return ScoreNetwork(module.eval(), config)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A posterior network with random weights."""
    path = tmp_path_factory.mktemp("posterior") / "posterior.safetensors"
    made = network()
    save_checkpoint(path, made.module.state_dict(), made.config)
    return path


@pytest.fixture(scope="module")
def causal_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("posterior") / "causal.safetensors"
    made = network(causal_block=2)
    save_checkpoint(path, made.module.state_dict(), made.config)
    return path


def test_the_network_is_asked_as_a_function_would_be() -> None:
    score_network, x = network(), mixture(256, 20)

    def e_step(noisy: Tensor, noise_variance: Tensor, *state: Any) -> Estimate:
        u, level = state or (torch.zeros_like(noisy), torch.inf)
        return score_network.say(u, level, Conditions(noisy=noisy, noise_variance=noise_variance))

    arguments: dict[str, Any] = {"sampler": "amortised", "steps": 2, "em_rounds": 2, "samples": 1, "rank": 2}
    by_function = posterior_sample(x, e_step, **arguments)
    by_network = posterior_sample(x, NetworkPrior(score_network), **arguments)
    torch.testing.assert_close(by_network.speech, by_function.speech, rtol=1e-4, atol=1e-5)


def test_passes_share_their_calls() -> None:
    prior, settings = NetworkPrior(network()), SamplerSettings("amortised", steps=2, samples=1, em_rounds=2)
    mixtures = [mixture(256, 12), mixture(256, 12).flip(1)]
    alone = [run(posterior_pass(x, prior, settings)) for x in mixtures]
    together = run(gather([posterior_pass(x, prior, settings) for x in mixtures]))
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(other.speech, one.speech, rtol=1e-3, atol=1e-4)


def test_a_score_of_the_network_is_that_of_its_mean_and_needs_its_conditions() -> None:
    score_network, x = network(), mixture(256, 9)[None]
    V = torch.full(x.shape, 1e-3)
    score = score_network.score(x, 0.4, noisy=x, noise_variance=V)
    sde, t = OUVE(), 0.4
    delta, sigma = sde.delta(t), sde.sigma(t)
    said = score_network.say(x / delta, sde.noise_level(t), Conditions(noisy=x, noise_variance=V))
    torch.testing.assert_close(score, (delta * said.speech - x) / sigma**2, rtol=1e-4, atol=1e-4)
    with pytest.raises(UdseError, match="noisy"):
        score_network.score(x, 0.4)


def test_an_enhancer_has_the_length_of_its_input_and_nothing_for_silence(checkpoint: Path) -> None:
    enhancer = udse_fast.Enhancer(checkpoint, sampler="amortised", steps=1, em_rounds=3, precision="float32")
    signal = numbers(9000).real.numpy()
    speech = enhancer.enhance(signal, 16000)
    assert speech.shape == signal.shape
    assert float(abs(enhancer.enhance(0 * signal, 16000)).max()) == 0


def test_a_stream_does_not_depend_on_how_it_is_cut(causal_checkpoint: Path) -> None:
    enhancer = udse_fast.Enhancer(causal_checkpoint, sampler="amortised", steps=1, em_rounds=1)
    signal = (0.1 * numbers(8000).real).numpy()
    whole = enhancer.enhance(signal, 16000, causal=True)
    stream = enhancer.open_stream()
    parts = [stream.process(signal[:100]), stream.process(signal[100:5001]), stream.process(signal[5001:])]
    rest = stream.flush()
    joined = torch.cat([torch.from_numpy(part) for part in (*parts, rest)])
    torch.testing.assert_close(joined, torch.from_numpy(whole), rtol=0, atol=0)


def test_a_sampler_and_a_network_that_do_not_fit_are_one_line(checkpoint: Path) -> None:
    with pytest.raises(UdseError, match="expected a prior"):
        udse_fast.Enhancer(checkpoint, sampler="ddrm")
    with pytest.raises(UdseError, match="posterior network"):
        udse_fast.Enhancer("joint", sampler="amortised")
    with pytest.raises(UdseError, match="posterior network"):
        load_network("speech").say(mixture(256, 4)[None], 1.0, Conditions())


def test_only_samplers_of_priors_take_the_noise_of_the_block_before() -> None:
    assert not Amortised.carries_noise

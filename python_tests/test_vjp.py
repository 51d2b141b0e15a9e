"""Gradients through the score: vector-Jacobian products against closed forms, whatever mode torch is in."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from udse_fast.checkpoints.checkpoint import complete_config, load_network
from udse_fast.errors import UdseError
from udse_fast.kernels.coefficients import Coefficients
from udse_fast.networks.base import Network
from udse_fast.networks.conditions import NOTHING, Conditions
from udse_fast.networks.ncsnpp import NCSNpp
from udse_fast.networks.optimised import optimise
from udse_fast.networks.score_network import ScoreNetwork
from udse_fast.prior import NetworkPrior
from udse_fast.sampling.likelihoods.base import Likelihood, States, Transition
from udse_fast.sampling.passes import run
from udse_fast.sampling.posterior import SamplerSettings, posterior_pass, posterior_sample
from udse_fast.sampling.problem import Problem
from udse_fast.sampling.randomness import Draw
from udse_fast.sampling.requests import Answer, Pass, Prior, as_prior
from udse_fast.sampling.samplers import SAMPLERS, Sampler
from udse_fast.sampling.sde import OUVE
from udse_fast.streaming.causal_prior import CausalPrior

F, T = 4, 6
MIXING = torch.randn(F, F, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
MODES = [torch.no_grad, torch.inference_mode, torch.enable_grad]


def linear(state: Tensor, time: Any, source: str) -> Tensor:
    """S(s) = M s, whose Jacobian is M: the gradient of L goes back by its adjoint."""
    return torch.einsum("fg,bgt->bft", MIXING.to(state), state)


@dataclass
class Guided(Likelihood):
    """s <- s - g^2 dt grad_s |S(s)|^2, by the vector-Jacobian product."""

    vjps: list[Tensor] = field(default_factory=list, init=False)

    def start(self, source: str, noise: Tensor, coefficients: Coefficients) -> Tensor:
        return self.mixture + coefficients.sigma * noise

    def advance(self, transitions: Mapping[str, Transition], draw: Draw) -> Pass[States]:
        t = transitions["speech"]
        answers: list[Answer] = yield [self.problem.request(t.state, t.time, "speech", t.coefficients, vjp=True)]
        (answer,) = answers
        assert answer.vjp is not None
        assert not answer.score.requires_grad
        gradient = answer.vjp(2 * answer.score)
        return {"speech": t.state - 0.01 * gradient}


@pytest.fixture
def guided(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(SAMPLERS, "guided", Sampler(Guided, None))
    return "guided"


def mixture(frames: int = T, bins: int = F) -> Tensor:
    return torch.randn(bins, frames, dtype=torch.complex128, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("mode", MODES)
def test_a_sampler_goes_back_through_a_linear_score(guided: str, mode: type[AbstractContextManager[None]]) -> None:
    """Corrector, predictor and the call that is differentiated: three a step."""
    settings = SamplerSettings(guided, steps=5, samples=2, seed=4)
    with mode():
        posterior = run(posterior_pass(mixture(), linear, settings))
    assert posterior.score_evaluations == 15
    assert not posterior.speech.requires_grad


@pytest.mark.parametrize("mode", MODES)
def test_the_product_is_that_of_the_adjoint(mode: type[AbstractContextManager[None]]) -> None:
    problem = Problem(mixture(), as_prior(linear))
    with mode():
        state, cotangent = torch.randn(2, 2, F, T, dtype=torch.complex128)
        request = problem.request(state, 0.5, "speech", OUVE().coefficients(0.5, 0.1), vjp=True)
        (answer,) = request.prior.answer([request])
        assert answer.vjp is not None
        expected = torch.einsum("gf,bgt->bft", MIXING.conj(), cotangent)
        torch.testing.assert_close(answer.vjp(cotangent), expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(answer.vjp(2 * cotangent), 2 * expected, rtol=1e-12, atol=1e-12)  # and again
        torch.testing.assert_close(answer.score, linear(state, 0.5, "speech"))


def test_a_mean_path_with_gradients_in_closed_form(guided: str) -> None:
    """Without noise and corrector: s <- (1 - 0.02 M^H M) s, N times."""
    draws = torch.zeros(1, F, T, dtype=torch.complex128)
    posterior = posterior_sample(
        mixture(), linear, guided, steps=3, samples=1, randomness=lambda *_: draws, corrector_snr=0
    )
    step = torch.eye(F, dtype=torch.complex128) - 0.02 * MIXING.mH @ MIXING
    expected = torch.linalg.matrix_power(step, 3) @ mixture()
    torch.testing.assert_close(posterior.speech[0], expected, rtol=1e-12, atol=1e-12)


class Gaussian(Network):
    """D(u, a) = v u / (v + a^2), with v a weight."""

    predicts = "clean"

    def __init__(self) -> None:
        super().__init__()
        self.variance = nn.Parameter(torch.tensor(0.3))

    def denoise(self, noisy: Tensor, noise_level: Tensor, conditions: Conditions = NOTHING) -> Tensor:
        return noisy * self.variance / (self.variance + noise_level[:, None, None, None] ** 2)


def asked(prior: Prior, state: Tensor, time: float, variance: bool = False) -> Answer:
    c = OUVE().coefficients(time, 0.1)
    request = Problem(mixture(), prior).request(state, time, "speech", c, posterior_variance=variance, vjp=True)
    return prior.answer([request])[0]


@pytest.mark.parametrize("mode", MODES)
def test_a_network_s_product_in_closed_form(mode: type[AbstractContextManager[None]]) -> None:
    """S = -s / (delta^2 v + sigma^2): the product is that factor."""
    stft = {"n_fft": 2 * F - 1, "hop_length": 2}
    network = ScoreNetwork(Gaussian(), complete_config({"architecture": {"name": "gaussian"}, "stft": stft}))
    sde = OUVE()
    with mode():
        state, cotangent = torch.randn(2, 1, F, T, dtype=torch.complex64)
        answer = asked(NetworkPrior(network), state, 0.4)
        assert answer.vjp is not None
        factor = -1 / (sde.delta(0.4) ** 2 * 0.3 + sde.sigma(0.4) ** 2)
        torch.testing.assert_close(answer.vjp(cotangent), factor * cotangent, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(answer.score, factor * state, rtol=1e-4, atol=1e-5)
    assert network.module.variance.grad is None


def test_gradients_never_go_through_graphs_or_fused_layers() -> None:
    torch.manual_seed(0)
    module = NCSNpp(nf=8, ch_mult=(1, 1))
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    stft = {"n_fft": 63, "hop_length": 16}
    plain = ScoreNetwork(module, complete_config({"architecture": {"name": "ncsnpp"}, "stft": stft}))
    fast = optimise(plain)
    fast.graph = None  # whoever asks it fails
    state, cotangent = torch.randn(2, 1, 32, 10, dtype=torch.complex64)
    ours, expected = (asked(NetworkPrior(network), state, 0.5) for network in (fast, plain))
    assert ours.vjp is not None
    assert expected.vjp is not None
    torch.testing.assert_close(ours.score, expected.score)
    torch.testing.assert_close(ours.vjp(cotangent), expected.vjp(cotangent))
    # against a difference quotient along the gradient, where rounding to single precision matters least
    gradient, h = expected.vjp(cotangent), 1e-2
    direction = gradient / gradient.norm()
    moved = [plain.score(state + sign * h * direction, 0.5) for sign in (1, -1)]
    quotient = ((moved[0] - moved[1]) / (2 * h) * cotangent.conj()).sum().real
    torch.testing.assert_close(gradient.norm(), quotient, rtol=1e-3, atol=0)


def test_a_posterior_variance_comes_with_it(tiny_checkpoints: dict[str, Path]) -> None:
    network = load_network(tiny_checkpoints["joint"])
    state = torch.randn(1, 256, 5, dtype=torch.complex64)
    answer = asked(NetworkPrior(network), state, 0.5, variance=True)
    expected = network.evaluate(state, 0.5, posterior_variance=True)
    torch.testing.assert_close((answer.score, answer.posterior_variance), expected)


def test_what_cannot_be_differentiated_is_one_line() -> None:
    def by_numpy(state: Tensor, time: Any, source: str) -> Tensor:
        return torch.from_numpy(-state.detach().numpy())

    with pytest.raises(UdseError, match="torch can differentiate"):
        asked(as_prior(by_numpy), torch.randn(1, F, T, dtype=torch.complex64), 0.5)


def test_a_stream_s_memory_has_no_gradient(tiny_checkpoints: dict[str, Path]) -> None:
    with pytest.raises(UdseError, match="needs no gradient"):
        asked(CausalPrior(load_network(tiny_checkpoints["causal"])), torch.randn(1, 256, 3, dtype=torch.complex64), 0.5)

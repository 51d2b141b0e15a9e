"""The samplers against what is known in closed form: a Gaussian prior, a known noise variance, no network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from udse_fast.errors import UdseError
from udse_fast.kernels.coefficients import Coefficients
from udse_fast.kernels.posterior_step import unexplained_power
from udse_fast.kernels.step import Step
from udse_fast.sampling.diffusion import StepInfo
from udse_fast.sampling.likelihoods.base import Likelihood, States, Transition
from udse_fast.sampling.noise_models import NMF, FixedVariance, start_nmf
from udse_fast.sampling.posterior import Posterior, posterior_sample
from udse_fast.sampling.randomness import Draw
from udse_fast.sampling.requests import Answer, Pass, Prior, Request
from udse_fast.sampling.samplers import SAMPLERS, Sampler
from udse_fast.sampling.sde import OUVE, SDE, VE, make_sde

PROCESS = OUVE()
OF_PRIORS = [
    name
    for name, row in SAMPLERS.items()
    if row.network == "prior" and not row.likelihood.needs_posterior_network  # alone
]
SPEECH = torch.tensor([0.05, 0.3, 0.3, 0.05, 1.0], dtype=torch.float64)[:, None].expand(5, 6)
NOISE = torch.tensor([0.05, 0.1, 0.3, 0.01, 0.1], dtype=torch.float64)[:, None].expand(5, 6)
WIENER = SPEECH / (SPEECH + NOISE)
MIXTURE = torch.full((5, 6), 0.8 + 0.6j, dtype=torch.complex128)
# The published likelihoods take p(s_0) as uninformative in p(x|s_t) (Ayilo et al. 2025, eq. 21), which shifts the mean
# for any number of steps: what is left of the gain's error with these variances, without the corrector, which knows
# nothing of the mixture and pulls to the prior the more the more steps there are.
APPROXIMATION = 0.13


def gaussian_score(state: Tensor, time: float | Tensor, source: str) -> Tensor:
    variance = SPEECH if source == "speech" else NOISE
    return -state / (PROCESS.delta(time) ** 2 * variance + PROCESS.sigma(time) ** 2)


def gain(posterior_speech: Tensor) -> Tensor:
    """Of the posterior mean, per row: real part of mean(s) / x."""
    return (posterior_speech.mean((0, 2)) / MIXTURE[:, 0]).real


def zeros(name: str, index: int) -> Tensor:
    return torch.zeros(1, 5, 6, dtype=torch.complex128)


def mean_path(sampler: str, times: Sequence[float], steps: Sequence[float], sde: SDE = PROCESS) -> NDArray[np.float64]:
    """s / x (5,) with all draws 0, the variances known and without the corrector: a scalar recursion for each bin."""
    v, V = SPEECH[:, 0].numpy(), NOISE[:, 0].numpy()
    s = np.zeros(5) if sampler == "prior" else np.ones(5)
    for t, dt in zip(times, steps, strict=True):
        delta, sigma, g2 = float(sde.delta(t)), float(sde.sigma(t)), float(sde.g(t)) ** 2
        score = -s / (delta**2 * v + sigma**2)
        m = s + sde.gamma * s * dt + g2 * score * dt
        if sampler == "udiffse_plus":
            s = m + g2 * dt / delta * (1 - m / delta) / ((sigma / delta) ** 2 + V)
        elif sampler == "prior":
            s = m
        else:
            R = delta**2 * V + (sigma**2 if sampler == "depse_il" else 0)
            s = (R * m + g2 * dt * delta) / (R + g2 * dt)
    return s


RECURSIVE = {"udiffse_plus": {"guidance": 1.0}, "depse_il": {}, "depse_tl": {}}


@pytest.mark.parametrize("sampler", RECURSIVE)
@pytest.mark.parametrize("sizes", ["one", "one for each step"])
def test_the_mean_path_is_the_scalar_recursion(sampler: str, sizes: str) -> None:
    times = np.linspace(1, 0.03, 50).tolist()
    steps = [1 / 50] * 50 if sizes == "one" else (-np.diff([*times, 0.0])).tolist()
    posterior = posterior_sample(
        MIXTURE, gaussian_score, sampler, samples=1, times=times, dt=0.02 if sizes == "one" else steps,
        randomness=zeros, corrector_snr=0, noise_model=FixedVariance(NOISE), **RECURSIVE[sampler],
    )  # fmt: skip
    expected = torch.from_numpy(mean_path(sampler, times, steps))[:, None] * MIXTURE
    torch.testing.assert_close(posterior.speech[0], expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("sampler", RECURSIVE)
def test_known_variances_give_the_wiener_filter(sampler: str) -> None:
    def error(steps: int) -> float:
        path = mean_path(sampler, np.linspace(1, 0.03, steps).tolist(), [1 / steps] * steps)
        return float(np.abs(path - WIENER[:, 0].numpy()).max())

    assert error(2000) < APPROXIMATION
    assert error(5) > error(2000)


@pytest.mark.parametrize("sde", [OUVE(), OUVE(gamma=0.7, sigma_min=0.01), VE()])
def test_processes_are_siblings(sde: SDE) -> None:
    """Reverse passes of the prior under each process, from a given start, against the recursion in numpy."""
    times = np.geomspace(1, 0.02, 20).tolist()
    steps = (-np.diff([*times, 0.0])).tolist()

    def score(state: Tensor, time: float, source: str) -> Tensor:
        return -state / (sde.delta(time) ** 2 * SPEECH + sde.sigma(time) ** 2)

    def start(name: str, index: int) -> Tensor:
        return torch.full((1, 5, 6), float(name == "init_speech"), dtype=torch.complex128)

    posterior = posterior_sample(
        MIXTURE, score, "prior", samples=1, times=times, dt=steps, randomness=start, corrector_snr=0, sde=sde
    )
    s, v = np.full(5, float(sde.sigma(1.0))), SPEECH[:, 0].numpy()
    for t, dt in zip(times, steps, strict=True):
        variance = float(sde.delta(t)) ** 2 * v + float(sde.sigma(t)) ** 2
        s = s + sde.gamma * s * dt - float(sde.g(t)) ** 2 * s / variance * dt
    np.testing.assert_allclose(posterior.speech[0, :, 0].numpy(), s, rtol=1e-9)


@pytest.mark.parametrize("sde", [OUVE(), VE()])
def test_a_process_is_consistent(sde: SDE) -> None:
    """g^2 = d sigma^2 / dt + 2 gamma sigma^2: the variance of ds = -gamma s dt + g dw."""
    t, h = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64), 1e-6
    growth = (torch.as_tensor(sde.sigma(t + h)) ** 2 - torch.as_tensor(sde.sigma(t - h)) ** 2) / (2 * h)
    expected = growth + 2 * sde.gamma * torch.as_tensor(sde.sigma(t)) ** 2
    torch.testing.assert_close(torch.as_tensor(sde.g(t)) ** 2, expected, rtol=1e-7, atol=0)
    assert make_sde(sde.config) == sde
    for time in (0.3, t):
        c = sde.coefficients(time, 0.1)
        assert np.shape(c.sigma) == np.shape(c.delta) == np.shape(c.g) == np.shape(time)


class GaussianPrior(Prior):
    """`gaussian_score` with the variance that it knows its estimate to have, v a^2 / (v + a^2)."""

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        (r,) = requests
        a2 = PROCESS.noise_level(r.time) ** 2
        variance = (SPEECH * a2 / (SPEECH + a2)).expand(r.state.shape)
        return [Answer(gaussian_score(r.state, r.time, r.source), variance)]


def test_ddrm_at_the_level_of_the_noise_is_the_wiener_filter() -> None:
    """At a^2 = V the state is the mixture: s0 = x v/(v + V), C = v V/(v + V), and the last step joins x again."""
    times = [1.0, 0.7, 0.4]
    V = torch.full((5, 6), PROCESS.noise_level(times[-1]) ** 2 * (1 - 1e-12), dtype=torch.float64)
    posterior = posterior_sample(
        MIXTURE, GaussianPrior(), "ddrm", samples=3, times=times, corrector_snr=0.0, noise_model=FixedVariance(V)
    )
    s0, C = MIXTURE * SPEECH / (SPEECH + V), SPEECH * V / (SPEECH + V)
    expected = s0 + C / (C + V) * (MIXTURE - s0)
    torch.testing.assert_close(posterior.speech, expected.expand(3, 5, 6), rtol=1e-5, atol=1e-7)


def test_ddrm_stays_near_the_wiener_filter_below_it() -> None:
    posterior = posterior_sample(
        MIXTURE, GaussianPrior(), "ddrm", steps=12, samples=400, corrector_snr=0.0, noise_model=FixedVariance(NOISE)
    )
    assert float((gain(posterior.speech) - WIENER[:, 0]).abs().max()) < 0.1


@pytest.mark.parametrize(("v", "V", "a2"), [(0.4, 0.1, 0.3), (0.4, 0.1, 0.1001), (0.02, 0.1, 0.2), (2.0, 0.05, 3.0)])
def test_ddrm_power_in_closed_form(v: float, V: float, a2: float) -> None:
    """E P = V for Gaussian s, n at every level a above theirs: the truth is a fixed point of EM."""
    generator = torch.Generator().manual_seed(0)
    s, n, z = (torch.randn(1, 50, 2000, generator=generator, dtype=torch.complex128) for _ in range(3))
    x = v**0.5 * s[0] + V**0.5 * n[0]
    u = x + (a2 - V) ** 0.5 * z
    t = next(t / 1e5 for t in range(1, 100_000) if PROCESS.noise_level(t / 1e5) ** 2 > a2)
    c = PROCESS.coefficients(t, 0.1)
    state = c.delta * u
    score = -state / (c.delta**2 * v + c.sigma**2)
    posterior_variance = torch.full((1, 50, 2000), v * a2 / (v + a2), dtype=torch.float64)
    variance = torch.full((50, 2000), V, dtype=torch.float64)
    power = unexplained_power(Step(state, score, c, None, x, variance, posterior_variance))
    assert float(power.mean()) == pytest.approx(V, rel=0.02)


def test_prior_samples_have_the_prior_variance() -> None:
    """The unconditional sampler makes no approximation: it converges as the steps grow."""

    def error(steps: int) -> float:
        posterior = posterior_sample(MIXTURE, gaussian_score, "prior", steps=steps, samples=1000)
        variance = posterior.speech.abs().square().mean((0, 2))
        return float((variance / SPEECH[:, 0] - 1).abs().max())

    error_of_many = error(300)
    assert error_of_many < 0.08
    assert error_of_many < error(15)


def test_prior_ignores_the_mixture() -> None:
    one = posterior_sample(MIXTURE, gaussian_score, "prior", steps=4, samples=2, seed=3)
    two = posterior_sample(-2 * MIXTURE, gaussian_score, "prior", steps=4, samples=2, seed=3)
    assert torch.equal(one.speech, two.speech)


@pytest.mark.parametrize("sampler", OF_PRIORS)
def test_one_time_per_frame_equals_one_time(sampler: str) -> None:
    times = [1.0, 0.6, 0.3, 0.03]
    runs = [
        posterior_sample(MIXTURE, gaussian_score, sampler, samples=2, em_rounds=2, times=grid, seed=5).speech
        for grid in (times, [torch.full((6,), t, dtype=torch.float64) for t in times])
    ]
    torch.testing.assert_close(runs[0], runs[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("sampler", OF_PRIORS)
def test_the_precision_is_the_mixture_s_and_there_are_no_gradients(sampler: str) -> None:
    """With times and scores of another precision, from an ordinary module."""
    mixture = MIXTURE.to(torch.complex64)
    network = torch.nn.Linear(1, 1, dtype=torch.complex128)

    def score(state: Tensor, time: float | Tensor, source: str) -> Tensor:
        return 0.1 * network(state[..., None].to(torch.complex128))[..., 0] - state

    times = [torch.full((6,), t, dtype=torch.float64) for t in (1.0, 0.5, 0.03)]
    posterior = posterior_sample(mixture, score, sampler, samples=2, em_rounds=2, times=times)
    for result in (posterior.speech, posterior.noise, posterior.W, posterior.H):
        if result is not None:
            assert result.dtype in (torch.complex64, torch.float32)
            assert not result.requires_grad


def test_a_conjugated_view_is_a_mixture() -> None:
    runs = [
        posterior_sample(mixture, gaussian_score, steps=2, samples=1).speech
        for mixture in (MIXTURE.conj(), MIXTURE.conj().resolve_conj())
    ]
    assert torch.equal(*runs)


def test_frames_with_times_of_their_own_do_not_mix() -> None:
    """With a prior that is element-wise in time, a frame's result depends on its own time only."""
    early, late = torch.linspace(1, 0.03, 5).tolist(), torch.linspace(0.5, 0.03, 5).tolist()
    mixed = [torch.tensor([a, a, a, b, b, b], dtype=torch.float64) for a, b in zip(early, late, strict=True)]
    model = FixedVariance(NOISE)
    runs = {
        name: posterior_sample(
            MIXTURE, gaussian_score, "diffuseen", samples=1, times=grid, dt=0.2, noise_model=model, seed=1
        ).speech
        for name, grid in (("early", early), ("late", late), ("mixed", mixed))
    }
    torch.testing.assert_close(runs["mixed"][..., :3], runs["early"][..., :3])
    torch.testing.assert_close(runs["mixed"][..., 3:], runs["late"][..., 3:])


@pytest.mark.parametrize(
    ("sampler", "snr", "calls"),
    [
        ("udiffse", 0.5, 3 * 16),
        ("diffuseen", 0.5, 16),
        ("ddrm", 0.5, 16),
        ("paradiffuse_in", 0.5, 24),
        ("paradiffuse_in", 0.0, 16),
        ("paradiffuse_en", 0.5, 32),
        ("prior", 0.0, 8),
    ],
)
def test_score_evaluations_are_counted(sampler: str, snr: float, calls: int) -> None:
    asked = list[str]()

    def counted(state: Tensor, time: float | Tensor, source: str) -> Tensor:
        asked.append(source)
        return gaussian_score(state, time, source)

    posterior = posterior_sample(MIXTURE, counted, sampler, steps=8, samples=1, em_rounds=3, corrector_snr=snr)
    assert posterior.score_evaluations == len(asked) == calls


@pytest.mark.parametrize(
    ("sampler", "snr", "calls"),
    [
        ("udiffse", 0.5, 3 * 8),
        ("udiffse_plus", 0.5, 8),
        ("depse_il", 0.5, 8),
        ("depse_tl", 0.5, 8),
        ("diffuseen", 0.5, 8),
        ("ddrm", 0.5, 8),
        ("paradiffuse_in", 0.5, 16),
        ("paradiffuse_en", 0.5, 16),
        ("prior", 0.0, 8),
    ],
)
def test_a_reused_estimate_saves_the_predictor_s_calls(sampler: str, snr: float, calls: int) -> None:
    asked = list[str]()

    def counted(state: Tensor, time: float | Tensor, source: str) -> Tensor:
        asked.append(source)
        return gaussian_score(state, time, source)

    posterior = posterior_sample(
        MIXTURE, counted, sampler, steps=8, samples=1, em_rounds=3, corrector_snr=snr, reuse_estimate=True
    )
    assert posterior.score_evaluations == len(asked) == calls


@pytest.mark.parametrize("sde", [OUVE(), VE()], ids=["ouve", "ve"])
def test_a_reused_estimate_gives_the_path_that_is_known(sde: SDE) -> None:
    """All draws 1, a Gaussian prior: the denoised signal is that of the state before the corrector moved it."""
    times, dt, r, v = [0.9, 0.6, 0.3], 0.3, 0.4, SPEECH.numpy()

    def score(state: Tensor, time: float | Tensor, source: str) -> Tensor:
        return -state / (sde.delta(time) ** 2 * SPEECH + sde.sigma(time) ** 2)

    drawn = posterior_sample(
        MIXTURE, score, "prior", samples=1, times=times, dt=dt, corrector_snr=r, sde=sde, reuse_estimate=True,
        randomness=lambda name, index: torch.ones(1, 5, 6, dtype=torch.complex128),
    ).speech[0].numpy()  # fmt: skip

    s = np.ones_like(v) * float(sde.sigma(times[0]))
    for i, t in enumerate(times):
        delta, variance, g2 = float(sde.delta(t)), float(sde.sigma(t)) ** 2, float(sde.g(t)) ** 2
        clean = delta * v / (delta**2 * v + variance) * s  # Wiener
        eps = r**2 * variance
        s = s + eps * (delta * clean - s) / variance + math.sqrt(2 * eps)
        s = s + sde.gamma * s * dt + g2 * dt * (delta * clean - s) / variance
        s = s + (math.sqrt(g2 * dt) if i < 2 else 0)
    np.testing.assert_allclose(drawn, s, rtol=1e-9)


def test_a_reused_estimate_comes_with_its_variance() -> None:
    """DDRM takes E|s_0 - s0_hat|^2 from the corrector's call, and the estimate that belongs to it."""
    seen, asked = list[StepInfo](), list[Tensor]()

    class Watched(GaussianPrior):
        def answer(self, requests: Sequence[Request]) -> list[Answer]:
            asked.extend(request.state for request in requests)
            return super().answer(requests)

    posterior_sample(
        MIXTURE, Watched(), "ddrm", steps=3, samples=2, callback=seen.append, reuse_estimate=True,
        noise_model=FixedVariance(NOISE),
    )  # fmt: skip
    assert len(asked) == len(seen) == 3
    for state, info in zip(asked, seen, strict=True):
        t = info.transitions["speech"]
        assert not torch.allclose(t.state, state)
        level = float(t.coefficients.sigma / t.coefficients.delta) ** 2
        assert t.posterior_variance is not None
        torch.testing.assert_close(t.posterior_variance, (SPEECH * level / (SPEECH + level)).expand(2, 5, 6))
        torch.testing.assert_close(info.denoised["speech"], SPEECH / (SPEECH + level) * state / t.coefficients.delta)


def test_a_callback_sees_every_step() -> None:
    seen = list[StepInfo]()
    posterior = posterior_sample(
        MIXTURE, gaussian_score, "paradiffuse_en", steps=3, samples=2, callback=seen.append, corrector_snr=0
    )
    assert [(info.step, info.steps, info.round_) for info in seen] == [(0, 3, 0), (1, 3, 0), (2, 3, 0)]
    assert list(seen[0].transitions) == list(posterior.sources) == ["speech", "noise"]
    for info in seen:
        for source, variance in (("speech", SPEECH), ("noise", NOISE)):
            t = info.transitions[source]
            level = torch.as_tensor(t.coefficients.sigma / t.coefficients.delta) ** 2
            wiener = variance / (variance + level) * t.state / t.coefficients.delta
            torch.testing.assert_close(info.denoised[source], wiener)


@dataclass
class ThreeSources(Likelihood):
    """Three sources side by side, each drawn from its prior."""

    sources: ClassVar[Sequence[str]] = ("speaker_1", "speaker_2", "noise")

    def start(self, source: str, noise: Tensor, coefficients: Coefficients) -> Tensor:
        return coefficients.sigma * noise

    def advance(self, transitions: Mapping[str, Transition], draw: Draw) -> Pass[States]:
        return {source: t.state + t.coefficients.g**2 * t.score for source, t in transitions.items()}
        yield


def test_any_number_of_sources_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SAMPLERS, "three", Sampler(ThreeSources, "score"))
    asked = list[str]()

    def score(state: Tensor, time: float | Tensor, source: str) -> Tensor:
        asked.append(source)
        return -state

    posterior = posterior_sample(MIXTURE, score, "three", steps=2, samples=1, randomness=zeros, corrector_snr=0)
    assert asked == ["speaker_1", "speaker_2", "noise"] * 2
    assert list(posterior.sources) == ["speaker_1", "speaker_2", "noise"]
    assert posterior.noise is posterior.sources["noise"]


def test_samples_do_not_depend_on_how_they_are_split() -> None:
    """Sample 2 of four is sample 0 of a run that starts at sample 2 (known noise: nothing is shared)."""
    from udse_fast.sampling.randomness import counter_based

    def run(samples: int, first: int) -> Tensor:
        return posterior_sample(
            MIXTURE, gaussian_score, "diffuseen", steps=5, samples=samples, noise_model=FixedVariance(NOISE),
            randomness=counter_based(7, first_sample=first),
        ).speech  # fmt: skip

    assert torch.equal(run(4, 0)[2:], run(2, 2))


def shared(sampler: str, samples: int, shared_steps: int, **more: Any) -> tuple[Tensor, list[int]]:
    """The speech, and how many samples each call of the network was asked about."""
    asked = list[int]()

    def score(state: Tensor, time: float | Tensor, source: str) -> Tensor:
        if source == "speech":
            asked.append(len(state))
        return gaussian_score(state, time, source)

    settings: dict[str, Any] = {"steps": 5, "seed": 3, "corrector_snr": 0, "noise_model": FixedVariance(NOISE), **more}
    speech = posterior_sample(
        MIXTURE, score, sampler, samples=samples, shared_steps=shared_steps, **settings
    ).speech  # fmt: skip
    return speech, asked


@pytest.mark.parametrize("sampler", ["ddrm", "diffuseen", "depse_il"])
def test_shared_steps_are_those_of_one_sample(sampler: str) -> None:
    """Known noise: the first sample is what it would be alone, and the others go apart where it is said."""
    alone, _ = shared(sampler, 1, 0)
    apart, asked = shared(sampler, 3, 0)
    assert asked == [3, 3, 3, 3, 3]
    spread = []
    for shared_steps in (1, 2, 3, 4):
        speech, asked = shared(sampler, 3, shared_steps)
        assert asked == [1] * shared_steps + [3] * (5 - shared_steps)
        torch.testing.assert_close(speech[:1], alone, rtol=0, atol=0)
        spread.append(float(speech.std(0).mean()))
    assert 0 < spread[3] < spread[0] < 1.2 * float(apart.std(0).mean())  # the later they part, the less they differ
    torch.testing.assert_close(shared(sampler, 3, 40)[0], shared(sampler, 3, 4)[0], rtol=0, atol=0)
    torch.testing.assert_close(shared(sampler, 1, 3)[0], alone, rtol=0, atol=0)


def test_shared_steps_of_a_linear_prior_keep_the_mean() -> None:
    """The mean over many samples that share all but their last noise is that of their one path, by linearity."""

    def no_noise_until_the_end(name: str, index: int) -> Tensor:
        z = torch.zeros(400, 5, 6, dtype=torch.complex128)
        if name == "predictor_speech" and index == 2:
            z = torch.randn(400, 5, 6, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
        return z

    speech, _ = shared("depse_tl", 400, 3, randomness=no_noise_until_the_end)
    path, _ = shared("depse_tl", 1, 0, randomness=zeros)
    spread = speech.std(0)
    assert float(spread.min()) > 1e-3
    assert float(((speech.mean(0) - path[0]).abs() / spread).max()) < 5 / math.sqrt(400)


@pytest.mark.parametrize("sampler", OF_PRIORS)
@pytest.mark.parametrize("reuse", [False, True])
def test_every_sampler_can_share_steps(sampler: str, reuse: bool) -> None:
    speech, asked = shared(
        sampler, 2, 2, noise_model=None, em_rounds=2, corrector_snr=0.3, reuse_estimate=reuse, rank=2
    )  # fmt: skip
    assert speech.shape == (2, 5, 6)
    assert bool(torch.isfinite(torch.view_as_real(speech)).all())
    assert not torch.equal(speech[0], speech[1])
    assert set(asked) == {1, 2}


class Noted(FixedVariance):
    """A known variance that notes what it would be fitted to."""

    def __init__(self) -> None:
        super().__init__(NOISE)
        self.powers: list[Tensor] = []

    def fit(self, power: Tensor) -> None:
        self.powers.append(power)


def one_step(sampler: str, noise_model: Noted | None, **options: Any) -> tuple[Posterior, dict[str, Any]]:
    """One step at t = 0.6 of size 0.1 with given draws, and its numbers: c, s after the predictor, s0 by Tweedie."""
    draws = {name: torch.randn(1, 5, 6, dtype=torch.complex128) for name in ("init_speech", "forward_mixture")}
    posterior = posterior_sample(
        MIXTURE, gaussian_score, sampler, samples=1, times=[0.6], dt=0.1, corrector_snr=0, noise_model=noise_model,
        randomness=lambda name, _: draws[name], **options,
    )  # fmt: skip
    c = PROCESS.coefficients(0.6, 0.1)
    start = (c.delta if noise_model is None else 1) * MIXTURE + c.sigma * draws["init_speech"]
    score = gaussian_score(start, 0.6, "speech")
    s = start + (c.gamma * start + c.g**2 * score) * c.dt
    return posterior, {"c": c, "s": s, "s0": (s + c.sigma**2 * score) / c.delta, "z": draws["forward_mixture"]}


@pytest.mark.parametrize("paper", [False, True])
def test_diffuseen_takes_its_noise_posterior_with_w_in_the_paper_s_form(paper: bool) -> None:
    model, w = Noted(), 0.2
    posterior, n = one_step("diffuseen", model, observation_variance=w, guidance=0.7, paper_posterior=paper)
    c, s, V = n["c"], n["s"], NOISE
    q = (c.sigma / c.delta) ** 2 + w
    q_n = w if paper else q
    mu = V / (V + q_n) * (MIXTURE - n["s0"])
    expected = s + 0.7 * c.g**2 * c.dt / c.delta * (MIXTURE - s / c.delta - mu) / q
    torch.testing.assert_close(posterior.speech, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(posterior.noise, mu, rtol=1e-12, atol=0)
    power = mu[0].abs() ** 2 + V * q_n / (V + q_n)
    torch.testing.assert_close(model.powers, [power], rtol=1e-12, atol=0)


@pytest.mark.parametrize("paper", [False, True])
def test_paradiffuse_in_asks_the_noise_prior_about_the_perturbed_residual_in_the_paper_s_form(paper: bool) -> None:
    posterior, n = one_step("paradiffuse_in", None, guidance=0.7, perturb_residual=paper)
    c, s = n["c"], n["s"]
    residual = MIXTURE - (s - (c.sigma * n["z"] if paper else 0)) / c.delta
    expected = s - 0.7 * c.g**2 * c.dt / c.delta * gaussian_score(residual, 0.6, "noise")
    torch.testing.assert_close(posterior.speech, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("paper", [False, True])
@pytest.mark.parametrize("sampler", ["udiffse_plus", "depse_il", "depse_tl"])
def test_the_power_of_the_m_step_is_of_the_tweedie_mean_in_the_paper_s_form(sampler: str, paper: bool) -> None:
    """After one step; where the update stands at the top of a step, that of the second one."""
    model, times = Noted(), [0.6] if sampler == "depse_il" else [0.6, 0.5]
    posterior_sample(
        MIXTURE, gaussian_score, sampler, samples=1, times=times, dt=0.1, corrector_snr=0, noise_model=model,
        randomness=zeros, divide_tweedie=paper,
    )  # fmt: skip
    c = PROCESS.coefficients(0.6, 0.1)
    score = gaussian_score(MIXTURE[None], 0.6, "speech")
    s = torch.from_numpy(mean_path(sampler, [0.6], [0.1]))[:, None] * MIXTURE
    if sampler == "udiffse_plus":  # with the published guidance
        m = MIXTURE + (c.gamma * MIXTURE + c.g**2 * score[0]) * c.dt
        s = m + 1.5 * c.g**2 * c.dt / c.delta * (MIXTURE - m / c.delta) / ((c.sigma / c.delta) ** 2 + NOISE)
    s0 = (s + c.sigma**2 * score[0]) / (c.delta if paper else 1)
    torch.testing.assert_close(model.powers[-1], (MIXTURE - s0).abs() ** 2, rtol=1e-12, atol=0)


def test_noise_start_has_the_power_of_the_mixture() -> None:
    mixture = torch.randn(33, 20, dtype=torch.complex64)
    W, H = start_nmf(mixture, 5, seed=2, share=0.3)
    assert W.shape == (33, 5)
    assert H.shape == (5, 20)
    torch.testing.assert_close((W @ H).mean(), 0.3 * mixture.abs().square().mean())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sampler": "ddim"}, "expected one of udiffse"),
        ({"steps": 0}, "steps"),
        ({"samples": 1.5}, "samples"),
        ({"shared_steps": -1}, "shared_steps"),
        ({"sampler": "sgmse", "mixture": MIXTURE.repeat(2, 1, 1), "shared_steps": 1}, "0 for a batch of recordings"),
        ({"lambda_": 2}, "unknown option lambda_"),
        ({"mixture": torch.zeros(3, 4)}, "complex tensor"),
        ({"mixture": torch.full((3, 4), complex("nan"))}, "finite"),
        ({"initial_nmf": (torch.ones(5, 2), torch.ones(3, 6))}, "initial_nmf"),
        ({"times": []}, "times: expected a list"),
        ({"times": "abc"}, "times: expected a list"),
        ({"times": [1.0, -0.5]}, r"times\[1\]: expected a number above 0 and up to 1, got -0.5"),
        ({"times": [torch.ones(5)]}, r"times\[0\]: expected a number or \(6,\) numbers"),
        ({"randomness": "x"}, "randomness: expected a function"),
        ({"sde": 3}, "sde: expected an OUVE"),
        ({"noise_model": 3}, "noise_model: expected one with"),
    ],
)
def test_bad_input_is_one_line(change: dict[str, object], said: str) -> None:
    arguments = {"mixture": MIXTURE, "score": gaussian_score, "sampler": "diffuseen", **change}
    with pytest.raises(UdseError, match=said) as error:
        posterior_sample(**arguments)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_fitted_noise_model_is_returned() -> None:
    posterior = posterior_sample(MIXTURE.to(torch.complex64), lambda s, t, _: -s, steps=3, samples=1, rank=2)
    assert isinstance(posterior.noise_model, NMF)
    assert posterior.W is not None
    assert posterior.W.shape == (5, 2)
    assert posterior.H is not None
    assert posterior.H.shape == (2, 6)


@pytest.mark.parametrize(
    "option", [{"eta": 1.5}, {"noise_bias": -1.0}, {"variance_scale": math.nan}, {"variance_scale": "much"}]
)
def test_ddrm_options_that_cannot_be(option: dict[str, Any]) -> None:
    mixture = torch.ones(4, 3, dtype=torch.complex64)
    with pytest.raises(UdseError, match=f"{next(iter(option))}: expected a number from 0 to"):
        posterior_sample(mixture, lambda s, t, source: -s, "ddrm", steps=2, samples=1, **option)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_pass_that_diverges_is_an_error(value: float) -> None:
    mixture = torch.ones(4, 5, dtype=torch.complex64)
    with pytest.raises(UdseError, match="'udiffse_plus': the reverse pass diverged with 3 steps; give more steps"):
        posterior_sample(mixture, lambda state, time, source: state * value, "udiffse_plus", steps=3, samples=1)

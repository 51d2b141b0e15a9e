"""The samplers against what is known in closed form: a Gaussian prior, a known noise variance, no network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from udse_fast.errors import UdseError
from udse_fast.kernels.posterior_step import unexplained_power
from udse_fast.kernels.step import Step
from udse_fast.sampling.noise_models import NMF, FixedVariance, start_nmf
from udse_fast.sampling.posterior import posterior_sample
from udse_fast.sampling.requests import Answer, Prior, Request
from udse_fast.sampling.samplers import SAMPLERS, sampler_names
from udse_fast.sampling.sde import OUVE

SDE = OUVE()
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
    return -state / (SDE.delta(time) ** 2 * variance + SDE.sigma(time) ** 2)


def gain(posterior_speech: Tensor) -> Tensor:
    """Of the posterior mean, per row: real part of mean(s) / x."""
    return (posterior_speech.mean((0, 2)) / MIXTURE[:, 0]).real


@pytest.mark.parametrize("sampler", ["udiffse_plus", "depse_il", "depse_tl"])
def test_known_variances_give_the_wiener_filter(sampler: str) -> None:
    options = {"guidance": 1.0} if sampler == "udiffse_plus" else {}

    def error(steps: int, samples: int) -> float:
        posterior = posterior_sample(
            MIXTURE, gaussian_score, sampler, steps=steps, samples=samples, corrector_snr=0.0,
            noise_model=FixedVariance(NOISE), **options,
        )  # fmt: skip
        return float((gain(posterior.speech) - WIENER[:, 0]).abs().max())

    assert error(200, 400) < APPROXIMATION
    assert error(5, 4) > error(200, 400)


class GaussianPrior(Prior):
    """`gaussian_score` with the variance that it knows its estimate to have, v a^2 / (v + a^2)."""

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        (r,) = requests
        a2 = SDE.noise_level(r.time) ** 2
        variance = (SPEECH * a2 / (SPEECH + a2)).expand(r.state.shape)
        return [Answer(gaussian_score(r.state, r.time, r.source), variance)]


def test_ddrm_at_the_level_of_the_noise_is_the_wiener_filter() -> None:
    """At a^2 = V the state is the mixture: s0 = x v/(v + V), C = v V/(v + V), and the last step joins x again."""
    times = [1.0, 0.7, 0.4]
    V = torch.full((5, 6), SDE.noise_level(times[-1]) ** 2 * (1 - 1e-12), dtype=torch.float64)
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
    t = next(t / 1e5 for t in range(1, 100_000) if SDE.noise_level(t / 1e5) ** 2 > a2)
    c = SDE.coefficients(t, 0.1)
    state = c.delta * u
    score = -state / (c.delta**2 * v + c.sigma**2)
    posterior_variance = torch.full((1, 50, 2000), v * a2 / (v + a2), dtype=torch.float64)
    variance = torch.full((50, 2000), V, dtype=torch.float64)
    power = unexplained_power(Step(state, score, c, None, x, variance, posterior_variance))
    assert float(power.mean()) == pytest.approx(V, rel=0.02)


def test_prior_samples_have_the_prior_variance() -> None:
    """The unconditional sampler makes no approximation: it converges as the steps grow."""

    def error(steps: int) -> float:
        posterior = posterior_sample(MIXTURE, gaussian_score, "prior", steps=steps, samples=2000)
        variance = posterior.speech.abs().square().mean((0, 2))
        return float((variance / SPEECH[:, 0] - 1).abs().max())

    assert error(300) < 0.08
    assert error(300) < error(15)


def test_prior_ignores_the_mixture() -> None:
    one = posterior_sample(MIXTURE, gaussian_score, "prior", steps=4, samples=2, seed=3)
    two = posterior_sample(-2 * MIXTURE, gaussian_score, "prior", steps=4, samples=2, seed=3)
    assert torch.equal(one.speech, two.speech)


@pytest.mark.parametrize("sampler", sampler_names())
def test_one_time_per_frame_equals_one_time(sampler: str) -> None:
    times = [1.0, 0.6, 0.3, 0.03]
    runs = [
        posterior_sample(MIXTURE, gaussian_score, sampler, samples=2, em_rounds=2, times=grid, seed=5).speech
        for grid in (times, [torch.full((6,), t, dtype=torch.float64) for t in times])
    ]
    torch.testing.assert_close(runs[0], runs[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("sampler", sampler_names())
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
    ("sampler", "calls"),
    [
        ("udiffse", 3 * 16),
        ("diffuseen", 16),
        ("ddrm", 16),
        ("paradiffuse_in", 24),
        ("paradiffuse_en", 32),
        ("prior", 16),
    ],
)
def test_score_evaluations_are_counted(sampler: str, calls: int) -> None:
    posterior = posterior_sample(MIXTURE, gaussian_score, sampler, steps=8, samples=1, em_rounds=3)
    assert posterior.score_evaluations == calls
    assert posterior_sample(MIXTURE, gaussian_score, "prior", steps=8, corrector_snr=0).score_evaluations == 8


def test_samples_do_not_depend_on_how_they_are_split() -> None:
    """Sample 2 of four is sample 0 of a run that starts at sample 2 (known noise: nothing is shared)."""
    from udse_fast.sampling.randomness import counter_based

    def run(samples: int, first: int) -> Tensor:
        return posterior_sample(
            MIXTURE, gaussian_score, "diffuseen", steps=5, samples=samples, noise_model=FixedVariance(NOISE),
            randomness=counter_based(7, first_sample=first),
        ).speech  # fmt: skip

    assert torch.equal(run(4, 0)[2:], run(2, 2))


@pytest.mark.parametrize("option", [{"divide_tweedie": True}, {"paper_posterior": True}, {"perturb_residual": True}])
def test_paper_forms_are_other_algorithms(option: dict[str, bool]) -> None:
    sampler = next(n for n, row in SAMPLERS.items() if set(option) <= set(row.options))
    published, paper = (
        posterior_sample(MIXTURE, gaussian_score, sampler, steps=6, samples=1, **o).speech for o in ({}, option)
    )
    assert torch.isfinite(torch.view_as_real(paper)).all()
    assert not torch.allclose(published, paper)


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

"""Every sampler against recorded runs of an independent float64 implementation, and against closed forms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from udse_fast.networks.conditions import Conditions
from udse_fast.sampling.posterior import posterior_sample
from udse_fast.sampling.requests import Answer, Prior
from udse_fast.sampling.samplers import sampler_names
from udse_fast.sampling.sde import OUVE

GOLDEN = Path(__file__).parent / "golden"
# float32 against float64: the authors' own float32 code differs by up to 1.1e-5 from these vectors (paradiffuse_in)
TOLERANCE = dict.fromkeys(sampler_names(), 2e-5) | {"paradiffuse_in": 5e-5}
RECORDED = [
    "udiffse",
    "udiffse_plus",
    "depse_il",
    "depse_tl",
    "diffuseen",
    "paradiffuse_in",
    "paradiffuse_en",
]


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def run(name: str, dtype: torch.dtype = torch.complex64, device: str = "cpu"):
    data = {k: v for k, v in np.load(GOLDEN / f"{name}.npz").items()}
    real = torch.float32 if dtype == torch.complex64 else torch.float64
    sde = OUVE()

    def tensor(key: str, as_type: torch.dtype) -> torch.Tensor:
        return torch.from_numpy(data[key]).to(device, as_type)

    def score(state, time, source):
        v = tensor(f"{source}_variance", real)
        return -state / (sde.delta(time) ** 2 * v + sde.sigma(time) ** 2)

    posterior = posterior_sample(
        tensor("mixture", dtype),
        score,
        sampler=name,
        steps=int(data["steps"]),
        samples=int(data["samples"]),
        rank=int(data["rank"]),
        em_rounds=int(data.get("em_iterations", 1)),
        randomness=lambda role, index: tensor(f"draw_{role}", dtype)[index],
        initial_nmf=(tensor("W0", real), tensor("H0", real)) if "W0" in data else None,
    )
    return posterior, {k: torch.from_numpy(v).to(device) for k, v in data.items() if k.startswith("out_")}


def assert_golden(name: str) -> None:
    posterior, expected = run(name)
    assert relative(posterior.speech, expected["out_speech"]) < TOLERANCE[name]
    if "out_noise" in expected:
        assert relative(posterior.noise, expected["out_noise"]) < TOLERANCE[name]
    if "out_W" in expected:
        assert relative(posterior.W, expected["out_W"]) < TOLERANCE[name]
        assert relative(posterior.H, expected["out_H"]) < TOLERANCE[name]


@pytest.mark.parametrize("name", RECORDED)
def test_golden_by_the_core(isa: str, name: str) -> None:
    assert_golden(name)


@pytest.mark.parametrize("name", RECORDED)
def test_golden_by_the_reference(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UDSE_BACKEND", "reference")
    assert_golden(name)


@pytest.mark.parametrize("name", RECORDED)
def test_golden_float64(name: str) -> None:
    posterior, expected = run(name, torch.complex128)
    assert posterior.speech.dtype == torch.complex128
    # the vectors are stored in single precision
    assert relative(posterior.speech, expected["out_speech"].to(torch.complex128)) < 1e-6


class SeesTheVideo(Prior):
    """A Gaussian prior whose variance follows a video that it is told, as every call of a pass must be."""

    def __init__(self, variance: torch.Tensor, weights: torch.Tensor) -> None:
        self.variance, self.weights = variance, weights

    def answer(self, requests):
        (request,) = requests
        video = request.conditions.video[0]
        frames = torch.arange(request.state.shape[-1]) * len(video) // request.state.shape[-1]
        gain = 1 + 0.75 * torch.tanh(video[frames] @ self.weights)
        delta, sigma = request.coefficients.delta, request.coefficients.sigma
        return [Answer(-request.state / (delta**2 * self.variance * gain + sigma**2))]


@pytest.mark.parametrize(
    ("run_name", "sampler", "options"),
    [
        ("plus", "udiffse_plus", {}),
        ("plus_every_2nd", "udiffse_plus", {"every": 2}),
        ("plus_divided", "udiffse_plus", {"divide_tweedie": True}),
        ("em", "udiffse", {}),
    ],
)
def test_golden_with_a_video(run_name: str, sampler: str, options: dict[str, object]) -> None:
    data = {name: torch.from_numpy(value) for name, value in np.load(GOLDEN / "av_sampler.npz").items()}
    posterior = posterior_sample(
        data["mixture"],
        SeesTheVideo(data["speech_variance"], data["video_weights"]),
        sampler=sampler,
        steps=int(data["steps"]),
        samples=int(data["samples"]),
        rank=int(data["rank"]),
        em_rounds=int(data["em_iterations"]),
        randomness=lambda role, index: data[f"draw_{role}"][index],
        initial_nmf=(data["W0"], data["H0"]),
        conditions={"speech": Conditions(video=data["video"][None])},
        **options,
    )
    assert relative(posterior.speech, data[f"out_{run_name}_speech"]) < TOLERANCE[sampler]
    assert relative(posterior.W, data[f"out_{run_name}_W"]) < TOLERANCE[sampler]
    assert relative(posterior.H, data[f"out_{run_name}_H"]) < TOLERANCE[sampler]

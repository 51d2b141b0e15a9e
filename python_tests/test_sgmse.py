"""The supervised sampler against recorded runs of an independent float64 implementation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import udse_fast
from udse_fast.errors import UdseError
from udse_fast.sampling.posterior import Posterior, posterior_sample
from udse_fast.sampling.requests import Answer, Prior, Request
from udse_fast.sampling.sde import OUVE

GOLDEN = np.load(Path(__file__).parent / "golden" / "sgmse_sampler.npz")
PROCESS = OUVE()


def golden(name: str) -> Tensor:
    return torch.from_numpy(GOLDEN[name])


def score(state: Tensor, time: float, source: str) -> Tensor:
    """Of x_0 ~ N(w y, v)."""
    y, w, v = golden("noisy"), golden("clean_gain"), golden("clean_variance")
    delta = PROCESS.delta(time)
    return -(state - delta * w * y - (1 - delta) * y) / (delta**2 * v + PROCESS.sigma(time) ** 2)


def sampled(run: str, prior: Any = score, **options: Any) -> Posterior:
    draws = {name: golden(f"{run}_draw_{name}") for name in ("init", "corrector", "predictor")}
    draws = {name: draw.reshape(-1, *draw.shape[-3:]) for name, draw in draws.items()}
    return posterior_sample(
        golden("noisy"),
        prior,
        "sgmse",
        steps=int(golden(f"{run}_steps")),
        corrector_steps=int(golden(f"{run}_corrector_steps")),
        corrector_snr=float(golden(f"{run}_snr")),
        randomness=lambda name, index: draws[name.removesuffix("_speech")][index],
        **options,
    )


@pytest.mark.parametrize("run", ["default", "two_correctors"])
def test_recorded_runs(run: str) -> None:
    seen = []
    posterior = sampled(run, callback=lambda info: seen.append(info.step))
    expected = golden(f"{run}_out")
    assert float((posterior.speech - expected).norm() / expected.norm()) < 2e-5
    steps, repeats = int(golden(f"{run}_steps")), int(golden(f"{run}_corrector_steps"))
    assert posterior.score_evaluations == steps * (repeats + 1)
    assert seen == list(range(steps))
    assert posterior.noise is None


class Told(Prior):
    """A prior that takes the recording out of what it is told."""

    def answer(self, requests: list[Request]) -> list[Answer]:
        (request,) = requests
        assert request.conditions.given == ("noisy",)
        assert torch.equal(request.conditions.noisy, golden("noisy"))
        return [Answer(score(request.state, request.time, request.source))]


def test_the_network_is_told_the_recording() -> None:
    assert torch.equal(sampled("default", Told()).speech, sampled("default").speech)


def test_what_does_not_fit_is_one_line() -> None:
    with pytest.raises(UdseError, match=r"corrector_steps: expected a whole number from 1 to 100, got 1\.5"):
        posterior_sample(golden("noisy"), score, "sgmse", corrector_steps=1.5)
    with pytest.raises(UdseError, match=r"mixture: expected a complex tensor \(F, T\)"):
        posterior_sample(golden("noisy"), score, "diffuseen")
    with pytest.raises(UdseError, match="unknown option corrector_steps"):
        posterior_sample(golden("noisy")[0], score, "diffuseen", corrector_steps=2)


def test_a_prior_is_no_conditional_network() -> None:
    with pytest.raises(UdseError, match="'sgmse': expected a conditional network, trained on pairs, got a prior, for"):
        udse_fast.Enhancer(sampler="sgmse")

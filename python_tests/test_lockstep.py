"""Passes in step: the results of each alone, and fewer network calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from udse_fast import Enhancer
from udse_fast.prior import Prior
from udse_fast.sampling.diffusion import ScoreAnswer, ScoreRequest
from udse_fast.sampling.passes import in_step, run
from udse_fast.sampling.randomness import counter_based
from udse_fast.sampling.samplers import posterior_pass, posterior_sample
from udse_fast.sampling.sde import OUVE

SDE = OUVE()


class Counted:
    """A Gaussian prior that can answer many requests at once."""

    batch_key = "one network"

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, state: torch.Tensor, time: float, source: str) -> torch.Tensor:
        self.batches.append(1)
        return -state / (SDE.delta(time) ** 2 * 0.3 + SDE.sigma(time) ** 2)

    def answer(self, requests: list[ScoreRequest]) -> list[ScoreAnswer]:
        self.batches.append(len(requests))
        values = [-r.state / (SDE.delta(r.time) ** 2 * 0.3 + SDE.sigma(r.time) ** 2) for r in requests]
        return [(value, None) for value in values]


def mixture(frames: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(8, frames, dtype=torch.complex128, generator=generator) * 0.3


def test_passes_of_different_lengths_end_as_each_alone() -> None:
    prior = Counted()
    settings = [(0, 4), (1, 4), (2, 7)]
    alone = [posterior_sample(mixture(6, s), prior, steps=n, randomness=counter_based(s)).speech for s, n in settings]
    assert set(prior.batches) == {1}
    prior.batches.clear()
    passes = [posterior_pass(mixture(6, s), prior, steps=n, randomness=counter_based(s)) for s, n in settings]
    for expected, posterior in zip(alone, run(in_step(passes)), strict=True):
        torch.testing.assert_close(posterior.speech, expected, rtol=1e-12, atol=0)
    assert prior.batches == [3] * 8 + [1] * 6  # two calls a step; then the long one goes on by itself


def test_other_shapes_are_not_put_into_one_batch() -> None:
    prior = Counted()
    run(in_step([posterior_pass(mixture(frames, 0), prior, steps=2, samples=1) for frames in (5, 6)]))
    assert set(prior.batches) == {1}


def test_nothing_to_run() -> None:
    assert run(in_step([])) == []


@pytest.mark.parametrize("sampler", ["ddrm", "diffuseen", "paradiffuse_en"])
def test_blocks_in_one_batch(tiny_checkpoints: dict[str, Path], sampler: str) -> None:
    """`batch_blocks` changes the number of network calls; where blocks are independent, nothing else."""
    x = torch.randn(60_000, generator=torch.Generator().manual_seed(0)).numpy() * 0.1
    options = {"steps": 2, "samples": 1, "block_seconds": 0.5, "overlap_seconds": 0.1, "precision": "float32"}
    calls, results = [], []
    for together in (1, 4):
        enhancer = Enhancer(tiny_checkpoints["joint"], sampler, batch_blocks=together, **options)
        module = enhancer.network.module
        posterior, counted = module.posterior, [0]

        def count(*arguments: Any, posterior: Any = posterior, counted: list[int] = counted) -> Any:
            counted[0] += 1
            return posterior(*arguments)

        module.posterior = count
        results.append(torch.from_numpy(enhancer.enhance(x, 16000)))
        calls.append(counted[0])
    assert calls[1] < 0.5 * calls[0]
    assert results[0].shape == results[1].shape
    if sampler == "paradiffuse_en":  # no noise model that goes from block to block
        torch.testing.assert_close(results[1], results[0], rtol=1e-3, atol=1e-4 * float(results[0].abs().max()))


def test_sources_of_two_networks_are_asked_one_by_one(tiny_checkpoints: dict[str, Path]) -> None:
    enhancer = Enhancer(tiny_checkpoints["speech"], "paradiffuse_en", noise_checkpoint=tiny_checkpoints["speech"])
    assert Prior(enhancer.network, enhancer.noise_network).batch_key is None

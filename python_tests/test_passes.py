"""Passes side by side: the results of each alone, and fewer network calls; and what a call that fails does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from udse_fast import Enhancer
from udse_fast.kernels.coefficients import Coefficients
from udse_fast.networks.conditions import NOTHING
from udse_fast.prior import NetworkPrior
from udse_fast.sampling.passes import gather, run
from udse_fast.sampling.posterior import SamplerSettings, posterior_pass, posterior_sample
from udse_fast.sampling.randomness import counter_based
from udse_fast.sampling.requests import Answer, Calls, FunctionPrior, Pass, Prior, Request
from udse_fast.sampling.sde import OUVE

SDE = OUVE()


class Counted(Prior):
    """A Gaussian prior that can answer many requests at once."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def batch_key(self, source: str) -> str:
        return "one network"

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        self.batches.append(len(requests))
        return [Answer(-r.state / (SDE.delta(r.time) ** 2 * 0.3 + SDE.sigma(r.time) ** 2)) for r in requests]


def mixture(frames: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(8, frames, dtype=torch.complex128, generator=generator) * 0.3


def test_passes_of_different_lengths_end_as_each_alone() -> None:
    prior = Counted()
    lengths = [(0, 4), (1, 4), (2, 7)]
    alone = [posterior_sample(mixture(6, s), prior, steps=n, randomness=counter_based(s)).speech for s, n in lengths]
    assert set(prior.batches) == {1}
    prior.batches.clear()
    passes = [
        posterior_pass(mixture(6, s), prior, SamplerSettings(steps=n), randomness=counter_based(s)) for s, n in lengths
    ]
    for expected, posterior in zip(alone, run(gather(passes)), strict=True):
        torch.testing.assert_close(posterior.speech, expected, rtol=1e-12, atol=0)
        assert posterior.score_evaluations in (8, 14)
    assert prior.batches == [3] * 8 + [1] * 6  # two calls a step; then the long one goes on by itself


def test_the_second_call_of_a_step_is_batched_too() -> None:
    """ParaDiffUSE-IN asks the noise prior about what its step leaves of the mixture."""
    prior, settings = Counted(), SamplerSettings("paradiffuse_in", steps=4, samples=1)
    passes = [posterior_pass(mixture(6, s), prior, settings) for s in range(3)]
    assert [p.score_evaluations for p in run(gather(passes))] == [12] * 3
    assert prior.batches == [3] * 12


def test_other_shapes_are_not_put_into_one_batch() -> None:
    prior, settings = Counted(), SamplerSettings(steps=2, samples=1)
    run(gather([posterior_pass(mixture(frames, 0), prior, settings) for frames in (5, 6)]))
    assert set(prior.batches) == {1}


def test_nothing_to_run() -> None:
    assert run(gather([])) == []


class Asking:
    """A pass that asks a function twice, and notes what happens to it."""

    def __init__(self, score: Any, catches: bool = False) -> None:
        self.prior, self.catches, self.log = FunctionPrior(score), catches, list[str]()

    def start(self) -> Pass[str]:
        state, c = torch.zeros(1, 2, 3, dtype=torch.complex64), Coefficients(1.5, 0.5, 0.3, 0.2, 0.1)
        try:
            for call in range(2):
                try:
                    yield [Request(self.prior, state, 0.5, "speech", c, NOTHING, Calls(), call)]
                    self.log.append("answered")
                except ZeroDivisionError:
                    self.log.append("caught")
                    if not self.catches:
                        raise
        finally:
            self.log.append("closed")
        return "done"


def broken(state: torch.Tensor, time: Any, source: str) -> torch.Tensor:
    raise ZeroDivisionError("in the network")


def whole(state: torch.Tensor, time: Any, source: str) -> torch.Tensor:
    return -state


def test_an_exception_of_a_call_is_thrown_into_the_pass_that_asked() -> None:
    one = Asking(broken)
    with pytest.raises(ZeroDivisionError, match="in the network") as error:
        run(one.start())
    assert one.log == ["caught", "closed"]
    names = [entry.name for entry in error.traceback]
    assert "start" in names  # the frame that asked
    assert "broken" in names  # and that which failed


def test_a_pass_may_catch_what_its_call_raised_and_others_know_nothing_of_it() -> None:
    careful, other = Asking(broken, catches=True), Asking(whole)
    assert run(gather([careful.start(), other.start()])) == ["done", "done"]
    assert careful.log == ["caught", "caught", "closed"]
    assert other.log == ["answered", "answered", "closed"]


@pytest.mark.parametrize("nested", [False, True])
def test_where_a_pass_ends_with_an_exception_the_others_are_closed(nested: bool) -> None:
    failing, other = Asking(broken), Asking(whole)
    passes = [other.start(), failing.start()]
    together = gather([gather(passes)]) if nested else gather(passes)
    with pytest.raises(ZeroDivisionError):
        run(together)  # type: ignore[arg-type]  # of one of two types
    assert failing.log == ["caught", "closed"]
    assert other.log in (["answered", "closed"], ["closed"])


@pytest.mark.parametrize("sampler", ["ddrm", "diffuseen", "paradiffuse_en"])
def test_blocks_in_one_batch(tiny_checkpoints: dict[str, Path], sampler: str) -> None:
    """`batch_blocks` changes the number of network calls; where blocks are independent, nothing else."""
    x = torch.randn(60_000, generator=torch.Generator().manual_seed(0)).numpy() * 0.1
    options = {"steps": 2, "samples": 1, "block_seconds": 0.5, "overlap_seconds": 0.1, "precision": "float32"}
    calls, results = [], []
    for together in (1, 4):
        enhancer = Enhancer(tiny_checkpoints["joint"], sampler, batch_blocks=together, **options)
        network = enhancer.network
        evaluate, counted = network.evaluate, [0]

        def count(*arguments: Any, evaluate: Any = evaluate, counted: list[int] = counted, **named: Any) -> Any:
            counted[0] += 1
            return evaluate(*arguments, **named)

        network.evaluate = count  # type: ignore[method-assign]
        results.append(torch.from_numpy(enhancer.enhance(x, 16000)))
        calls.append(counted[0])
    assert calls[1] < 0.5 * calls[0]
    assert results[0].shape == results[1].shape
    if sampler == "paradiffuse_en":  # no noise model that goes from block to block
        torch.testing.assert_close(results[1], results[0], rtol=1e-3, atol=1e-4 * float(results[0].abs().max()))


def test_sources_of_two_networks_are_asked_one_by_one(tiny_checkpoints: dict[str, Path]) -> None:
    enhancer = Enhancer(tiny_checkpoints["speech"], "paradiffuse_en", noise_checkpoint=tiny_checkpoints["speech"])
    prior = NetworkPrior(enhancer.network, enhancer.noise_network)
    assert prior.batch_key("speech") == prior.batch_key("speaker_2") != prior.batch_key("noise")

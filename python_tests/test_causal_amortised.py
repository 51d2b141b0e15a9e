"""Sampler "amortised_ddrm" in causal streams: two networks that remember, and a noise model between them."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from udse_fast import Enhancer, Stream, UdseError, load_network
from udse_fast.checkpoints.checkpoint import save_checkpoint
from udse_fast.networks.score_network import ScoreNetwork
from udse_fast.sampling.likelihoods.amortised import NOISE_POWER
from udse_fast.streaming.causal_memory import CausalMemory

HOP, RATE = 255, 16000
BLOCK = 3 * HOP
OPTIONS: dict[str, Any] = {"precision": "float32", "device": "cpu", "em_rounds": 2, "fits": 2, "steps": 3}
Samples = NDArray[np.float32]


@pytest.fixture(scope="module")
def tiny(tiny_checkpoints: dict[str, Path]) -> Enhancer:
    posterior = tiny_checkpoints["posterior_causal"]
    settings = {"samples": 2, "corrector_snr": 0.0, "readout": "blend", "posterior_checkpoint": posterior}
    return Enhancer(tiny_checkpoints["causal"], "amortised_ddrm", **OPTIONS, **settings)


def python_stream(enhancer: Enhancer) -> Stream:
    """One whose parts can be seen, and can be made to fail."""
    return Stream(enhancer.open_stream().enhancer, RATE, 1)


def memory_of(stream: Stream) -> CausalMemory:
    memory = stream._channels[0].blocks.memory
    assert isinstance(memory, CausalMemory)
    return memory


def noise(length: int, seed: int = 0) -> Samples:
    return np.random.default_rng(seed).standard_normal(length).astype(np.float32) * np.float32(0.1)


class Fault(Exception):
    """Of a network."""


def test_every_call_of_either_network_has_a_past_of_its_own(tiny: Enhancer) -> None:
    """Two of the posterior network, of one item each, and three of the prior, of two samples; no more later on."""
    stream = python_stream(tiny)
    seen = []
    for _ in range(2):
        stream.process(noise(20_000))
        pasts = memory_of(stream).prior.pasts
        seen.append(
            {
                role: {call: [layer.shape for layer in past.kept] for call, past in by_call.items()}
                for role, by_call in pasts.items()
            }
        )
    assert seen[0] == seen[1]
    items = {role: {call: shapes[0][0] for call, shapes in by_call.items()} for role, by_call in seen[0].items()}
    assert items == {"posterior": {0: 1, 1: 1}, "prior": {2: 2, 3: 2, 4: 2}}
    pasts = memory_of(stream).prior.pasts["posterior"]
    assert not all(torch.equal(a, b) for a, b in zip(pasts[0].kept, pasts[1].kept, strict=True))


def test_the_first_call_is_told_a_noise_that_the_block_itself_has_no_part_in(
    tiny: Enhancer, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Tensor] = []
    said = ScoreNetwork.say

    def listening(network: ScoreNetwork, *arguments: Any, **keywords: Any) -> Any:
        told.append(arguments[2].noise_variance[0])
        return said(network, *arguments, **keywords)

    monkeypatch.setattr(ScoreNetwork, "say", listening)
    first, predictions = noise(10_000), []
    for following in (noise(BLOCK, 1), 0.01 * noise(BLOCK, 2)):
        stream = python_stream(tiny)
        stream.process(first)
        model = memory_of(stream).noise_model
        expected = NOISE_POWER * (model.W @ model.H[:, -1:]).clamp_min(1e-10) ** 2
        told.clear()
        stream.process(following)
        assert len(told) == 2
        torch.testing.assert_close(told[0], expected.expand(-1, 3))
        assert float((told[1] / told[0]).log().abs().mean()) > 0.1
        predictions.append(told[0].clone())
    torch.testing.assert_close(*predictions)


@pytest.mark.parametrize(("method", "fail_at"), [("say", 1), ("say", 2), ("evaluate", 1), ("evaluate", 3)])
def test_a_block_whose_call_fails_is_repeated_as_if_nothing_had_happened(
    tiny: Enhancer, monkeypatch: pytest.MonkeyPatch, method: str, fail_at: int
) -> None:
    x = noise(8_000)
    undisturbed = python_stream(tiny)
    expected = np.concatenate([undisturbed.process(x), undisturbed.flush()])
    stream, answer, calls = python_stream(tiny), getattr(ScoreNetwork, method), itertools.count(1)
    start = stream.process(x[:4_000])

    def failing(*arguments: Any, **keywords: Any) -> Any:
        result = answer(*arguments, **keywords)
        if next(calls) == fail_at:
            raise Fault  # when everything is spoiled already that the call could spoil
        return result

    monkeypatch.setattr(ScoreNetwork, method, failing)
    with pytest.raises(Fault):
        stream.process(x[4_000:])
    np.testing.assert_array_equal(np.concatenate([start, stream.process(x[:0]), stream.flush()]), expected)


def test_an_estimate_that_is_not_finite_ends_neither_the_stream_nor_what_it_has_learnt(
    tiny: Enhancer, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, said, calls = noise(16_000), ScoreNetwork.say, itertools.count()
    stream = python_stream(tiny)
    before, learnt = stream.process(x[:8_000]), memory_of(stream).state()

    def exploding(*arguments: Any, **keywords: Any) -> Any:
        estimate = said(*arguments, **keywords)
        return estimate._replace(heard=estimate.speech * (math.nan if next(calls) == 1 else 1))

    monkeypatch.setattr(ScoreNetwork, "say", exploding)
    with pytest.warns(RuntimeWarning, match="'amortised_ddrm' diverged in a block of a stream"):
        after = stream.process(x[8_000 : 8_000 + BLOCK])
    assert stream.fallbacks == 1
    for part in ("prior", "noise_model", "read_out"):
        torch.testing.assert_close(memory_of(stream).state()[part], learnt[part], rtol=0, atol=0)
    y = np.concatenate([before, after, stream.process(x[8_000 + BLOCK :]), stream.flush()])
    assert y.shape == x.shape
    assert np.isfinite(y).all()


def test_a_state_belongs_to_the_weights_of_both_networks(
    tiny: Enhancer, tiny_checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    posterior = load_network(tiny_checkpoints["posterior_causal"])
    next(posterior.module.parameters()).data.add_(1e-3)
    save_checkpoint(tmp_path / "other.safetensors", posterior.module.state_dict(), posterior.config)
    settings = {"samples": 2, "corrector_snr": 0.0, "readout": "blend"}
    other = Enhancer(
        tiny_checkpoints["causal"], "amortised_ddrm", posterior_checkpoint=tmp_path / "other.safetensors",
        **OPTIONS, **settings,
    ).open_stream()  # fmt: skip
    with pytest.raises(UdseError, match="restore: expected the state of a stream with posterior_checkpoint '"):
        tiny.open_stream().restore(other.state())


def test_a_posterior_network_of_whole_blocks_is_none_for_a_causal_prior(tiny_checkpoints: dict[str, Path]) -> None:
    message = "posterior_checkpoint: expected a network of {}, as the prior is, got one of {}"
    kinds = ("causal streams", "whole blocks")
    for prior, other, expected in (("causal", "posterior", kinds), ("speech", "posterior_causal", kinds[::-1])):
        with pytest.raises(UdseError, match=message.format(*expected)):
            Enhancer(tiny_checkpoints[prior], "amortised_ddrm", posterior_checkpoint=tiny_checkpoints.get(other, other))


# -- with the networks that come with the package ------------------------------------------------------------------


def test_a_compact_network_that_is_given_serves_the_streams_of_the_built_in_prior() -> None:
    own, given = (
        Enhancer(posterior_checkpoint=path, precision="float32", device="cpu") for path in (None, "posterior_causal")
    )
    assert own.model.fingerprints == given.model.fingerprints
    networks = [e.open_stream().enhancer.model.posterior_network for e in (own, given)]
    assert all(network is not None and network.causal_block for network in networks)
    assert own.open_stream().enhancer.model.fingerprints == given.open_stream().enhancer.model.fingerprints


def pink(length: int) -> Samples:
    spectrum = np.fft.rfft(np.random.default_rng(1).standard_normal(length))
    x = np.fft.irfft(spectrum / np.sqrt(np.arange(len(spectrum)) + 1), length)
    return (0.03 * x / x.std()).astype(np.float32)


def test_steady_noise_alone_is_20_db_down_after_a_second() -> None:
    enhancer = Enhancer(precision="float32", device="cpu")
    signals = [0.3 * noise(2 * RATE), pink(2 * RATE)]
    streams = [enhancer.open_stream() for _ in signals]
    for x, y in zip(signals, enhancer.process_many(streams, signals), strict=True):
        assert np.square(y[RATE:]).mean() < 0.01 * np.square(x[RATE:]).mean()

"""Causal streams: a few frames at a time equal the whole signal; any cutting, alone or together, restored."""

from __future__ import annotations

import copy
import inspect
import itertools
import math
import pickle
import warnings
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from udse_fast import Enhancer, Stream, UdseError, load_network
from udse_fast.block_enhancer import CausalBlockEnhancer
from udse_fast.checkpoints.checkpoint import save_checkpoint
from udse_fast.evaluation.metrics import si_sdr
from udse_fast.kernels.nmf_is import nmf_update
from udse_fast.networks.past import LayerPast
from udse_fast.sampling.noise_floor import NoiseFloor
from udse_fast.sampling.noise_models import OnlineNMF
from udse_fast.streaming.blocks import Enhanced

HOP, N_FFT, RATE = 255, 510, 16000
RATES = (8000, 16000, 44100, 48000)
ROUNDING = 2e-6  # of float32 overlap-add


class Identity(CausalBlockEnhancer):
    """The plumbing alone: every block is taken for speech."""

    def analyse(self, block: Any) -> Enhanced[Any]:
        spectral = self.model.spectral
        compressed = spectral.compress(spectral.stft(block.signal, center=False))
        gain = torch.ones(compressed.shape[1])
        return Enhanced(self.synthesise(spectral.decompress(compressed), gain, len(block.signal)), block.memory)

    def open_stream(self, sample_rate: int = 16000, block_frames: int | None = None) -> Stream:
        return Stream(replace(self, settings=replace(self.settings, block_frames=block_frames)), sample_rate, 1)


@pytest.fixture(scope="module")
def identity(tiny_checkpoints: dict[str, Path]) -> Identity:
    enhancer = Enhancer(tiny_checkpoints["causal"])
    return Identity(enhancer.model, enhancer.settings, seed=0)


OPTIONS: dict[str, Any] = {"precision": "float32", "corrector_snr": 0.0, "readout": "blend"}


@pytest.fixture(scope="module")
def tiny(tiny_checkpoints: dict[str, Path]) -> Enhancer:
    return Enhancer(tiny_checkpoints["causal"], "ddrm", steps=3, samples=1, **OPTIONS)


@pytest.fixture(scope="module")
def tiny_amortised(tiny_checkpoints: dict[str, Path]) -> Enhancer:
    """Two calls of the posterior network, then three of the prior."""
    posterior = tiny_checkpoints["posterior_causal"]
    more = {"em_rounds": 2, "fits": 2, "posterior_checkpoint": posterior, **OPTIONS}
    return Enhancer(tiny_checkpoints["causal"], "amortised_ddrm", steps=3, samples=2, **more)


@pytest.fixture(params=["ddrm", "amortised_ddrm"])
def either(request: pytest.FixtureRequest, tiny: Enhancer, tiny_amortised: Enhancer) -> Enhancer:
    """Both samplers that streams have as a default."""
    return tiny if request.param == "ddrm" else tiny_amortised


def python_stream(enhancer: Enhancer, sample_rate: int = 16000, channels: int = 1, **settings: Any) -> Stream:
    """One that does not run in the C++ core as a whole: its parts can be seen, and can be made to fail."""
    opened = enhancer.open_stream(sample_rate, channels, **settings)
    return Stream(opened.enhancer, sample_rate, channels, enhancer.max_attenuation_db)


def noise(length: int, channels: int = 1, seed: int = 0) -> NDArray[np.float32]:
    x = np.random.default_rng(seed).standard_normal((channels, length)).astype(np.float32) * 0.1
    return x[0] if channels == 1 else x


def streamed(stream: Stream, x: NDArray[Any], cuts: list[int]) -> NDArray[Any]:
    edges = [0, *sorted(min(c, x.shape[-1]) for c in cuts), x.shape[-1]]
    parts = [stream.process(x[..., a:b]) for a, b in itertools.pairwise(edges)]
    return np.concatenate([*parts, stream.flush()], axis=-1)


def relative(a: Any, b: Any) -> float:
    return float(np.linalg.norm(np.asarray(a) - np.asarray(b)) / np.linalg.norm(np.asarray(b)))


# -- the network -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 2, 3, 5])
def test_block_by_block_equals_the_whole_signal(tiny_checkpoints: dict[str, Path], block: int) -> None:
    network = load_network(tiny_checkpoints["causal"])
    module = network.module
    trained_for = module.causal_block
    module.set_causal_block(block)
    u, a = torch.randn(2, 2, 256, 6 * block), torch.tensor([0.1, 0.7])
    with torch.inference_mode():
        whole = module.posterior(u, a)
        module.set_causal_block(trained_for)  # what comes with a past is one block, however long
        past = LayerPast()
        parts = [module.posterior(part, a, past=past.rewind()) for part in u.split(block, dim=-1)]
    for expected, pieces in zip(whole, zip(*parts, strict=True), strict=True):
        assert relative(torch.cat(pieces, dim=-1), expected) < 1e-5


def test_every_step_has_a_past_of_its_own(tiny: Enhancer) -> None:
    """N reverse steps of a stream make N memories; their number does not grow with the signal."""
    stream = python_stream(tiny)
    stream.process(noise(40_000))

    def memories() -> list[list[Tensor]]:
        pasts = stream.state()["content"]["channels"][0]["blocks"]["memory"]["prior"]["prior"]
        return list(pasts.values())

    before = memories()
    assert len(before) == 3
    stream.process(noise(40_000))
    shapes = [[[layer.shape for layer in past] for past in pasts] for pasts in (before, memories())]
    assert shapes[0] == shapes[1]
    assert not torch.equal(memories()[0][0], memories()[2][0])


# -- the stream ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", RATES)
def test_any_cutting_gives_the_same_bits(identity: Identity, rate: int) -> None:
    @settings(max_examples=100, deadline=None)
    @given(length=st.integers(0, 20_000), cuts=st.lists(st.integers(0, 100_000), max_size=40))
    def check(length: int, cuts: list[int]) -> None:
        x = noise(length)
        stream = identity.open_stream(rate)
        cut, whole = streamed(stream, x, cuts), streamed(stream, x, [])
        assert cut.shape == x.shape
        np.testing.assert_array_equal(cut, whole)

    check()


def test_any_cutting_with_a_network(either: Enhancer) -> None:
    x = noise(16_000)
    stream = either.open_stream()
    whole = streamed(stream, x, [])
    rng = np.random.default_rng(0)
    for count in (1, 3, 30, 300):
        np.testing.assert_array_equal(streamed(stream, x, rng.integers(0, len(x), count).tolist()), whole)
    np.testing.assert_array_equal(either.enhance(x, 16000, causal=True), whole)


@pytest.mark.parametrize("block", [1, 2, 3, 5])
def test_latency_is_exact(identity: Identity, block: int) -> None:
    stream = identity.open_stream(block_frames=block)
    latency = stream.latency_samples
    assert latency == (block - 1) * HOP + N_FFT - 1
    x = noise(9 * block * HOP)
    received = returned = 0
    largest = 0
    for sample in x:
        received, returned = received + 1, returned + len(stream.process(np.atleast_1d(sample)))
        largest = max(largest, received - returned)
    assert largest == latency


@pytest.mark.parametrize("rate", [8000, 11025, 12345, 22050, 44100, 48000, 96000])
@pytest.mark.parametrize("block", [1, 4])
def test_latency_is_the_most_that_is_held_back_at_other_rates(identity: Identity, rate: int, block: int) -> None:
    """Fed sample by sample, where something comes; in between what is held back grows with every sample."""
    stream = identity.open_stream(rate, block_frames=block)
    most = received = returned = 0
    common = math.gcd(rate, 16000)
    period = 16000 // common // math.gcd(block * HOP, 16000 // common)  # blocks until they end at the same fractions
    for _ in range(period + 2):
        quiet = int(block * HOP * rate / 16000) - 2 if returned else 0
        assert not len(stream.process(noise(quiet)))
        received += quiet
        out = 0
        while not out:
            received, out = received + 1, len(stream.process(noise(1)))
            returned += out
            most = max(most, received - returned)
    assert most == stream.latency_samples


@pytest.mark.parametrize("rate", RATES)
def test_aligned(identity: Identity, rate: int) -> None:
    stream = identity.open_stream(rate)
    for position in (rate // 3, rate // 2 + 1):
        x = np.zeros(rate, np.float32)
        x[position] = 1
        assert int(np.abs(streamed(stream, x, [])).argmax()) == position
    if rate == 16000:
        x = noise(20_011)
        assert relative(streamed(stream, x, []), x) < ROUNDING


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_latency_at_other_rates_is_a_bound_and_low(identity: Identity, rate: int) -> None:
    stream = identity.open_stream(rate)
    received = returned = largest = 0
    for _ in range(0, rate, 20):
        received, returned = received + 20, returned + len(stream.process(noise(20)))
        largest = max(largest, received - returned)
    assert largest - 20 <= stream.latency_samples <= largest + 2 * HOP
    assert stream.latency_seconds < 0.096


def test_the_output_depends_on_no_later_sample_than_the_latency(either: Enhancer) -> None:
    x = noise(12_000)
    y = either.enhance(x, 16000, causal=True)
    for at in (5_000, 7_777):
        changed = x.copy()
        changed[at:] = noise(len(x) - at, seed=1)
        z = either.enhance(changed, 16000, causal=True)
        latency = either.open_stream().latency_samples
        np.testing.assert_array_equal(z[: at - latency], y[: at - latency])
        assert not np.array_equal(z[at - latency : at + HOP], y[at - latency : at + HOP])


def test_state_goes_on_identically(either: Enhancer, tmp_path: Path) -> None:
    x = noise(24_000, 2)
    stream = either.open_stream(48000, 2)
    stream.process(x[:, :11_111])
    torch.save(stream.state(), tmp_path / "state")
    expected = np.concatenate([stream.process(x[:, 11_111:]), stream.flush()], axis=1)
    other = either.open_stream(48000, 2)
    other.process(noise(5_000, 2, seed=3))
    other.restore(torch.load(tmp_path / "state"))
    np.testing.assert_array_equal(np.concatenate([other.process(x[:, 11_111:]), other.flush()], axis=1), expected)


def test_settings_of_the_other_kind_of_stream(tiny: Enhancer) -> None:
    with pytest.raises(UdseError, match="block_seconds: a setting of overlapping blocks, got it for causal streams"):
        tiny.open_stream(causal=True, block_seconds=1.0)
    with pytest.raises(UdseError, match="block_frames: a setting of causal streams, got it for overlapping blocks"):
        tiny.open_stream(causal=False, block_frames=2)
    with pytest.raises(UdseError, match="causal: expected true or false, got 'x'"):
        tiny.open_stream(causal="x")  # type: ignore[arg-type]


def test_a_state_is_a_copy(either: Enhancer) -> None:
    x = noise(8_000)
    stream = either.open_stream()
    stream.process(x)
    state = stream.state()
    first = stream.process(x)
    stream.restore(state)
    np.testing.assert_array_equal(stream.process(x), first)
    stream.restore(state)
    np.testing.assert_array_equal(stream.process(x), first)


def changed(state: dict[str, Any], *path: Any, value: Any) -> dict[str, Any]:
    state = copy.deepcopy(state)
    inner = state
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    return state


def test_states_that_do_not_fit(tiny: Enhancer, tiny_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    x = noise(12_000)
    stream, untouched = python_stream(tiny), python_stream(tiny)
    for each in (stream, untouched):
        each.process(x[:7_000])
    state = stream.state()

    def other(checkpoint: Path = tiny_checkpoints["causal"], sampler: str = "ddrm", **settings: Any) -> Any:
        chosen = {"steps": 3, "samples": 1, "precision": "float32", "corrector_snr": 0.0, "readout": "blend"}
        taken = python_stream(Enhancer(checkpoint, sampler, **{**chosen, **settings}))
        taken.process(x[:7_000])
        return taken.state()

    weights, same = load_network(tiny_checkpoints["causal"]), tmp_path / "other.safetensors"
    next(weights.module.parameters()).data.add_(1e-3)
    save_checkpoint(same, weights.module.state_dict(), weights.config)
    content = ("content", "channels", 0)
    blocks = (*content, "blocks")
    cases: list[tuple[Any, str]] = [
        (None, "what state\\(\\) of a stream gave, got NoneType"),
        ({}, "what state\\(\\) of a stream gave"),
        ([state], "what state\\(\\) of a stream gave, got list"),
        (
            python_stream(tiny, block_frames=2).state(),
            "blocks 'causal, 3 frames'; got one with blocks 'causal, 2 frames'",
        ),
        (python_stream(tiny, 48000).state(), "sample_rate 16000; got one with sample_rate 48000"),
        (python_stream(tiny, channels=2).state(), "channels 1; got one with channels 2"),
        (python_stream(tiny, causal=False, block_seconds=0.5, overlap_seconds=0.1).state(), "blocks 'causal"),
        (other(steps=2), "steps 3; got one with steps 2"),
        (other(samples=2), "samples 1; got one with samples 2"),
        (other(seed=5), "seed 0; got one with seed 5"),
        (other(max_attenuation_db=10), "max_attenuation_db None; got one with max_attenuation_db 10.0"),
        (other(variance_scale=3), "ddrm variance_scale 1.0; got one with ddrm variance_scale 3.0"),
        (other(sampler="depse_il"), "sampler 'ddrm'"),
        (other(same), "a stream with checkpoint '"),
        ({"belongs_to": state["belongs_to"]}, "damaged or changed"),
        (changed(state, *content, value=None), "damaged or changed"),
        (changed(state, *blocks, "input", value="silence"), "damaged or changed"),
        (changed(state, *blocks, "frame", value=torch.zeros(3)), "damaged or changed"),
        (changed(state, *blocks, "memory", "noise_model", "W", value=torch.ones(256, 4)), "damaged or changed"),
        (changed(state, *blocks, "memory", "prior", value=[]), "damaged or changed"),
        (changed(state, "digest", value=np.zeros(3)), "damaged or changed"),
    ]
    for malformed, complaint in cases:
        with pytest.raises(UdseError, match=f"restore: .*{complaint}") as error:
            stream.restore(malformed)
        assert "\n" not in str(error.value)
    np.testing.assert_array_equal(stream.process(x[7_000:]), untouched.process(x[7_000:]))
    with pytest.raises(UdseError, match="expected a causal prior"):
        Enhancer(tiny_checkpoints["speech"]).open_stream(causal=True)


def test_an_enhancer_that_has_streamed_can_be_copied(tiny_checkpoints: dict[str, Path]) -> None:
    x = noise(6_000)
    enhancer = Enhancer(tiny_checkpoints["causal"], "ddrm", steps=2, samples=1)
    expected = enhancer.enhance(x, 16000, causal=True)
    first = enhancer.process(x)
    for copied in (copy.deepcopy(enhancer), pickle.loads(pickle.dumps(enhancer))):
        np.testing.assert_array_equal(copied.enhance(x, 16000, causal=True), expected)
        np.testing.assert_array_equal(copied.process(x), first)  # its own stream, which starts anew


class Fault(Exception):
    """Of a network."""


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize(("channels", "fail_at"), [(1, 1), (1, 2), (1, 6), (2, 3)])
def test_a_block_that_fails_is_repeated(
    tiny: Enhancer, monkeypatch: pytest.MonkeyPatch, backend: str, channels: int, fail_at: int
) -> None:
    """At any call of a block: network memories, noise model, level and read-out go on as if nothing had happened."""
    monkeypatch.setenv("UDSE_BACKEND", backend)
    x = noise(9_000, channels)
    expected, parts = streamed(python_stream(tiny, channels=channels), x, [2_000, 5_000]), []
    stream = python_stream(tiny, channels=channels)
    answer, calls = type(tiny.network).evaluate, itertools.count(1)

    def failing(*arguments: Any, **keywords: Any) -> Any:
        result = answer(*arguments, **keywords)
        if next(calls) == fail_at:
            raise Fault  # when everything is spoiled already that the call could spoil
        return result

    monkeypatch.setattr(type(tiny.network), "evaluate", failing)
    for at in range(0, 9_000, 3_000):
        calls = itertools.count(1)
        with pytest.raises(Fault):
            stream.process(x[..., at : at + 3_000])
        parts.append(stream.process(x[..., :0]))
    calls = itertools.count(fail_at)  # few blocks are left
    with pytest.raises(Fault):
        stream.flush()
    np.testing.assert_array_equal(np.concatenate([*parts, stream.flush()], axis=-1), expected)


@pytest.mark.parametrize("causal", [True, False])
def test_few_frames_lie_between_the_stream_and_the_network(
    tiny: Enhancer, monkeypatch: pytest.MonkeyPatch, causal: bool
) -> None:
    """Suspended ones, which a reader of a traceback has to go through: all of them are in `sampling`."""

    def failing(*arguments: Any, **keywords: Any) -> Any:
        raise Fault

    monkeypatch.setattr(type(tiny.network), "evaluate", failing)
    with pytest.raises(Fault) as raised:
        python_stream(tiny, causal=causal).process(noise(40_000))
    code = [frame.frame.code.raw for frame in raised.traceback]
    suspended = [Path(c.co_filename).parent.name for c in code if c.co_flags & inspect.CO_GENERATOR]
    assert 3 <= len(suspended) <= 4
    assert {*suspended} == {"sampling"}


def test_one_stream_that_fails_takes_nothing_from_those_beside_it(
    tiny: Enhancer, monkeypatch: pytest.MonkeyPatch
) -> None:
    signals = [noise(6_000, seed=seed) for seed in range(2)]
    streams, undisturbed = ([python_stream(tiny) for _ in signals] for _ in range(2))
    expected = tiny.process_many(undisturbed, signals)
    answer, calls = type(tiny.network).evaluate, itertools.count(1)

    def failing(*arguments: Any, **keywords: Any) -> Any:
        if next(calls) == 4:
            raise Fault
        return answer(*arguments, **keywords)

    monkeypatch.setattr(type(tiny.network), "evaluate", failing)
    with pytest.raises(Fault):
        tiny.process_many(streams, signals)
    for got, right in zip(tiny.process_many(streams, [x[:0] for x in signals]), expected, strict=True):
        np.testing.assert_array_equal(got, right)


def test_a_sampler_that_diverges_in_a_block_does_not_end_the_stream(
    tiny: Enhancer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bad block: it comes out quieter, and what was learnt before it is still there after it."""
    x = noise(20_000)
    stream, answer, calls = python_stream(tiny), type(tiny.network).evaluate, itertools.count()
    before = stream.process(x[:10_000])

    def exploding(*arguments: Any, **keywords: Any) -> Any:
        score, variance = answer(*arguments, **keywords)
        return score * (math.inf if next(calls) == 0 else 1), variance

    def memory() -> Any:
        return stream.state()["content"]["channels"][0]["blocks"]["memory"]

    learnt = memory()
    monkeypatch.setattr(type(tiny.network), "evaluate", exploding)
    with pytest.warns(RuntimeWarning, match="'ddrm' diverged in a block of a stream"):
        after = stream.process(x[10_000 : 10_000 + 3 * HOP])
    assert stream.fallbacks == 1
    for part in ("prior", "noise_model", "read_out"):
        torch.testing.assert_close(memory()[part], learnt[part], rtol=0, atol=0)
    y = np.concatenate([before, after, stream.process(x[10_000 + 3 * HOP :]), stream.flush()])
    assert y.shape == x.shape
    assert np.isfinite(y).all()


def test_diffuseen_on_white_noise() -> None:
    """The published sampler diverges there, again and again."""
    x = (10 ** (-30 / 20) * np.random.default_rng(0).standard_normal(2 * RATE)).astype(np.float32)
    stream = Enhancer(sampler="diffuseen").open_stream()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        y = streamed(stream, x, [])
    assert y.shape == x.shape
    assert np.isfinite(y).all()
    assert np.abs(y).max() <= 1.5 * np.abs(x).max()


def test_a_state_says_which_memory_it_holds(tiny: Enhancer, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the C++ core is another one than that of torch."""
    x = noise(6_000)
    stream = python_stream(tiny)
    stream.process(x)
    in_core = stream.state()
    monkeypatch.setenv("UDSE_BACKEND", "reference")
    in_torch = python_stream(tiny)
    with pytest.raises(UdseError, match="memory 'torch'; got one with memory 'core'"):
        in_torch.restore(in_core)
    in_torch.process(x)
    state = in_torch.state()
    monkeypatch.delenv("UDSE_BACKEND")
    with pytest.raises(UdseError, match="memory 'core'; got one with memory 'torch'"):
        stream.restore(state)
    assert np.isfinite(stream.process(x)).all()


@pytest.mark.parametrize("value", [None, ""])
def test_an_empty_backend_variable_is_none(tiny: Enhancer, monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("UDSE_BACKEND", raising=False)
    if value is not None:
        monkeypatch.setenv("UDSE_BACKEND", value)
    assert tiny.open_stream().state()["belongs_to"]["memory"] == "native"


def test_another_default_dtype_of_torch_changes_nothing_for_the_user(tiny: Enhancer) -> None:
    x = noise(6_000)
    expected = streamed(tiny.open_stream(), x, [2_000])
    try:
        torch.set_default_dtype(torch.float64)
        y = streamed(tiny.open_stream(), x, [2_000])
    finally:
        torch.set_default_dtype(torch.float32)
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("frames", [0, 9, 2.0, True, "4"])
def test_block_lengths_that_cannot_be(tiny: Enhancer, frames: Any) -> None:
    with pytest.raises(UdseError, match="block_frames: expected a whole number from 1 to 8, got"):
        tiny.open_stream(block_frames=frames)
    assert tiny.open_stream(block_frames=np.int64(8)).latency_samples == 7 * HOP + N_FFT - 1


def test_streams_together_equal_each_alone(either: Enhancer) -> None:
    signals = [noise(12_000, seed=seed) for seed in range(3)]
    alone = [streamed(either.open_stream(), x, []) for x in signals]
    streams = [either.open_stream() for _ in signals]
    ahead = streams[2].process(signals[2][:3_000])
    heads = [np.zeros(0, np.float32)] * 2 + [ahead]
    starts = [0, 0, 3_000]
    parts: list[list[Any]] = [[head] for head in heads]
    for at in range(0, 12_000, 800):
        chunks = [x[s + at : s + at + 800] for x, s in zip(signals, starts, strict=True)]
        for part, out in zip(parts, either.process_many(streams, chunks), strict=True):
            part.append(out)
    for part, stream, expected in zip(parts, streams, alone, strict=True):
        assert relative(np.concatenate([*part, stream.flush()]), expected) < 1e-4
    with pytest.raises(UdseError, match="one chunk for each"):
        either.process_many(streams, [signals[0]])


def test_one_bad_chunk_takes_nothing_from_the_other_streams(tiny: Enhancer) -> None:
    x = noise(6_000)
    good, bad = tiny.open_stream(), tiny.open_stream()
    with pytest.raises(UdseError, match="expected 1 channels"):
        tiny.process_many([good, bad], [x[:3_000], noise(3_000, 2)])
    np.testing.assert_array_equal(streamed(good, x, [3_000]), streamed(tiny.open_stream(), x, []))


def test_digital_silence_stays_and_what_is_not_a_number_is_taken_for_it() -> None:
    built_in = Enhancer(steps=4, samples=1)
    x = np.concatenate([noise(8_000), np.zeros(32_000, np.float32), noise(8_000, seed=1)])
    x[3_000:3_004] = [np.nan, np.inf, -np.inf, np.nan]
    y = streamed(built_in.open_stream(), x, [])
    assert np.isfinite(y).all()
    assert np.abs(y[20_000:38_000]).max() < 1e-5
    assert np.abs(y[-6_000:]).max() > 1e-3
    silence = np.zeros(10_000, np.float32)
    np.testing.assert_array_equal(streamed(built_in.open_stream(), silence, []), silence)


def recording(name: str) -> NDArray[np.float32]:
    with as_file(files("udse_fast") / "examples" / f"{name}.flac") as path:
        audio: NDArray[np.float32] = soundfile.read(path, dtype="float32")[0]
    return audio


@pytest.mark.parametrize(
    ("before", "gain"),
    [
        pytest.param(lambda noisy: np.repeat([np.nan, np.inf], RATE // 2), 1, id="no numbers"),
        pytest.param(lambda noisy: np.zeros(120 * RATE), 1, id="two minutes of silence"),
        pytest.param(lambda noisy: np.clip(100 * noisy, -1, 1), 1, id="clipped at full scale"),
        pytest.param(lambda noisy: noisy, 0.01, id="40 dB quieter"),
        pytest.param(lambda noisy: 0.01 * noisy, 1, id="40 dB louder"),
    ],
)
def test_recovers(before: Callable[[Any], Any], gain: float, undisturbed: float) -> None:
    """The built-in stream after a disturbance: what follows the first 4 s is enhanced as ever."""
    noisy = recording("noisy")
    # another draw of the noise, or another rounding of it, is worth a dB by itself: undisturbed it is 5.1 and 6.4 dB,
    # after these disturbances 5.1 to 6.8
    assert quality(np.concatenate([before(noisy), gain * np.tile(noisy, 4)])) > undisturbed - 2


@pytest.fixture(scope="module")
def undisturbed() -> float:
    """The mean over two beginnings: other frames, other random numbers, and a dB more or less."""
    x = np.tile(recording("noisy"), 4)
    return (quality(x) + quality(x[4_000:])) / 2


def quality(x: NDArray[np.float32]) -> float:
    """SI-SDR, dB, of the last three repetitions of the recording, in the mean."""
    clean = recording("clean")
    y = streamed(Enhancer(steps=4, samples=1).open_stream(), x.astype(np.float32), [])
    assert np.isfinite(y).all()
    return float(np.mean([si_sdr(clean, part) for part in y[-3 * len(clean) :].reshape(3, -1)]))


def test_attenuation_is_limited(tiny_checkpoints: dict[str, Path]) -> None:
    x = noise(9_000)
    settings: dict[str, Any] = {"steps": 2, "samples": 1, "precision": "float32"}
    with_limit = Enhancer(tiny_checkpoints["causal"], "ddrm", max_attenuation_db=6.0, **settings)
    without = Enhancer(tiny_checkpoints["causal"], "ddrm", **settings)
    full, part = (e.enhance(x, 16000, causal=True) for e in (without, with_limit))
    np.testing.assert_allclose(part, full + 10 ** (-6 / 20) * (x - full), atol=1e-6 * np.abs(full).max())


# -- the noise model -------------------------------------------------------------------------------------------------


def test_online_nmf_finds_the_spectra_of_the_batch_fit() -> None:
    """Two alternating spectra, 300 frames by 3: as good a fit as all at once, by the Itakura-Saito divergence."""
    generator = torch.Generator().manual_seed(0)
    spectra = torch.rand(40, 2, generator=generator) ** 4 + 1e-3
    activity = torch.rand(2, 300, generator=generator) ** 2 + 0.01
    power = spectra @ activity * torch.empty(40, 300).exponential_(generator=generator)

    def divergence(V: Tensor, P: Tensor) -> float:
        return float((P / V - (P / V).log() - 1).mean())

    model = OnlineNMF(40, 2, forgetting=0.999, iterations=10)
    late = []
    for number in range(100):
        block = power[:, 3 * number : 3 * number + 3]
        model.next_block(block.sqrt() + 0j)
        for _ in range(3):
            model.fit(block)
        late.append(divergence(model.W @ model.H, block))
    W, H = torch.rand(40, 2, generator=generator), torch.rand(2, 300, generator=generator)
    W, H = nmf_update(power, W, H, iterations=300)
    assert sum(late[50:]) / 50 < divergence(W @ H, power) + 0.05
    torch.testing.assert_close(model.W.sum(0), torch.ones(2))


def test_forgetting_is_by_blocks_not_by_steps() -> None:
    """However many reverse steps a block has, the past is forgotten once."""
    power = torch.rand(20, 4, generator=torch.Generator().manual_seed(1)) + 0.1
    for steps in (1, 7):
        model = OnlineNMF(20, 2, forgetting=0.5)
        model.next_block(power.sqrt() + 0j)
        model.fit(power)
        before = [a.clone() for a in model._latest]
        model.next_block(power.sqrt() + 0j)
        for _ in range(steps):
            model.fit(1e-3 * power)
        new = model._latest[1] - 0.5 * before[1]
        assert (model._latest[1] > 0.5 * before[1] * 0.999).all()
        assert (new > 0).all()


def test_columns_forget_at_their_own_pace() -> None:
    """Three columns, whose times are 1/3, 1 and 3 times that of `forgetting`; the update itself applies that to all."""
    power = torch.rand(20, 4, generator=torch.Generator().manual_seed(1)) + 0.1
    model = OnlineNMF(20, 3, forgetting=0.8, spread=9.0)
    model.next_block(power.sqrt() + 0j)
    model.fit(power)
    before = model._latest
    model.next_block(power.sqrt() + 0j)
    for kept, latest in zip(model._statistics, before, strict=True):
        torch.testing.assert_close(0.8 * kept, latest * 0.8 ** torch.tensor([3.0, 1.0, 1 / 3]))


# -- the floor of the noise ------------------------------------------------------------------------------------------


def floor_of(power: Tensor, factor: float = 1.0, block: int = 4) -> list[Tensor]:
    """The floor after each block of frames of a power (F, T)."""
    floor, each = NoiseFloor.over(len(power), factor, block * HOP / RATE), []
    for at in range(0, power.shape[1], block):
        floor = floor.after(power[:, at : at + block])
        each.append(floor.variance)
    return each


def exponential(bins: int, frames: int) -> Tensor:
    return torch.empty(bins, frames).exponential_(generator=torch.Generator().manual_seed(0))


def test_steady_noise_has_a_floor_after_a_window() -> None:
    """None before 0.9 s (14 blocks of 4 frames), then close to its variance, and mostly below."""
    each = floor_of(7 * exponential(64, 240))
    assert not torch.stack(each[:13]).any()
    late = torch.stack(each[20:])
    assert (late > 0.3 * 7).all()
    assert late.mean() < 7
    assert (late < 1.5 * 7).all()


def test_speech_with_gaps_has_no_floor() -> None:
    """Half a second of something loud in every second; the factor is one of what is there in between."""
    loud = torch.arange(480) % 63 < 31
    power = exponential(64, 480) * (1 + 1e6 * loud)
    for floor in floor_of(power, factor=2.0)[20:]:
        assert (floor < 1e5).all()  # what the smoothing leaves of 1e6 in a gap
    for floor in floor_of(power * ~loud + 1e-9, factor=2.0):
        assert (floor < 2).all()


def test_the_floor_is_at_the_level_of_the_input() -> None:
    """Blocks are normalised by levels that change: the floor of each is that of the same noise."""
    power = exponential(20, 400)

    def variances(levels: list[float]) -> list[Tensor]:
        model = OnlineNMF(20, 2, forgetting=0.5, floor=NoiseFloor.over(20, 2.0, 4 * HOP / RATE))
        each = []
        for number, level in enumerate(levels):
            model.next_block(power[:, 4 * number : 4 * number + 4].sqrt() / level + 0j, level)
            for _ in range(5):
                model.fit(torch.full((20, 4), 1e-6))  # the prior has taken all of it for speech
            each.append(level**2 * (model.W @ model.H))
        return each

    steady = variances([1.0] * 50)
    jumping = variances([1.0] * 30 + [30.0] * 20)
    assert steady[10].max() < 1e-2  # too little, for good
    for a, b in zip(steady[20:], jumping[20:], strict=True):
        assert (a > 0.3).all()
        assert (b > 0.3).all()
        assert (b < 5).all()


def test_white_noise_alone_is_removed() -> None:
    """The built-in prior takes it for speech as long as nobody knows that it is steady."""
    x, rate = soundfile.read(Path(__file__).parent / "data/cases/white_noise_only_4s_-30dBFS.flac", dtype="float32")
    x = x[: 2 * rate]
    y = streamed(Enhancer(samples=1, noise_floor=2.0).open_stream(rate), x, [])
    assert np.square(y[rate:]).sum() < 0.01 * np.square(x[rate:]).sum()


def test_the_floor_is_part_of_the_state(tiny: Enhancer) -> None:
    x = noise(40_000)
    stream, other = (tiny.open_stream(noise_floor=50.0) for _ in range(2))
    stream.process(x[:20_000])
    other.restore(pickle.loads(pickle.dumps(stream.state())))
    y = stream.process(x[20_000:])
    np.testing.assert_array_equal(other.process(x[20_000:]), y)
    without = tiny.open_stream()
    without.process(x[:20_000])
    assert relative(without.process(x[20_000:]), y) > 0.01
    with pytest.raises(UdseError, match=r"restore: expected the state of a stream with .*noise_floor"):
        without.restore(stream.state())

"""Streams in the C++ core against the same streams in Python."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import as_file, files
from typing import Any

import numpy as np
import pytest
import safetensors
import soundfile
from numpy.typing import NDArray

from udse_fast import Enhancer, UdseError, _core
from udse_fast.audio.resampling import Resampler
from udse_fast.priors import BUILT_IN, tuned_settings
from udse_fast.streaming.native import NativeStream
from udse_fast.streaming.stream import Stream

TOLERANCE = {16000: 1e-5, 44100: 1e-5, 48000: 1e-5, 8000: 5e-3}
"""Root mean square of the difference relative to the speech, of the first half second. At 8 kHz the upper half of the
band holds nothing but rounding errors, which differ, and which the compression raises. Later on any difference grows: a
rounding error of the input does the same to each of the two streams alone."""


@cache
def made(sampler: str) -> Enhancer:
    return Enhancer(sampler=sampler, device="cpu")


@pytest.fixture(params=["ddrm", "amortised_ddrm"])
def enhancer(request: pytest.FixtureRequest) -> Enhancer:
    return made(request.param)


@cache
def noisy(rate: int) -> NDArray[np.float32]:
    """A second of the example."""
    with as_file(files("udse_fast") / "examples" / "noisy.flac") as path:
        samples, own_rate = soundfile.read(path, dtype="float32")
    resampler = Resampler(own_rate, rate)
    return np.concatenate([resampler.process(samples[:own_rate]), resampler.flush()])


def python_stream(enhancer: Enhancer, rate: int, channels: int = 1) -> Stream:
    native = enhancer.open_stream(rate, channels)
    return Stream(native.enhancer, rate, channels, native.max_attenuation_db)


def whole(stream: Stream, samples: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    parts = [stream.separate(samples[..., at : at + 480]) for at in range(0, samples.shape[-1], 480)]
    parts.append(stream.flush_separate())
    speech, noise = (np.concatenate(rows, axis=-1) for rows in zip(*parts, strict=True))
    return speech, noise


@pytest.mark.parametrize("rate", TOLERANCE)
def test_gives_what_the_python_stream_gives(enhancer: Enhancer, rate: int) -> None:
    native, python = enhancer.open_stream(rate), python_stream(enhancer, rate)
    assert isinstance(native, NativeStream)
    assert native.latency_samples == python.latency_samples
    (speech, noise), (expected, _) = whole(native, noisy(rate)), whole(python, noisy(rate))
    assert speech.shape == expected.shape
    start = slice(rate // 2)
    error = np.sqrt(np.mean((speech - expected)[start] ** 2) / np.mean(expected[start] ** 2))
    assert error < TOLERANCE[rate]
    np.testing.assert_allclose(speech + noise, noisy(rate), atol=1e-6)


def test_counts_what_the_python_stream_counts(enhancer: Enhancer) -> None:
    native, python = enhancer.open_stream(16000), python_stream(enhancer, 16000)
    for stream in (native, python):
        stream.process(noisy(16000)[:8000])
    assert native.network_calls == python.network_calls > 0
    assert native.fallbacks == python.fallbacks == 0
    assert native.real_time_factor > 0
    assert native.last_seconds > 0


def test_states_of_the_two_kinds_are_told_apart(enhancer: Enhancer) -> None:
    native, python = enhancer.open_stream(16000), python_stream(enhancer, 16000)
    with pytest.raises(UdseError, match="memory 'native'"):
        python.restore(native.state())
    with pytest.raises(UdseError, match="memory 'native'"):
        native.restore(python.state())


def test_a_state_goes_on_to_the_bit(enhancer: Enhancer) -> None:
    samples = noisy(16000)
    first, second = enhancer.open_stream(16000), enhancer.open_stream(16000)
    first.process(samples[:7000])
    second.process(samples[100:600])
    second.restore(first.state())
    np.testing.assert_array_equal(first.process(samples[7000:]), second.process(samples[7000:]))
    np.testing.assert_array_equal(first.flush(), second.flush())


@pytest.mark.parametrize("settings", [{"rank": 33}, {"corrector_snr": 0.1}, {"steps": 65}])
def test_what_the_core_does_not_have_stays_in_python(enhancer: Enhancer, settings: dict[str, float]) -> None:
    assert type(enhancer.open_stream(16000, **settings)) is Stream


def test_a_forced_backend_is_heeded(enhancer: Enhancer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UDSE_BACKEND", "reference")
    assert type(enhancer.open_stream(16000)) is Stream


def test_channels_are_those_of_the_user(enhancer: Enhancer) -> None:
    mono = noisy(16000)[:4000]
    both = np.stack([mono, mono[::-1]])
    speech, _ = whole(enhancer.open_stream(16000, 2), both)
    for row, samples in zip(speech, both, strict=True):
        np.testing.assert_array_equal(row, whole(enhancer.open_stream(16000), samples)[0])


@pytest.mark.parametrize(
    ("channels", "settings"),
    [(2, {"stereo": "common"}), (1, {"high_band": "keep"}), (1, {"high_band": "cut"}), (1, {"hum": "keep"})],
)
def test_the_words_mean_the_same(enhancer: Enhancer, channels: int, settings: dict[str, str]) -> None:
    """With hum and an offset in the input: half a second is looked at before they are taken out."""
    rate, x = 48000, noisy(48000)
    time = np.arange(len(x)) / rate
    x = x + (0.1 + 0.2 * np.sin(2 * np.pi * 50.1 * time) + 0.05 * np.sin(2 * np.pi * 150.3 * time)).astype(np.float32)
    signal = x if channels == 1 else np.stack([x, 0.3 * np.roll(x, 5)])
    native = enhancer.open_stream(rate, channels, **settings)
    python = Stream(native.enhancer, rate, channels)
    assert isinstance(native, NativeStream)
    speech, expected = whole(native, signal)[0], whole(python, signal)[0]
    error = np.sqrt(np.mean((speech - expected) ** 2) / np.mean(expected**2))
    assert error < 2e-3  # of rounding, which has grown; another meaning changes a tenth


def test_streams_side_by_side_equal_each_alone(enhancer: Enhancer) -> None:
    """Of other rates and channels, other seeds and lengths of chunks; one has settings of its own."""
    signals = [noisy(16000)[:6_000], np.stack([noisy(48000)[:9_000]] * 2), noisy(16000)[2_000:9_000], noisy(16000)]
    kinds: list[dict[str, Any]] = [{}, {"sample_rate": 48000, "channels": 2}, {"steps": 3}, {}]
    alone = [whole(enhancer.open_stream(**kind), x)[0] for kind, x in zip(kinds, signals, strict=True)]
    streams = [enhancer.open_stream(**kind) for kind in kinds]
    parts: list[list[Any]] = [[] for _ in streams]
    for number in range(10):
        chunks = [x[..., x.shape[-1] * number // 10 : x.shape[-1] * (number + 1) // 10] for x in signals]
        for part, out in zip(parts, Enhancer.process_many(streams, chunks), strict=True):
            part.append(out)
    for part, stream, expected in zip(parts, streams, alone, strict=True):
        np.testing.assert_array_equal(np.concatenate([*part, stream.flush()], axis=-1), expected)


def test_a_call_that_fails_loses_nothing(enhancer: Enhancer, monkeypatch: pytest.MonkeyPatch) -> None:
    x = noisy(16000)[:6_000]
    expected, _ = whole(enhancer.open_stream(), x)
    stream = enhancer.open_stream()
    parts = [stream.process(x[:2_000])]

    def fails(*_: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(_core, "process_many", fails)
        for start in (2_000, 3_000):
            with pytest.raises(MemoryError):
                stream.process(x[start : start + 1_000])
        with pytest.raises(MemoryError):
            stream.flush()
    other = enhancer.open_stream()
    other.restore(stream.state())
    for goes_on in (stream, other):
        rest = [*parts, goes_on.process(x[4_000:]), goes_on.flush()]
        np.testing.assert_array_equal(np.concatenate(rest), expected)


def test_c_finds_the_settings_of_python() -> None:
    """In the file of the posterior network: `scripts/settings_for_c.py` puts them there."""
    with safetensors.safe_open(BUILT_IN["posterior_causal"], framework="np") as file:
        there = json.loads(file.metadata()["udse_fast"])["inference"]["amortised_ddrm"]
    tuned = tuned_settings("compact-causal")
    assert there == {**tuned["all"], **tuned["amortised_ddrm"]}

"""Streams: any cutting gives the same bits, aligned, of the input's length, within the latency."""

from __future__ import annotations

import copy
import itertools
import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from udse_fast import Enhancer, Stream, UdseError
from udse_fast.block_enhancer import OverlapBlockEnhancer
from udse_fast.streaming.blocks import Enhanced
from udse_fast.streaming.overlap import OverlapBlocks

RATES = (8000, 11025, 16000, 44100, 48000)
BLOCKS = {"block_seconds": 0.5, "overlap_seconds": 0.1}
CROSS_FADE_ROUNDING = 2e-7  # a r + a (1 - r) in float32
RESAMPLED_TWICE = 2e-3  # of the amplitude, in the passband of the two filters


class Identity(OverlapBlockEnhancer):
    """The plumbing alone: every block is taken for speech."""

    def analyse(self, block: Any) -> Enhanced[Any]:
        return Enhanced(torch.stack([block.signal, torch.ones_like(block.signal)]), block.memory)

    def open_stream(self, sample_rate: int = 16000, channels: int = 1) -> Stream:
        return Stream(self, sample_rate, channels)


@pytest.fixture(scope="module")
def identity(tiny_checkpoint: Path) -> Identity:
    enhancer = Enhancer(tiny_checkpoint, **BLOCKS)
    return Identity(enhancer.model, enhancer.settings, seed=0)


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint: Path) -> Enhancer:
    return Enhancer(tiny_checkpoint, steps=2, samples=1, precision="float32", **BLOCKS)


def noise(length: int, channels: int = 1, seed: int = 0) -> NDArray[np.float32]:
    x = np.random.default_rng(seed).standard_normal((channels, length)).astype(np.float32) * 0.1
    return x[0] if channels == 1 else x


def as_dtype(x: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    return (x * 32767).astype(np.int16) if dtype == "int16" else x.astype(dtype)


def streamed(stream: Stream, x: Any, cuts: list[int]) -> NDArray[Any]:
    edges = [0, *sorted(min(c, x.shape[-1]) for c in cuts), x.shape[-1]]
    parts = [stream.process(x[..., a:b]) for a, b in itertools.pairwise(edges)]
    return np.concatenate([np.asarray(part) for part in [*parts, stream.flush()]], axis=-1)


cuttings = st.lists(st.integers(0, 100_000), max_size=40)


@pytest.mark.parametrize(
    ("rate", "dtype"), [*[(rate, "float32") for rate in RATES], (16000, "int16"), (44100, "float64")]
)
def test_every_cutting_gives_the_same_bits(identity: Identity, rate: int, dtype: str) -> None:
    @settings(max_examples=150, deadline=None)
    @given(length=st.integers(0, 20_000), cuts=cuttings)
    def check(length: int, cuts: list[int]) -> None:
        x = as_dtype(noise(length), dtype)
        stream = identity.open_stream(rate)
        cut, whole = streamed(stream, x, cuts), streamed(stream, x, [])
        assert cut.dtype == x.dtype
        assert cut.shape == x.shape
        np.testing.assert_array_equal(cut, whole)

    check()


@pytest.mark.parametrize(("rate", "channels"), [(16000, 1), (44100, 2)])
def test_cutting_with_a_network(tiny: Enhancer, rate: int, channels: int) -> None:
    x = noise(int(1.3 * rate), channels)
    stream = tiny.open_stream(rate, channels)
    whole = streamed(stream, x, [])
    rng = np.random.default_rng(0)
    for count in (1, 3, 30, 300):
        cuts = rng.integers(0, x.shape[-1], count).tolist()
        np.testing.assert_array_equal(streamed(stream, x, cuts), whole)
    np.testing.assert_array_equal(tiny.enhance(x, rate), whole)


@pytest.mark.parametrize("rate", RATES)
def test_aligned_and_of_the_same_level(identity: Identity, rate: int) -> None:
    t = np.arange(2 * rate) / rate
    x = sum(np.sin(2 * np.pi * f * t + f) for f in (110.0, 700.0, 1900.0, 2900.0)).astype(np.float32) * 0.1
    y = streamed(identity.open_stream(rate), x, [])
    inner = slice(rate // 10, -rate // 10)  # the filters see the start and the end as steps
    tolerance = CROSS_FADE_ROUNDING if rate == 16000 else RESAMPLED_TWICE * np.abs(x).max()
    np.testing.assert_allclose(y[inner], x[inner], atol=tolerance)


@pytest.mark.parametrize("rate", RATES)
def test_an_impulse_stays_where_it_is(identity: Identity, rate: int) -> None:
    for position in (rate // 3, rate // 2 + 1, rate + 7):
        x = np.zeros(2 * rate, np.float32)
        x[position] = 1
        assert int(np.abs(streamed(identity.open_stream(rate), x, [])).argmax()) == position


def test_latency_is_exact(identity: Identity) -> None:
    stream = identity.open_stream()
    latency = stream.latency_samples
    assert latency == pytest.approx(0.5 * 16000, rel=0.03)
    assert stream.latency_seconds == latency / 16000
    assert len(stream.process(noise(latency))) == 0
    for _ in range(4):  # the next sample lets a block out, then its length must come again
        ready = len(stream.process(noise(1)))
        assert ready > 0
        assert len(stream.process(noise(ready - 1))) == 0


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_latency_is_a_bound_at_other_rates(identity: Identity, rate: int) -> None:
    stream = identity.open_stream(rate)
    received, returned, most = 0, 0, 0
    chunk = noise(40)
    for _ in range(0, 2 * rate, len(chunk)):
        received, returned = received + len(chunk), returned + len(stream.process(chunk))
        most = max(most, received - returned)
    assert most - len(chunk) <= stream.latency_samples < most + 0.15 * rate


def test_speech_and_noise_add_up(tiny: Enhancer) -> None:
    x = noise(20_000)
    stream = tiny.open_stream()
    parts = [stream.separate(x[:7_000]), stream.separate(x[7_000:]), stream.flush_separate()]
    speech, rest = (np.concatenate(pair) for pair in zip(*parts, strict=True))
    assert np.abs(rest).max() > 1e-3
    np.testing.assert_allclose(speech + rest, x, atol=1e-6 * np.abs(speech).max())


def test_streams_in_threads_do_not_disturb_each_other(tiny: Enhancer) -> None:
    signals = [noise(24_000, seed=seed) for seed in range(3)]
    alone = [streamed(tiny.open_stream(), x, [5_000, 11_000]) for x in signals]
    together: list[Any] = [None] * len(signals)

    def work(index: int) -> None:
        together[index] = streamed(tiny.open_stream(), signals[index], [5_000, 11_000])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(signals))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_array_equal(a, b)


def held(value: Any) -> int:
    """Bytes that tensors in dicts and lists hold on to, also those that are not seen: of a view, its whole base."""
    if isinstance(value, Tensor):
        return value.untyped_storage().nbytes()
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return sum(map(held, parts))


def test_memory_is_flat(identity: Identity) -> None:
    stream, chunk = identity.open_stream(44100, 2), noise(11_025, 2)
    sizes = []
    for _ in range(120):  # half a minute, 10 MB of it
        stream.process(chunk)
        sizes.append(held(stream.state()))
    assert max(sizes[20:]) <= 1.3 * max(sizes[:20])
    assert max(sizes) < 2e6  # two channels of a few blocks


def test_the_built_in_stream_of_an_enhancer(tiny: Enhancer) -> None:
    x = noise(20_000)
    parts = [tiny.process(x[:9_999]), tiny.process(x[9_999:]), tiny.flush()]
    np.testing.assert_array_equal(np.concatenate(parts), streamed(tiny.open_stream(), x, []))
    assert tiny.latency_samples == tiny.open_stream().latency_samples
    tiny.process(x)
    tiny.reset()
    np.testing.assert_array_equal(np.concatenate([tiny.process(x), tiny.flush()]), np.concatenate(parts))


def test_not_a_number_is_taken_for_silence_and_the_stream_recovers(tiny: Enhancer) -> None:
    x = noise(40_000)
    bad = x.copy()
    bad[3_000:3_010] = [np.nan, np.inf, -np.inf] * 3 + [np.nan]
    silenced = np.where(np.isfinite(bad), bad, 0)
    np.testing.assert_array_equal(
        streamed(tiny.open_stream(), bad, [3_005]), streamed(tiny.open_stream(), silenced, [])
    )


def test_silence_in_between(tiny: Enhancer) -> None:
    x = np.concatenate([noise(16_000), np.zeros(32_000, np.float32), noise(16_000)])
    y = streamed(tiny.open_stream(), x, [])
    assert np.isfinite(y).all()
    assert not y[26_000:38_000].any()  # blocks of silence are silent
    assert y[-8_000:].any()


def test_empty_streams(identity: Identity) -> None:
    assert identity.open_stream().flush().shape == (0,)
    stereo = identity.open_stream(44100, 2)
    assert stereo.flush().shape == (2, 0)
    assert stereo.process(np.zeros((2, 0), np.int16)).shape == (2, 0)
    assert stereo.flush().dtype == np.int16


def test_torch_in_torch_out(identity: Identity) -> None:
    stream = identity.open_stream(channels=2)
    x = torch.from_numpy(noise(20_000, 2))
    y = torch.cat([stream.process(x), stream.flush()], dim=1)
    torch.testing.assert_close(y, x, atol=CROSS_FADE_ROUNDING, rtol=0)


@pytest.mark.parametrize("first", [noise(99, 2).astype(np.float64), torch.zeros(1, 99), np.zeros(99, np.int16)])
def test_what_comes_back_after_the_end_has_the_form_of_the_signal(identity: Identity, first: Any) -> None:
    stream = identity.open_stream(channels=len(first) if first.ndim == 2 else 1)
    stream.process(first)
    for empty in (stream.flush()[..., :0], stream.flush()):
        assert (type(empty), empty.dtype, empty.ndim) == (type(first), first.dtype, first.ndim)
        assert empty.shape[-1] == 0


def test_many_channels_and_few_samples(identity: Identity) -> None:
    stream = identity.open_stream(channels=70)
    x = noise(10, 70)
    y = np.concatenate(
        [stream.process(x[:, :7]), stream.process(x[:, :0]), stream.process(x[:, 7:]), stream.flush()], 1
    )
    np.testing.assert_allclose(y, x, atol=1e-6)


def test_tensors_that_come_back_can_be_used_for_everything(identity: Identity) -> None:
    x = torch.from_numpy(noise(20_000))
    stream, other = identity.open_stream(), identity.open_stream()
    for out in (stream.process(x), Enhancer.process_many([other], [x])[0], *stream.flush_separate()):
        weight = torch.ones(1, requires_grad=True)
        (out * weight).sum().backward()
        out += 1
        assert weight.grad is not None


def test_another_default_dtype_of_torch_changes_nothing_for_the_user(tiny: Enhancer) -> None:
    x = noise(20_000)
    expected = streamed(tiny.open_stream(), x, [7_000])
    try:
        torch.set_default_dtype(torch.float64)
        y = streamed(tiny.open_stream(), x, [7_000])
    finally:
        torch.set_default_dtype(torch.float32)
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(y, expected)


def test_a_stream_is_not_copied(identity: Identity) -> None:
    for copied in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(UdseError, match=r"state\(\)"):
            copied(identity.open_stream())


def test_states_of_overlapping_blocks(tiny: Enhancer) -> None:
    x = noise(24_000)
    stream = tiny.open_stream()
    stream.process(x[:11_111])
    state = stream.state()
    expected = np.concatenate([stream.process(x[11_111:]), stream.flush()])
    stream.restore(state)
    np.testing.assert_array_equal(np.concatenate([stream.process(x[11_111:]), stream.flush()]), expected)
    with pytest.raises(UdseError, match=r"blocks 'overlap, 8160 and .*got one with blocks 'overlap, 11220"):
        stream.restore(tiny.open_stream(block_seconds=0.7).state())


@pytest.mark.parametrize("rate", [11025, 44100])
def test_latency_is_the_most_that_is_held_back(identity: Identity, rate: int) -> None:
    stream = identity.open_stream(rate)
    received = returned = most = 0
    for _ in range(40):  # more than the period in which the ends of blocks fall on other samples
        step = stream.latency_samples - (received - returned) - 3  # up to there nothing can come
        for count in (max(0, step), *[1] * 6):
            received, returned = received + count, returned + len(stream.process(noise(count)))
            most = max(most, received - returned)
    assert most == stream.latency_samples


def test_complaints(identity: Identity, tiny: Enhancer) -> None:
    stream = identity.open_stream(channels=2)
    with pytest.raises(UdseError, match="expected 2 channels"):
        stream.process(noise(10))
    stream.process(noise(10, 2))
    expected = r"like the first, \(channels, L\) float32 numpy, got \(channels, L\) float64 numpy; reset"
    with pytest.raises(UdseError, match=expected):
        stream.process(noise(10, 2).astype(np.float64))
    with pytest.raises(UdseError, match=r"got \(L,\) int16 torch"):
        stream.process(torch.zeros(10, dtype=torch.int16))
    with pytest.raises(UdseError, match="channels: expected a whole number"):
        tiny.open_stream(16000, 0)
    assert tiny.open_stream(np.int64(16000), np.int32(2)).channels == 2
    with pytest.raises(UdseError, match="sample_rate: expected"):
        tiny.open_stream(7999)
    with pytest.raises(UdseError, match="block_seconds"):
        tiny.open_stream(block_seconds=0.1)


# -- blocks alone ----------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(length=st.integers(0, 2_000), cuts=st.lists(st.integers(0, 2_000), max_size=20), together=st.integers(1, 4))
def test_blocks_join_to_the_signal(length: int, cuts: list[int], together: int) -> None:
    """Whatever is pushed comes back, once; what is due does not depend on being asked."""
    blocks, x = OverlapBlocks(block=200, overlap=60, guard=10, hop=20, together=together), torch.randn(length)
    out = [torch.zeros(2, 0)]

    def advance() -> None:
        while due := blocks.due():
            assert [b.first_frame for b in blocks.due()] == [b.first_frame for b in due]
            for block in due:
                assert torch.equal(block.signal, x[20 * block.first_frame :][: len(block.signal)])
                out.append(blocks.accept(block, Enhanced(torch.stack([block.signal, -block.signal]), None)))

    for a, b in itertools.pairwise([0, *sorted(min(c, length) for c in cuts), length]):
        blocks.push(x[a:b])
        advance()
    blocks.end()
    advance()
    both = torch.cat([*out, blocks.rest()], dim=1)
    torch.testing.assert_close(both, torch.stack([x, -x]), atol=1e-6, rtol=0)


# -- blocks that fail ------------------------------------------------------------------------------------------------


class Fault(Exception):
    """Of a network."""


def fail_once(monkeypatch: pytest.MonkeyPatch, network: Any, at: int) -> None:
    """Makes the call number `at` of a network fail, counted from 1; those after it do not."""
    calls, evaluate = itertools.count(1), type(network).evaluate

    def failing(*arguments: Any, **keywords: Any) -> Any:
        if next(calls) == at:
            raise Fault
        return evaluate(*arguments, **keywords)

    monkeypatch.setattr(type(network), "evaluate", failing)


@pytest.mark.parametrize(("fail_at", "together"), [(1, 1), (4, 1), (2, 2)])
def test_a_block_that_fails_is_repeated(
    tiny: Enhancer, monkeypatch: pytest.MonkeyPatch, fail_at: int, together: int
) -> None:
    x = noise(24_000, 2)
    expected = streamed(tiny.open_stream(channels=2, batch_blocks=together), x, [12_000])
    stream = tiny.open_stream(channels=2, batch_blocks=together)
    fail_once(monkeypatch, tiny.network, fail_at)
    with pytest.raises(Fault):
        stream.process(x[:, :20_000])
    part = stream.process(x[:, 20_000:])
    fail_once(monkeypatch, tiny.network, 1)
    with pytest.raises(Fault):
        stream.flush()
    np.testing.assert_array_equal(np.concatenate([part, stream.flush()], axis=1), expected)


def test_a_stream_goes_on_after_a_flush_that_failed(tiny: Enhancer, monkeypatch: pytest.MonkeyPatch) -> None:
    x = noise(50_000)
    expected, stream = streamed(tiny.open_stream(44100), x, []), tiny.open_stream(44100)
    parts = [stream.process(x[:30_000])]
    fail_once(monkeypatch, tiny.network, 1)
    with pytest.raises(Fault):
        stream.flush()
    parts += [stream.process(x[30_000:]), stream.flush()]
    np.testing.assert_array_equal(np.concatenate(parts), expected)


def test_a_sampler_that_diverges_in_a_block_does_not_end_the_stream(
    tiny: Enhancer, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = noise(40_000)
    stream, evaluate, calls = tiny.open_stream(), type(tiny.network).evaluate, itertools.count(1)

    def exploding(*arguments: Any, **keywords: Any) -> Any:
        value, variance = evaluate(*arguments, **keywords)
        return value * float("inf") if next(calls) in (1, 9) else value, variance

    monkeypatch.setattr(type(tiny.network), "evaluate", exploding)
    with pytest.warns(RuntimeWarning, match="diverged in a block of a stream") as warned:
        y = streamed(stream, x, [20_000])
    assert len(warned) == 1
    np.testing.assert_allclose(y[:4_000], 0.1 * x[:4_000], atol=1e-6)
    calls = itertools.count(1)
    with pytest.raises(UdseError, match="diverged with 2 steps"):
        tiny.enhance(x, 16000)


def test_fallbacks_are_counted(tiny: Enhancer, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = tiny.open_stream(channels=2)
    monkeypatch.setattr(type(tiny.network), "evaluate", lambda self, s, *_, **__: (s * float("nan"), None))
    with pytest.warns(RuntimeWarning, match="diverged"):
        stream.process(noise(16_000, 2))
    assert stream.fallbacks == 2 * 2
    stream.reset()
    assert stream.fallbacks == 0

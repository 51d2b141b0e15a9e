"""Resampling: against sines in closed form and soxr; alignment, bands, lengths, cuttings, states and delay."""

from __future__ import annotations

import itertools
import pickle
from fractions import Fraction

import numpy as np
import pytest
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from udse_fast import UdseError
from udse_fast.audio.resampling import Resampler

OTHERS = (8000, 11025, 22050, 24000, 32000, 44100, 48000, 96000, 192000)
PAIRS = [pair for rate in OTHERS for pair in ((rate, 16000), (16000, rate))]
FEW = [(44100, 16000), (16000, 44100), (11025, 16000), (48000, 16000), (8000, 16000), (16001, 16000), (16000, 16000)]


def resampled(x: NDArray[np.float32], source: int, target: int, cuts: list[int] | None = None) -> NDArray[np.float32]:
    resampler = Resampler(source, target)
    edges = [0, *sorted(min(c, len(x)) for c in cuts or []), len(x)]
    return np.concatenate([*(resampler.process(x[a:b]) for a, b in itertools.pairwise(edges)), resampler.flush()])


def sine(frequency: float, rate: int, length: int) -> NDArray[np.float64]:
    return np.sin(2 * np.pi * frequency * np.arange(length) / rate + 0.3)


def noise(length: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(length).astype(np.float32)


def inner(y: NDArray[np.floating], rate: int) -> NDArray[np.floating]:
    """Without the ends, which the filter sees as steps."""
    return y[rate // 100 : -rate // 100]


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_a_sine_of_the_passband_is_the_same_sine(source: int, target: int) -> None:
    length = source // 10 + 7
    for fraction in (0.0, 0.01, 0.2, 0.37, 0.45):
        frequency = fraction * min(source, target)
        y = resampled(sine(frequency, source, length).astype(np.float32), source, target)
        # 5e-5 of the amplitude bounds ripple (5e-4 dB), shift (5e-5 / 2 pi f: 1.1 ns at 7.2 kHz) and images
        np.testing.assert_allclose(inner(y, target), inner(sine(frequency, target, len(y)), target), atol=5e-5)


@pytest.mark.parametrize(("source", "target"), [pair for pair in PAIRS if pair[0] > pair[1]])
def test_what_would_alias_is_suppressed(source: int, target: int) -> None:
    for frequency in np.linspace(0.55 * target, 0.5 * source, 20, endpoint=False):
        y = resampled(sine(float(frequency), source, source // 10).astype(np.float32), source, target)
        assert 20 * np.log10(np.abs(inner(y, target)).max()) < -85


@pytest.mark.parametrize(("source", "target"), [pair for pair in PAIRS if pair[0] < pair[1]])
def test_no_images_above_the_band(source: int, target: int) -> None:
    y = inner(resampled(sine(0.4 * source, source, source).astype(np.float32), source, target), target)
    spectrum = np.abs(np.fft.rfft(y * np.kaiser(len(y), 20)))
    frequencies = np.fft.rfftfreq(len(y), 1 / target)
    assert 20 * np.log10(spectrum[frequencies > 0.55 * source].max() / spectrum.max()) < -85


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_agrees_with_the_fourier_series_and_with_soxr(source: int, target: int) -> None:
    length, wanted = source * 2 // 5, target * 2 // 5
    spectrum = np.fft.rfft(noise(length))
    spectrum[np.fft.rfftfreq(length, 1 / source) > 0.43 * min(source, target)] = 0
    x = np.fft.irfft(spectrum, length)
    y = resampled(x.astype(np.float32), source, target)
    cut, peak = slice(target // 20, wanted - target // 20), np.abs(x).max()
    bins = min(len(spectrum), wanted // 2 + 1)
    np.testing.assert_allclose(y[cut], np.fft.irfft(spectrum[:bins], wanted)[cut] * (wanted / length), atol=3e-5 * peak)
    # soxr interpolates its filters where the ratio is not a simple one: to 1.5e-4 of the peak
    np.testing.assert_allclose(y[cut], soxr.resample(x, source, target, quality="VHQ")[cut], atol=2e-4 * peak)


@pytest.mark.parametrize(("source", "target"), [pair for pair in FEW if 16001 not in pair])
def test_the_filter_has_no_phase(source: int, target: int) -> None:
    """An impulse at a time that both rates have gives a symmetrical response there, up to the reach of the filter."""
    periods = Fraction(source, target)
    at, there = periods.numerator * (1 + 600 // periods.numerator), periods.denominator * (1 + 600 // periods.numerator)
    x = np.zeros(2 * at + 1, np.float32)
    x[at] = 1
    y = resampled(x, source, target)
    reach = min(there, len(y) - there - 1)
    after = y[there : there + reach + 1]
    assert int(np.abs(y).argmax()) == there
    np.testing.assert_allclose(after, y[there - reach : there + 1][::-1], atol=2e-5 * np.abs(y).max())


@pytest.mark.parametrize(("source", "target"), FEW)
def test_every_cutting_gives_the_same_bits(source: int, target: int) -> None:
    x = noise(5000)

    @settings(max_examples=40, deadline=None)
    @given(length=st.integers(0, len(x)), cuts=st.lists(st.integers(0, len(x)), max_size=60))
    def check(length: int, cuts: list[int]) -> None:
        whole = resampled(x[:length], source, target)
        assert whole.dtype == np.float32
        assert len(whole) == -(-length * target // source)
        np.testing.assert_array_equal(resampled(x[:length], source, target, cuts), whole)

    check()


@pytest.mark.parametrize(("source", "target"), PAIRS)
@pytest.mark.parametrize("step", [1, 7, 160])
def test_equal_chunks_give_the_same_bits(source: int, target: int, step: int) -> None:
    x = noise(1500)
    np.testing.assert_array_equal(
        resampled(x, source, target, list(range(0, 1500, step))), resampled(x, source, target)
    )


@pytest.mark.parametrize(("source", "target"), FEW)
@pytest.mark.parametrize("at", [0, 1, 40, 1234])
def test_goes_on_from_a_saved_state(source: int, target: int, at: int) -> None:
    x, saved, resumed = noise(3000), Resampler(source, target), Resampler(source, target)
    resumed.process(noise(77))
    before = saved.process(x[:at])
    state = pickle.loads(pickle.dumps(saved.state()))
    saved.process(x[::-1])  # changes neither the state given out nor who goes on from it
    for _ in range(2):
        resumed.restore(state)
        y = np.concatenate([before, resumed.process(x[at:2000]), resumed.process(x[2000:]), resumed.flush()])
        np.testing.assert_array_equal(y, resampled(x, source, target))


def test_a_state_belongs_to_its_rates() -> None:
    with pytest.raises(UdseError, match="from 44100 to 16000 Hz, got one from 48000 to 16000 Hz"):
        Resampler(44100, 16000).restore(Resampler(48000, 16000).state())


@pytest.mark.parametrize(("source", "target"), [*PAIRS, (16000, 16000)])
def test_the_delay_is_exact_and_short(source: int, target: int) -> None:
    resampler, returned, most = Resampler(source, target), 0, 0
    for newest, sample in enumerate(noise(2000)):
        # the next output is overdue if more than `delay` samples follow the sample at (or just before) its time
        most = max(most, newest - returned * source // target)
        returned += len(resampler.process(sample[None]))
    assert most == resampler.delay
    assert resampler.delay <= 0.0037 * source
    if min(source, target) >= 16000:
        assert resampler.delay <= 0.0019 * source


def test_not_a_number_does_not_stay() -> None:
    x = noise(4000)
    x[1000] = np.nan
    y, good = resampled(x, 44100, 16000), resampled(np.nan_to_num(x), 44100, 16000)
    np.testing.assert_array_equal(y[420:], good[420:])

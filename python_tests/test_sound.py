"""What is done to a sound besides enhancing it: hum, the band that the prior does not see, the stereo image."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray

from udse_fast import Enhancer, UdseError
from udse_fast.audio.hum import steady_part
from udse_fast.evaluation.metrics import si_sdr
from udse_fast.streaming.blocks import Enhanced
from udse_fast.streaming.channel import Channel
from udse_fast.streaming.overlap import OverlapBlocks

RATE = 16000
FAST: dict[str, Any] = {"steps": 2, "samples": 1, "precision": "float32"}


def recording(name: str) -> NDArray[np.float32]:
    with as_file(files("udse_fast") / "examples" / f"{name}.flac") as path:
        audio: NDArray[np.float32] = soundfile.read(path, dtype="float32")[0]
    return audio


def hum(length: int, mains: float, amplitude: float = 0.3) -> NDArray[np.float32]:
    t = np.arange(length) / RATE
    lines = {1: 1.0, 2: 0.5, 3: 0.35, 5: 0.2, 7: 0.15}
    return sum(amplitude * a * np.sin(2 * np.pi * k * mains * t + k) for k, a in lines.items()).astype(np.float32)


# -- hum -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mains", [50.0, 60.0, 49.95, 60.03])
@pytest.mark.parametrize("seconds", [0.6, 1.0, 2.0])
def test_hum_is_found_below_speech_and_noise(mains: float, seconds: float) -> None:
    x = recording("noisy")[RATE : RATE + round(seconds * RATE)]
    lines = hum(len(x), mains)
    left = x + lines - steady_part(torch.from_numpy(x + lines), RATE).numpy()
    error = np.mean((left - x) ** 2) / np.mean(lines**2)
    assert error < 10 ** (-25 / 10)


def test_an_offset_is_found() -> None:
    x = recording("noisy")[:RATE]
    found = steady_part(torch.from_numpy(x + 0.5), RATE)
    np.testing.assert_allclose(found, 0.5 + x.mean(), atol=1e-3)


@pytest.mark.parametrize("name", ["clean", "noisy"])
def test_there_is_no_hum_in_speech(name: str) -> None:
    """At no place, in a piece of any length: what a stream sees."""
    x = torch.from_numpy(recording(name))
    for end in range(2_000, len(x), 1_700):
        for length in (2_000, 9_000, 16_000, 32_000):
            piece = x[max(0, end - length) : end]
            assert not steady_part(piece, RATE).any(), (end, length)


@pytest.mark.parametrize("make", [np.zeros, np.ones], ids=["silence", "constant"])
def test_hum_of_what_is_none(make: Any) -> None:
    x = torch.from_numpy(make(RATE).astype(np.float32))
    torch.testing.assert_close(steady_part(x, RATE), x, atol=1e-5, rtol=0)


@pytest.mark.parametrize("causal", [False, True])
def test_hum_changes_little_in_the_result(causal: bool) -> None:
    """20 dB above the speech, with an offset: the speech is as good as without, once half a second has gone by."""
    noisy, clean = recording("noisy"), recording("clean")
    enhancer = Enhancer()
    disturbed = (noisy + hum(len(noisy), 50.0, 0.5) + 0.2).astype(np.float32)
    start = RATE if causal else 0
    plain, result = (
        si_sdr(clean[start:], enhancer.enhance(x, RATE, causal=causal)[start:]) for x in (noisy, disturbed)
    )
    kept = si_sdr(clean[start:], Enhancer(hum="keep").enhance(disturbed, RATE, causal=causal)[start:])
    assert result > plain - 1.5
    assert kept < plain - 2


# -- the band above the prior's --------------------------------------------------------------------------------------


def tone(hertz: float, rate: int) -> NDArray[np.float32]:
    return (0.1 * np.sin(2 * np.pi * hertz * np.arange(rate) / rate)).astype(np.float32)


@pytest.mark.parametrize("rate", [44100, 48000])
@pytest.mark.parametrize(("high_band", "gain"), [("follow", 0.25), ("keep", 1.0), ("cut", 0.0)])
def test_the_band_above(rate: int, high_band: str, gain: float) -> None:
    """A tone below and one above the band, through blocks that leave the speech as it is and give out a gain of 1/4."""
    low, high = tone(1000, rate), tone(13_000, rate)
    channel = Channel(OverlapBlocks(32 * 255, 8 * 255, 255, 255), rate, RATE, high_band=high_band)
    out = []
    for at in range(0, rate, 1_001):
        channel.push((low + high)[at : at + 1_001])
        advance(channel)
        out.append(channel.take()[0])
    channel.end()
    advance(channel)
    channel.finish()
    y = np.concatenate([*out, channel.take()[0]])
    assert len(y) == rate
    inner = slice(rate // 20, -rate // 20)
    np.testing.assert_allclose(y[inner], (low + gain * high)[inner], atol=3e-4)


def advance(channel: Channel) -> None:
    while due := channel.blocks.due():
        for block in due:
            signals = torch.stack([block.signal, torch.full_like(block.signal, 0.25)])
            channel.accept(block, Enhanced(signals, None))


def test_the_band_above_is_no_longer_cut() -> None:
    """Noise from 0 to 24 kHz: what is above 9 kHz is attenuated about as what is below, not more."""
    x = (0.05 * np.random.default_rng(0).standard_normal(48_000)).astype(np.float32)
    for causal in (False, True):
        y = Enhancer(steps=4, samples=1).enhance(x, 48_000, causal=causal)
        spectrum = np.abs(np.fft.rfft(np.stack([x, y]))) ** 2
        below, above = (spectrum[:, lo:hi].sum(1) for lo, hi in ((5_000, 7_500), (9_000, 24_000)))
        assert abs(10 * np.log10(below[1] / below[0]) - 10 * np.log10(above[1] / above[0])) < 3


def test_rates_that_have_no_band_above(tiny_checkpoint: Path) -> None:
    x = tone(700, 8_000)
    results = [Enhancer(tiny_checkpoint, **FAST, high_band=how).enhance(x, 8_000) for how in ("follow", "keep", "cut")]
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


# -- stereo ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["speech", "causal"])
def test_a_common_gain_keeps_the_image(tiny_checkpoints: dict[str, Path], kind: str) -> None:
    enhancer = Enhancer(tiny_checkpoints[kind], "ddrm", **FAST, stereo="common")
    x = 0.1 * np.random.default_rng(0).standard_normal(9_000).astype(np.float32)
    for right in (1.0, -1.0, 0.5):
        y = enhancer.enhance(np.stack([x, right * x]), RATE, causal=kind == "causal")
        np.testing.assert_allclose(y[1], right * y[0], atol=1e-6)
    assert not enhancer.enhance(np.stack([x, 0 * x]), RATE, causal=kind == "causal")[1].any()


def test_channels_of_their_own_do_not_cancel(tiny_checkpoint: Path) -> None:
    x = 0.1 * np.random.default_rng(0).standard_normal(9_000).astype(np.float32)
    y = Enhancer(tiny_checkpoint, "ddrm", **FAST).enhance(np.stack([x, -x]), RATE)
    assert np.abs(y.sum(0)).max() > 1e-3 * np.abs(y).max()


def test_a_common_gain_in_streams_cut_anywhere(tiny_checkpoints: dict[str, Path]) -> None:
    enhancer = Enhancer(tiny_checkpoints["causal"], "ddrm", **FAST, stereo="common")
    x = 0.1 * np.random.default_rng(0).standard_normal((2, 30_000)).astype(np.float32)
    stream = enhancer.open_stream(48_000, 2)
    parts = [stream.process(x[:, at : at + 700]) for at in range(0, 30_000, 700)]
    y = np.concatenate([*parts, stream.flush()], axis=1)
    np.testing.assert_array_equal(y, enhancer.enhance(x, 48_000, causal=True))


@pytest.mark.parametrize("setting", ["hum", "stereo", "high_band"])
def test_words_that_are_none(tiny_checkpoint: Path, setting: str) -> None:
    with pytest.raises(UdseError, match=f"{setting}: expected one of .*, got 'no'"):
        Enhancer(tiny_checkpoint, **{setting: "no"})

"""`Restraint`: speech that was taken for noise is given back, noise is not; in Python and in the core's streams."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray
from torch import Tensor

from udse_fast import Enhancer
from udse_fast.audio.spectral import Spectral
from udse_fast.evaluation.metrics import si_sdr
from udse_fast.sampling.restraint import Restraint, erb_bands
from udse_fast.streaming.native import NativeStream
from udse_fast.streaming.stream import Stream

DATA = Path(__file__).parent / "data"
SPECTRAL = Spectral(n_fft=510, hop_length=255, window="sqrt_hann")
RATE = 16000


def speech() -> Tensor:
    samples, _ = soundfile.read(DATA / "cases" / "speech_4s.flac", dtype="float32")
    return SPECTRAL.stft(torch.from_numpy(samples))


def white(like: Tensor, snr_db: float) -> Tensor:
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal((like.shape[1] - 1) * SPECTRAL.hop_length))
    spectra = SPECTRAL.stft(noise.float())
    return spectra * (like.abs().square().sum() / spectra.abs().square().sum()).sqrt() * 10 ** (-snr_db / 20)


def without_sibilants(clean: Tensor) -> Tensor:
    """What a sampler that takes bright sounds for bursts of noise leaves of clean speech."""
    half = SPECTRAL.bins // 4  # 2 kHz
    power = clean.abs().square()
    bright = power[half:].sum(0) > 0.5 * power.sum(0)
    lost = clean.clone()
    lost[half:, bright] *= 0.2
    return lost


def restrained(estimate: Tensor, mixture: Tensor) -> Tensor:
    restraint = Restraint(SPECTRAL)
    return restraint(estimate, mixture, restraint.nothing)[0]


def error_db(estimate: Tensor, clean: Tensor) -> float:
    return float(10 * ((estimate - clean).abs().square().sum() / clean.abs().square().sum()).log10())


def test_speech_that_was_taken_for_noise_is_given_back() -> None:
    clean = speech()
    estimate = without_sibilants(clean)
    assert error_db(estimate, clean) > -25
    assert error_db(restrained(estimate, clean), clean) < error_db(estimate, clean) - 15


@pytest.mark.parametrize("snr_db", [-5, 5, 15])
def test_noise_that_is_there_between_the_words_stays_away(snr_db: float) -> None:
    """A perfect estimate, one that leaves a fifth of the noise, and one that lost its sibilants, too."""
    clean = speech()
    noise = white(clean, snr_db)
    for estimate in (clean, clean + 0.2 * noise, without_sibilants(clean)):
        assert error_db(restrained(estimate, clean + noise), estimate) < -snr_db - 30


def test_at_a_high_snr_it_gives_back_what_noise_does_not_account_for() -> None:
    clean = speech()
    noise, estimate = white(clean, 35), without_sibilants(clean)
    given_back = restrained(estimate, clean + noise)
    assert error_db(given_back, clean) < error_db(estimate, clean) - 10
    assert error_db(given_back, clean) < -30


def test_clicks_between_the_words_are_no_speech() -> None:
    """Of a keyboard in a quiet room, ten times a second all the time."""
    clean = speech()
    clicks = torch.zeros_like(clean)
    clicks[:, ::6] = white(clean, 10)[:, ::6] * 6**0.5
    assert error_db(restrained(clean, clean + clicks), clean) < -35


def reference(estimate: NDArray[np.complex64], mixture: NDArray[np.complex64]) -> NDArray[np.complex128]:
    """The formulas of the module, frame by frame and band by band."""
    x, s = mixture.astype(complex), estimate.astype(complex)
    r, bands = np.abs(x - s) ** 2, erb_bands(len(x), RATE / 510).numpy().astype(float)
    frames = range(x.shape[1])
    mixed, spoken = (np.abs(x) ** 2).sum(0), (np.abs(s) ** 2).sum(0)
    taken = np.stack([[(band * r[:, t]).sum() for t in frames] for band in bands]) + 1e-10 * mixed.mean()
    sounds = [t for t in frames if mixed[t] > 1e-7 * mixed.max()]
    mean = taken[:, sounds].mean(1)
    snr = 10 * np.log10(spoken[sounds].sum() / (len(sounds) * mean.sum()) + 1e-6)
    words = [spoken[max(0, t - 15) : t + 16].max() for t in frames]
    pauses = []
    for power in (words, mixed):
        border = sorted(power[t] for t in sounds)[int(0.12 * len(sounds)) - 1]
        pauses.append(taken[:, [t for t in sounds if power[t] <= border]].mean(1))
    u, v = np.clip((snr - 18) / 6, 0, 1), np.clip((snr - 15) / 10, 0, 1)
    N = pauses[0] ** (1 - u) * pauses[1] ** u
    evidence = max(snr, 0) + 10 * np.log10(mean.sum() / (pauses[0].sum() ** (1 - u) * pauses[1].sum() ** u))
    e = np.clip((evidence - 14) / 4, 0, 1)
    out = s.copy()
    for t in frames:
        near = taken[:, max(0, t - 2) : t + 3].mean(1)
        E = 8 * np.maximum(0, np.minimum(near, 10**v * mean) - (4 - 3 * v) * N)
        out[:, t] += (bands.T @ (e * E / (N + E))) * (x[:, t] - s[:, t])
    return out


@pytest.mark.parametrize("snr_db", [12, 18, 22, 30, 60])
def test_it_is_what_the_formulas_say(snr_db: float) -> None:
    clean = speech()
    mixture, estimate = clean + white(clean, snr_db), without_sibilants(clean)
    expected = reference(estimate.numpy(), mixture.numpy())
    np.testing.assert_allclose(restrained(estimate, mixture).numpy(), expected, atol=1e-4 * np.abs(expected).max())


def test_bands_add_up_to_one() -> None:
    np.testing.assert_allclose(erb_bands(256, 31.4).sum(0), 1, atol=1e-6)
    assert (erb_bands(256, 31.4) >= 0).all()


def test_level_does_not_matter() -> None:
    clean = speech()
    mixture, estimate = clean + white(clean, 30), without_sibilants(clean)
    loud = restrained(1000 * estimate, 1000 * mixture) / 1000
    np.testing.assert_allclose(loud, restrained(estimate, mixture), atol=1e-5 * float(clean.abs().max()))


@pytest.mark.parametrize("frames", [1, 30])
def test_without_half_a_second_there_is_no_evidence(frames: int) -> None:
    clean = speech()[:, :frames]
    estimate = without_sibilants(clean)
    assert torch.equal(restrained(estimate, clean), estimate)


def test_what_is_not_finite_or_nothing_stays_as_it_is() -> None:
    clean = speech()
    assert torch.equal(restrained(clean, clean), clean)
    silence = torch.zeros_like(clean)
    assert torch.equal(restrained(silence, silence), silence)
    broken = clean.clone()
    broken[3, 50] = float("nan")
    assert restrained(broken, clean).isnan().any()


def in_blocks(estimate: Tensor, mixture: Tensor) -> tuple[Tensor, Tensor]:
    """As a stream has it: the speech, and what is recent at the end."""
    restraint = Restraint(SPECTRAL, goes_on=True)
    recent, parts = restraint.nothing, []
    for start in range(0, mixture.shape[1], 2):
        part, recent = restraint(estimate[:, start : start + 2], mixture[:, start : start + 2], recent)
        parts.append(part)
    return torch.cat(parts, 1), recent


def test_blocks_of_a_signal_know_what_was_heard_before() -> None:
    """Block by block nearly what all at once gives, once there is something to go by; nothing is kept for ever."""
    clean = torch.cat([speech()] * 2, 1)
    estimate = without_sibilants(clean)
    out, recent = in_blocks(estimate, clean)
    late = slice(160, None)  # two and a half seconds
    assert error_db(out[:, late], clean[:, late]) < error_db(estimate[:, late], clean[:, late]) - 8
    assert recent.shape == (10, 251)


@pytest.mark.parametrize("snr_db", [0, 10])
def test_noise_that_begins_in_a_stream_goes_within_half_a_second(snr_db: float) -> None:
    """The pauses before it are silent, and the next ones are to come."""
    clean = speech()
    noise = white(clean, snr_db)
    noise[:, :150] = 0
    out, _ = in_blocks(clean, clean + noise)
    late = slice(182, None)
    assert error_db(out[:, late], clean[:, late]) < -snr_db - 25


@pytest.mark.parametrize("snr_db", [40, 5])
def test_the_core_gives_what_python_gives(snr_db: float) -> None:
    """Of speech with hardly any noise, which restraint changes once it has heard some; and of noisy speech."""
    samples, _ = soundfile.read(DATA / "cases" / "speech_4s.flac", dtype="float32")
    samples = samples[: 3 * RATE]
    noise = np.random.default_rng(0).standard_normal(len(samples)) * np.sqrt(np.mean(samples**2))
    noisy = (samples + noise * 10 ** (-snr_db / 20)).astype(np.float32)
    enhancer, out = Enhancer(device="cpu"), {}
    for restraint in ("auto", "off"):
        native = enhancer.open_stream(RATE, restraint=restraint)
        assert isinstance(native, NativeStream)
        out[restraint] = np.concatenate([native.process(noisy), native.flush()])
    late = slice(2 * RATE, None)
    gained = si_sdr(samples[late], out["auto"][late]) - si_sdr(samples[late], out["off"][late])
    if snr_db == 5:
        assert abs(gained) < 0.1
        return
    assert gained > 5
    python = Stream(enhancer.open_stream(RATE).enhancer, RATE, 1)
    assert si_sdr(np.concatenate([python.process(noisy), python.flush()]), out["auto"]) > 50

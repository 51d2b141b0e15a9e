"""Metrics against closed forms, and against scores that other programs gave to the same mixtures."""

import importlib
import math
from pathlib import Path

import numpy as np
import pytest
import soundfile

from udse_fast.errors import UdseError
from udse_fast.evaluation import metrics

DATA = Path(__file__).parent / "data"
RATE = 16000

# Scores of the noisy input, made elsewhere and from unrounded recordings; DNSMOS, which is slow, for one.
PUBLISHED = [
    ("ls8088_clean", "ls8088_fireplace_noise", 5,
     {"si_sdr": 5.0004, "pesq_wb": 1.0869, "pesq_nb": 1.8470, "pesq_nb_raw": 2.2400, "estoi": 0.7690}),
    ("ls6925_clean", "ls6925_exercisebike_noise", 0,
     {"si_sdr": 0.0081, "pesq_wb": 1.0364, "pesq_nb": 1.2171, "pesq_nb_raw": 1.2097, "estoi": 0.4630,
      "dnsmos_sig": 2.2431, "dnsmos_bak": 1.4551, "dnsmos_ovrl": 1.4248}),
    ("lo533_clean", "lo533_fire_noise", 10,
     {"si_sdr": 9.9966, "pesq_wb": 1.3626, "pesq_nb": 2.3167, "pesq_nb_raw": 2.6430, "estoi": 0.7106}),
]  # fmt: skip
REQUANTISED = {"si_sdr": 2e-4, "estoi": 2e-4, "pesq": 1e-3, "dnsmos": 1e-2}
"""The recordings here are 16-bit at half the level of those that were scored."""


def mixture(clean_name, noise_name, snr):
    clean, _ = soundfile.read(DATA / f"{clean_name}.flac")
    noise, _ = soundfile.read(DATA / f"{noise_name}.flac")
    clean, noise = 2 * clean, 2 * noise[: len(clean)]
    noisy = clean + noise * np.sqrt(np.sum(clean**2) / np.sum(noise**2) / 10 ** (snr / 10))
    scale = min(1.0, 0.98 / np.max(np.abs(noisy)))
    return clean * scale, noisy * scale


def tones(*hertz):
    """One second of sines: whole periods, hence exactly orthogonal, each of energy RATE/2."""
    t = np.arange(RATE) / RATE
    return [np.sin(2 * np.pi * f * t) for f in hertz]


@pytest.mark.parametrize(("clean", "noise", "snr", "published"), PUBLISHED)
def test_published_scores(clean, noise, snr, published):
    speech, noisy = mixture(clean, noise, snr)
    families = [f for f in metrics.FAMILIES if f != "dnsmos" or "dnsmos_sig" in published]
    scores = metrics.score(speech, noisy, noisy, RATE, families)
    assert list(scores) == [name for f in families for name in metrics.FAMILIES[f]]
    for name, value in published.items():
        tolerance = next(t for prefix, t in REQUANTISED.items() if name.startswith(prefix))
        assert scores[name] == pytest.approx(value, abs=tolerance), name


@pytest.mark.parametrize("snr", [-15.0, 0.0, 7.3])
@pytest.mark.parametrize("gain", [1e-3, -2.0])
def test_si_sdr_of_orthogonal_noise_is_the_snr_at_any_gain(snr, gain):
    speech, noise = tones(440, 1000)
    assert metrics.si_sdr(speech, gain * (speech + 10 ** (-snr / 20) * noise)) == pytest.approx(snr)


def test_si_sdr_keeps_the_mean():
    (speech,) = tones(440)
    # a constant of energy RATE * c^2 against the tone's RATE / 2
    assert metrics.si_sdr(speech, speech + 0.1) == pytest.approx(10 * np.log10(0.5 / 0.01))


def test_decomposition_of_orthogonal_parts():
    speech, noise, artefact = tones(440, 1000, 3100)
    si_sdr, si_sir, si_sar = metrics.si_sir_sar(speech, noise, 3 * speech + 0.3 * noise + 0.06 * artefact)
    assert si_sir == pytest.approx(20.0)
    assert si_sar == pytest.approx(20 * np.log10(50))
    # distortions add in energy: 1/SDR = 1/SIR + 1/SAR
    assert 10 ** (-si_sdr / 10) == pytest.approx(10 ** (-si_sir / 10) + 10 ** (-si_sar / 10))


def test_mixture_of_correlated_parts_has_the_papers_finite_si_sar():
    speech, other = tones(440, 1000)
    noise = 0.01 * speech + math.sqrt(1 - 0.01**2) * other  # correlation 0.01 at equal energy
    # estimate s + n: target 1.01 s, interference 1.01 n, artefact -0.01 (s + n) of energy 0.01^2 (2 + 0.02)
    si_sar = metrics.si_sir_sar(speech, noise, speech + noise)[2]
    assert si_sar == pytest.approx(10 * np.log10(1.01**2 / (0.01**2 * 2.02)))


def test_raw_pesq_inverts_p_862_1():
    for raw in (-0.5, 1.0, 2.0, 3.3, 4.5):
        mos_lqo = 0.999 + (4.999 - 0.999) / (1 + math.exp(-1.4945 * raw + 4.6607))
        assert metrics.raw_pesq(mos_lqo) == pytest.approx(raw, abs=1e-9)


def test_ends_of_the_scales():
    speech, noisy = mixture(*PUBLISHED[0][:3])
    assert metrics.pesq_wb(speech, speech) == pytest.approx(4.644, abs=1e-3)  # P.862.2 of raw 4.5
    assert metrics.pesq_nb(speech, speech) == pytest.approx(4.549, abs=1e-3)  # P.862.1 of raw 4.5
    assert metrics.pesq_nb_raw(speech, speech) == pytest.approx(4.5, abs=1e-3)
    assert metrics.estoi(speech, speech) == pytest.approx(1.0)
    assert metrics.score(speech, noisy, speech, RATE, ["si"])["si_sdr"] == math.inf


@pytest.mark.parametrize("name", ["silent estimate", "silent reference", "both silent", "too short", "no speech level"])
def test_undefined_is_nan_and_never_an_error(name):
    speech, noisy = mixture(*PUBLISHED[0][:3])
    speech, noisy = speech[:RATE], noisy[:RATE]
    silence = np.zeros_like(speech)
    clean, estimate = {
        "silent estimate": (speech, silence),
        "silent reference": (silence, noisy),
        "both silent": (silence, silence),
        "too short": (speech[:200], noisy[:200]),
        "no speech level": (1e-9 * speech, 1e-9 * noisy),
    }[name]
    scores = metrics.score(clean, clean + 0.1, estimate, RATE, ["si", "pesq", "estoi"])
    assert list(scores) == [n for f in ("si", "pesq", "estoi") for n in metrics.FAMILIES[f]]
    if name != "no speech level":
        assert math.isnan(scores["pesq_wb"])
        assert math.isnan(scores["estoi"])


def test_long_signals_cannot_crash_pesq(monkeypatch):
    speech, noisy = mixture(*PUBLISHED[0][:3])
    expected = metrics.pesq_wb(speech, noisy)
    monkeypatch.setattr(metrics, "PESQ_SAFE_SAMPLES", 0)
    assert metrics.pesq_wb(speech, noisy) == pytest.approx(expected, rel=1e-12)
    crash = ["-c", "import os; os.abort()"]
    run = metrics.subprocess.run
    monkeypatch.setattr(metrics.subprocess, "run", lambda command, **rest: run([command[0], *crash], **rest))
    assert math.isnan(metrics.pesq_wb(speech, noisy))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.ones(10), np.ones(10), np.ones(9), RATE), "one length"),
        ((np.ones((2, 10)), np.ones((2, 10)), np.ones((2, 10)), RATE), "mono"),
        ((np.ones(0), np.ones(0), np.ones(0), RATE), "mono"),
        ((np.ones(10), np.ones(10), np.full(10, np.nan), RATE), "finite"),
        ((np.ones(10), np.ones(10), np.ones(10), 8000), "16000"),
    ],
)
def test_bad_signals_are_one_line_errors(arguments, message):
    with pytest.raises(UdseError, match=message) as caught:
        metrics.score(*arguments)
    assert "\n" not in str(caught.value)


def test_missing_package_says_what_to_install(monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(UdseError, match=r"pip install udse-fast\[evaluate\]"):
        metrics.pesq_wb(np.ones(RATE), np.ones(RATE))

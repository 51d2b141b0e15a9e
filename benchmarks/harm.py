"""What enhancement does to sounds that there is nothing to take from, or nothing to keep of:
`python benchmarks/harm.py [SPEECH ...] > results/harm.md`.

Clean speech as it is, with a little noise, in a room, over the telephone, of two talkers, whispered and sung: SI-SDR
to what should come out, in dB (the mean over the recordings, and the worst). Noise alone: what is left of it after its
first second, in dB. SPEECH are recordings of clean speech beside the one that comes with the package; their first 6 s.
"""

from __future__ import annotations

import argparse
import importlib.resources
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray

import udse_fast
from udse_fast.commands.info import processor
from udse_fast.evaluation.metrics import si_sdr

RATE, SECONDS = 16000, 6
Samples = NDArray[np.float64]


def recordings(paths: list[Path]) -> list[Samples]:
    """Clean speech, (L,) each."""
    with importlib.resources.as_file(importlib.resources.files("udse_fast") / "examples/clean.flac") as path:
        audio = [soundfile.read(each) for each in (path, *paths)]
    if wrong := [rate for _, rate in audio if rate != RATE]:
        raise SystemExit(f"expected recordings at {RATE} Hz, got one at {wrong[0]} Hz")
    return [x[: SECONDS * RATE] for x, _ in audio]


def filtered(x: Samples, gain: Callable[[Samples], Samples]) -> Samples:
    """By a gain over the frequencies in Hz."""
    hertz = np.fft.rfftfreq(len(x), 1 / RATE)
    return np.fft.irfft(np.fft.rfft(x) * gain(hertz), len(x))


def with_noise(x: Samples, rng: np.random.Generator, snr: float, pink: bool = False) -> Samples:
    noise = rng.standard_normal(len(x))
    if pink:
        noise = filtered(noise, lambda f: 1 / np.sqrt(np.maximum(f, 30)))
    return x + noise * np.sqrt((x**2).mean() / (noise**2).mean() / 10 ** (snr / 10))


def reverberant(x: Samples, rng: np.random.Generator) -> Samples:
    """In a room of 0.5 s reverberation time, direct sound and reverberation about equal in power."""
    time = np.arange(RATE // 2) / RATE
    response = rng.standard_normal(len(time)) * 10 ** (-3 * time / 0.5) * (time > 0.003)
    response /= np.sqrt((response**2).sum())
    response[0] = 1
    size = len(x) + len(response)
    return np.fft.irfft(np.fft.rfft(x, size) * np.fft.rfft(response, size), size)[: len(x)]


def excited(x: Samples, source: Samples) -> Samples:
    """The spectral envelopes of x on another excitation."""
    frame, hop = 512, 128
    window = np.hanning(frame)
    out = np.zeros(len(x) + frame)
    lifter = (np.arange(frame) < 30) | (np.arange(frame) > frame - 30)
    for at in range(0, len(x) - frame, hop):
        log = np.log(np.abs(np.fft.fft(window * x[at : at + frame])) + 1e-4)
        envelope = np.exp(np.fft.fft(np.fft.ifft(log) * lifter).real)
        spectrum = np.fft.fft(window * source[at : at + frame])
        out[at : at + frame] += window * np.fft.ifft(envelope * spectrum / (np.abs(spectrum).mean() + 1e-9)).real
    return out[: len(x)] * 0.7 * np.abs(x).max() / np.abs(out).max()


def sung(length: int) -> Samples:
    """Pulses at 220 Hz with vibrato."""
    turns = np.cumsum(220 * (1 + 0.02 * np.sin(2 * np.pi * 5 * np.arange(length) / RATE))) / RATE
    return np.asarray((np.diff(np.floor(turns), prepend=0) > 0).astype(float))


def telephone(x: Samples) -> Samples:
    return filtered(x, lambda f: ((f > 300) & (f < 3400)).astype(float))


def kept(speech: list[Samples]) -> dict[str, list[tuple[Samples, Samples]]]:
    """Case -> pairs of what goes in and what should come out."""
    rng = np.random.default_rng(0)
    others = [*speech[1:], speech[0][::-1]]
    cases = {"clean": [(x, x) for x in speech]}
    for snr in (40, 30, 20):
        cases[f"white noise {snr} dB below"] = [(with_noise(x, rng, snr), x) for x in speech]
    cases["pink noise 30 dB below"] = [(with_noise(x, rng, 30, pink=True), x) for x in speech]
    changed: dict[str, Callable[[Samples, Samples], Samples]] = {
        "in a room": lambda x, _: reverberant(x, rng),
        "over the telephone": lambda x, _: telephone(x),
        "two talkers": lambda x, other: x[: len(other)] + other[: len(x)],
        "whispered": lambda x, _: excited(x, rng.standard_normal(len(x))),
        "sung": lambda x, _: excited(x, sung(len(x))),
    }
    for name, change in changed.items():
        made = [change(x, other) for x, other in zip(speech, others, strict=True)]
        cases[name] = [(x, x) for x in made]
    return cases


def noises() -> dict[str, Samples]:
    rng = np.random.default_rng(1)
    white = rng.standard_normal(SECONDS * RATE)
    spectra: dict[str, Callable[[Samples], Samples]] = {
        "white": np.ones_like,
        "pink": lambda f: 1 / np.sqrt(np.maximum(f, 30)),
        "brown": lambda f: 1 / np.maximum(f, 30),
        "of a fan (peaks at 120, 240 and 1,100 Hz)": lambda f: (
            0.05 + sum(np.exp(-(((f - c) / w) ** 2)) for c, w in ((120, 8), (240, 12), (1100, 300)))
        ),
    }
    return {name: 0.03 * (y := filtered(white, gain)) / y.std() for name, gain in spectra.items()}


def decibels(x: Samples) -> float:
    return float(10 * np.log10((x[RATE:] ** 2).mean() + 1e-20))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("speech", type=Path, nargs="*", metavar="SPEECH")
    paths = parser.parse_args().speech
    speech = recordings(paths)
    systems: dict[str, Callable[[Samples], Samples]] = {}
    for sampler in ("amortised_ddrm", "ddrm", "amortised"):
        enhancer = udse_fast.Enhancer(sampler=sampler, precision="float32", device="cpu")
        systems[f"`{sampler}`"] = partial(enhancer.enhance, sample_rate=RATE)
    default = udse_fast.Enhancer(precision="float32", device="cpu")
    systems["causal stream"] = partial(default.enhance, sample_rate=RATE, causal=True)

    print("# What it does to speech without noise, and to noise without speech\n")
    print(
        f"`python benchmarks/harm.py {' '.join(path.name for path in paths)}`: {len(speech)} recordings with the\n"
        f"package's example, float32, torch {torch.__version__}, {processor()}.\n"
    )
    head = f"| {' | '.join(systems)} |\n| {' | '.join(['---'] * (len(systems) + 1))} |"
    print("SI-SDR to what should come out, dB: mean (worst). In brackets behind the name: of what goes in.\n")
    print(f"| speech {head}")
    for name, pairs in kept(speech).items():
        before = "" if pairs[0][0] is pairs[0][1] else f" [{np.mean([si_sdr(s, x) for x, s in pairs]):.1f}]"
        cells = []
        for enhance in systems.values():
            values = [si_sdr(s, enhance(x)) for x, s in pairs]
            cells.append(f"{np.mean(values):.1f} ({min(values):.1f})")
        print(f"| {name}{before} | {' | '.join(cells)} |", flush=True)
    print("\nWhat is left of noise alone, dB.\n")
    print(f"| noise {head}")
    for name, x in noises().items():
        cells = [f"{decibels(enhance(x)) - decibels(x):.1f}" for enhance in systems.values()]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

"""Noise variances V (F, T) drawn at random: what a posterior network is trained on in place of noise recordings.

A V is the sum of one to six sources. A source has a spectrum (tilted, resonant, narrow, harmonic) and an activation
over time (steady, swelling, modulated, bursts, on and off, turning), or is a texture whose bands move on their own.
Nothing here has heard a recording of noise; the kinds are those that textbooks of room acoustics and of machines name.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

FRAMES_PER_SECOND = 16000 / 255
BIN_HERTZ = 16000 / 510
QUIETEST = -12.0
"""Nepers below its loudest bin at which a source ends."""


def smooth_curve(rng: np.random.Generator, length: int, knots: int, deviation: float) -> Array:
    """(length,) of the given standard deviation at the knots, smoothly interpolated between them."""
    values = rng.normal(0, deviation, knots + 2)
    position = np.linspace(0, knots, length)
    left = np.minimum(position.astype(int), knots)
    share = position - left
    share = share * share * (3 - 2 * share)
    return np.asarray(values[left] * (1 - share) + values[left + 1] * share)


def texture(rng: np.random.Generator, shape: tuple[int, int], knots: tuple[int, int], deviation: float) -> Array:
    """(F, T) random field, smooth over `knots` (bands, times) of the whole."""
    over_bands = np.stack([smooth_curve(rng, shape[1], knots[1], deviation) for _ in range(knots[0] + 2)])
    position = np.linspace(0, knots[0], shape[0])
    left = np.minimum(position.astype(int), knots[0])
    share = (position - left)[:, None]
    share = share * share * (3 - 2 * share)
    return np.asarray(over_bands[left] * (1 - share) + over_bands[left + 1] * share)


# -- spectra, in nepers of amplitude ------------------------------------------------------------------------------


def _tilted(rng: np.random.Generator, bins: int) -> Array:
    """-10 to +4 dB an octave above a corner, as brown, pink, white and blue noise have."""
    octaves = np.log2(np.maximum(np.arange(bins) * BIN_HERTZ, 20.0) / rng.uniform(40, 1000))
    slope = rng.uniform(-10, 4) / 8.686
    return np.asarray(slope * np.maximum(octaves, 0 if rng.random() < 0.5 else -6))


def _resonant(rng: np.random.Generator, bins: int) -> Array:
    """One to four broad peaks: rooms, housings, pipes."""
    spectrum = np.zeros(bins)
    for _ in range(rng.integers(1, 5)):
        centre, width = bins * rng.random() ** 1.5, rng.uniform(2, 40)
        spectrum += rng.uniform(0.5, 3) * np.exp(-0.5 * ((np.arange(bins) - centre) / width) ** 2)
    return spectrum


def _narrow(rng: np.random.Generator, bins: int) -> Array:
    """One band, the rest far below: whistles, hiss of valves, squeaks."""
    centre, width = bins * rng.random() ** 1.3, np.exp(rng.uniform(np.log(1), np.log(40)))
    return np.asarray(np.maximum(-0.5 * ((np.arange(bins) - centre) / width) ** 2, QUIETEST))


def _speech_shaped(rng: np.random.Generator, bins: int) -> Array:
    """The long-term spectrum of speech: flat to 500 Hz, then falling by 6 to 12 dB an octave, with formants."""
    octaves = np.log2(np.maximum(np.arange(bins) * BIN_HERTZ, 30.0) / rng.uniform(350, 800))
    fall = np.where(octaves > 0, -rng.uniform(6, 12), rng.uniform(0, 6)) / 8.686 * octaves
    return np.asarray(fall + smooth_curve(rng, bins, 14, 0.5))


SPECTRA: tuple[tuple[float, Callable[[np.random.Generator, int], Array]], ...] = (
    (0.4, _tilted),
    (0.2, _resonant),
    (0.15, _narrow),
    (0.25, _speech_shaped),
)


# -- activations, in nepers of amplitude --------------------------------------------------------------------------


def _steady(rng: np.random.Generator, frames: int) -> Array:
    return smooth_curve(rng, frames, int(rng.integers(1, 4)), rng.uniform(0, 0.4))


def _swelling(rng: np.random.Generator, frames: int) -> Array:
    seconds = frames / FRAMES_PER_SECOND
    return smooth_curve(rng, frames, max(1, round(seconds * rng.uniform(0.5, 3))), rng.uniform(0.4, 1.5))


def _modulated(rng: np.random.Generator, frames: int) -> Array:
    """An envelope of 2 to 10 Hz, shallower than that of one voice: voices far away, applause, fans."""
    seconds = frames / FRAMES_PER_SECOND
    return smooth_curve(rng, frames, max(2, round(2 * seconds * rng.uniform(2, 10))), rng.uniform(0.15, 0.6))


def _bursts(rng: np.random.Generator, frames: int) -> Array:
    """Events at random times, each with its level and a decay of 5 to 500 ms: steps, knocks, keys, rain, clicks."""
    seconds = frames / FRAMES_PER_SECOND
    rate = np.exp(rng.uniform(np.log(0.5), np.log(20)))
    hits = np.zeros(frames)
    hits[rng.integers(0, frames, max(1, rng.poisson(rate * seconds)))] = 1
    hits *= np.exp(rng.normal(0, rng.uniform(0, 1.0), frames))
    decay = np.exp(rng.uniform(np.log(0.005), np.log(0.5))) * FRAMES_PER_SECOND
    length = int(min(frames, 6 * decay + 2))
    kernel = np.exp(-np.arange(length) / decay)
    if rng.random() < 0.3:  # a slow attack
        kernel = np.convolve(kernel, np.ones(int(rng.integers(2, 8))))[:length]
    return np.asarray(np.log(np.convolve(hits, kernel)[:frames] / kernel.max() + np.exp(-rng.uniform(3, 10))))


def _on_and_off(rng: np.random.Generator, frames: int) -> Array:
    seconds = frames / FRAMES_PER_SECOND
    gate = smooth_curve(rng, frames, max(2, round(seconds * rng.uniform(1, 6))), 1.0) > rng.normal(0, 0.5)
    return np.where(gate, 0.0, -rng.uniform(2, 10))


def _turning(rng: np.random.Generator, frames: int) -> Array:
    """Periodic, at 0.5 to 20 turns a second."""
    phase = 2 * np.pi * np.arange(frames) / FRAMES_PER_SECOND * np.exp(rng.uniform(np.log(0.5), np.log(20)))
    phase = phase + smooth_curve(rng, frames, 4, 1.0) + rng.uniform(0, 6.3)
    return np.asarray(rng.uniform(0.3, 1.5) * (np.cos(phase) + rng.uniform(0, 0.5) * np.cos(2 * phase + 1)))


ACTIVATIONS: tuple[tuple[float, Callable[[np.random.Generator, int], Array]], ...] = (
    (0.28, _steady),
    (0.16, _swelling),
    (0.14, _modulated),
    (0.24, _bursts),
    (0.1, _on_and_off),
    (0.08, _turning),
)


# -- sources, (F, T) in nepers of amplitude -----------------------------------------------------------------------


def _chosen(
    rng: np.random.Generator, kinds: tuple[tuple[float, Callable[[np.random.Generator, int], Array]], ...]
) -> Callable[[np.random.Generator, int], Array]:
    shares = np.array([share for share, _ in kinds])
    return kinds[int(rng.choice(len(kinds), p=shares / shares.sum()))][1]


def _spectrum(rng: np.random.Generator, bins: int) -> Array:
    rough = smooth_curve(rng, bins, int(rng.integers(2, 30)), rng.uniform(0.1, 1.0))
    return _chosen(rng, SPECTRA)(rng, bins) + rough


def _of_one_spectrum(rng: np.random.Generator, bins: int, frames: int) -> Array:
    source = _spectrum(rng, bins)[:, None] + _chosen(rng, ACTIVATIONS)(rng, frames)[None]
    if rng.random() < 0.3:  # its colour changes a little as it goes
        source = source + texture(rng, (bins, frames), (4, max(2, frames // 15)), rng.uniform(0.1, 0.6))
    return np.asarray(source)


def _of_events(rng: np.random.Generator, bins: int, frames: int) -> Array:
    """Events that differ: each kind with its spectrum, high bands dying first."""
    power = np.full((bins, frames), 1e-6)
    for _ in range(rng.integers(2, 5)):
        power += np.exp(2 * (_spectrum(rng, bins)[:, None] + _bursts(rng, frames)[None]).clip(QUIETEST, 4))
    return np.asarray(0.5 * np.log(power))


def _of_bands(rng: np.random.Generator, bins: int, frames: int) -> Array:
    """Bands that move on their own: wind, water, crowds."""
    seconds = frames / FRAMES_PER_SECOND
    knots = int(rng.integers(3, 24)), max(2, round(2 * seconds * np.exp(rng.uniform(np.log(0.5), np.log(8)))))
    return _spectrum(rng, bins)[:, None] + texture(rng, (bins, frames), knots, rng.uniform(0.2, 0.8))


def _harmonic(rng: np.random.Generator, bins: int, frames: int) -> Array:
    """Partials of one to three tones: motors, horns and chords that stand; sirens, birds and alarms that move.

    Low tones stand and last: what moves at the pitch of a voice is taken for one.
    """
    seconds = frames / FRAMES_PER_SECOND
    power = np.full((bins, frames), 1e-7)
    high = rng.random() < 0.5
    activation = _chosen(rng, ACTIVATIONS)(rng, frames) if high else _steady(rng, frames)
    envelope = _spectrum(rng, bins)
    hertz = np.arange(bins)[:, None] * BIN_HERTZ
    for _ in range(rng.integers(1, 4)):
        pitch = np.exp(rng.uniform(np.log(450), np.log(3500)) if high else rng.uniform(np.log(70), np.log(450)))
        movement = np.zeros(frames)
        kind = rng.random() if high else rng.uniform(0.55, 1)
        if kind < 0.35:
            movement = smooth_curve(rng, frames, max(1, round(seconds * rng.uniform(0.3, 4))), rng.uniform(0.02, 0.4))
        elif kind < 0.6:
            turns = rng.uniform(0.3, 8) * np.arange(frames) / FRAMES_PER_SECOND
            movement = rng.uniform(0.01, 0.4 if high else 0.03) * np.sin(2 * np.pi * turns + rng.uniform(0, 6.3))
        track = np.clip(pitch * np.exp(movement), 40, 7000)[None]
        partial = np.maximum(np.rint(hertz / track), 1)
        away = (hertz - partial * track) / (BIN_HERTZ * rng.uniform(0.6, 2.0))
        count = rng.integers(1, 30)
        power += np.exp(-(away.clip(-6, 6) ** 2)) * (partial <= count)
    return np.asarray(0.5 * np.log(power) + envelope[:, None] + activation[None])


SOURCES: tuple[tuple[float, Callable[[np.random.Generator, int, int], Array]], ...] = (
    (0.56, _of_one_spectrum),
    (0.15, _of_events),
    (0.19, _of_bands),
    (0.1, _harmonic),
)


def draw_source(rng: np.random.Generator, bins: int, frames: int) -> NDArray[np.float32]:
    """Variance (F, T) of one random source, its mean 1."""
    shares = np.array([share for share, _ in SOURCES])
    source = SOURCES[int(rng.choice(len(SOURCES), p=shares / shares.sum()))][1](rng, bins, frames)
    power = np.exp(2 * (source - source.max()).clip(QUIETEST, 0))
    return np.asarray(power / power.mean(), np.float32)


def draw_noise_variance(rng: np.random.Generator, bins: int, frames: int) -> NDArray[np.float32]:
    """Variance (F, T) of a random mixture of one to six sources over a faint even floor, its mean 1."""
    variance = np.full((bins, frames), 10 ** -rng.uniform(2.5, 6), np.float32)  # the floor of a microphone
    for _ in range(min(6, rng.geometric(0.5))):
        variance += draw_source(rng, bins, frames) * np.float32(np.exp(rng.normal(0, 1.2)))
    return np.asarray(variance / variance.mean(), np.float32)


def draw_picture(path: Path, seed: int = 0, rows: int = 5, columns: int = 4) -> None:
    """A page of random variances, in dB over frequency and time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 * columns, 1.8 * rows), layout="constrained")
    for number in range(rows * columns):
        axes = figure.add_subplot(rows, columns, number + 1)
        decibels = 10 * np.log10(draw_noise_variance(np.random.default_rng((seed, number)), 256, 250))
        axes.imshow(
            decibels, origin="lower", aspect="auto", extent=(0, 4, 0, 8), vmin=decibels.max() - 60, vmax=decibels.max()
        )
        axes.tick_params(labelsize=6)
    figure.supxlabel("time, s")
    figure.supylabel("frequency, kHz")
    figure.savefig(path, dpi=100)

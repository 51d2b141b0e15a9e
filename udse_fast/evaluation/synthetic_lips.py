"""A drawn mouth that says what a recording says: video for audio-visual priors where no faces may be had.

Its opening follows the level of the band of the first formant, its width the balance of low and middle bands, its
teeth the level of the high band, as real mouths do, more or less; and nothing of a real face is in it.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from udse_fast.networks.visual_encoder import CROP, VIDEO_RATE

BANDS = ((200, 900), (900, 3000), (3500, 7500))
"""Hz: what opens the mouth, what spreads it, what shows the teeth."""
RANGE_DB = 45.0
"""Below the loudest moment of a band, where its effect is zero."""


def band_levels(speech: NDArray[np.floating], sample_rate: int, rate: float = VIDEO_RATE) -> NDArray[np.float64]:
    """Level of each band at each video frame, (Tv, 3) in [0, 1]: 0 is `RANGE_DB` below its loudest frame."""
    frames = max(1, int(np.ceil(len(speech) / sample_rate * rate)))
    window = int(sample_rate / rate * 1.5)
    padded = np.pad(np.asarray(speech, np.float64), (window, 2 * window))
    starts = np.rint((np.arange(frames) + 0.5) * sample_rate / rate).astype(int) + window - window // 2
    power = np.abs(np.fft.rfft(padded[starts[:, None] + np.arange(window)] * np.hanning(window))) ** 2
    hertz = np.fft.rfftfreq(window, 1 / sample_rate)
    levels = np.stack([power[:, (hertz >= low) & (hertz < high)].sum(1) for low, high in BANDS], axis=1)
    decibels = 10 * np.log10(levels / max(float(levels.max()), 1e-12) + 1e-12)
    decibels -= decibels.max(0)
    return np.clip(1 + decibels / RANGE_DB, 0, 1)


def draw_mouths(speech: NDArray[np.floating], sample_rate: int, seed: int = 0) -> NDArray[np.uint8]:
    """A video of a mouth that says the speech (L,), (Tv, 88, 88) uint8 grey at 25 frames a second.

    Args:
        seed: of the face: brightness of skin and lips, size and place of the mouth, how it moves, noise of the camera.
    """
    rng = np.random.default_rng(seed)
    levels = band_levels(speech, sample_rate)
    count = len(levels)
    skin, lips, inside = rng.uniform(130, 200), rng.uniform(70, 110), rng.uniform(15, 45)
    size = rng.uniform(0.85, 1.15)
    sway = np.cumsum(rng.normal(0, 0.3, (count, 2)), axis=0)
    sway -= np.linspace(0, 1, count)[:, None] * sway[-1]  # it comes back
    x0, y0 = (CROP / 2 + rng.uniform(-4, 4, 2) + np.clip(sway, -6, 6)).T[:, :, None, None]
    opening, spread, teeth = levels.T[:, :, None, None]
    y, x = np.mgrid[:CROP, :CROP].astype(np.float64)
    half_width = size * (17 + 9 * spread - 4 * opening)
    half_height = size * (1.0 + 17 * opening)

    def inner(grow: float) -> NDArray[np.float64]:
        """1 inside an ellipse, 0 outside, with a soft edge."""
        wide, high = half_width + grow * size, half_height + 0.8 * grow * size
        distance = (np.hypot((x - x0) / wide, (y - y0) / high) - 1) * np.minimum(wide, high)
        return 1 / (1 + np.exp(np.clip(1.5 * distance, -30, 30)))

    shade = skin + rng.uniform(-0.4, 0.4) * (x - CROP / 2) + rng.uniform(-0.3, 0.3) * (y - CROP / 2)
    picture = shade + (lips - shade) * inner(7.0)
    hole = inner(0.0)
    picture = picture + (inside - picture) * hole
    row = hole * teeth / (1 + np.exp(np.clip(1.5 * (np.abs(y - y0 + 0.5 * half_height) - 3 * size), -30, 30)))
    picture = picture + (230 - picture) * row
    picture = picture + rng.normal(0, rng.uniform(1, 4), picture.shape)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def write_clip(path: Path, frames: NDArray[np.uint8], sound: NDArray[np.floating], sample_rate: int) -> None:
    """A Matroska file of grey pictures (Tv, height, width), lossless, and sound (L,), 16 bits."""
    import av

    with av.open(str(path), "w", format="matroska") as container:
        picture = container.add_stream("ffv1", rate=Fraction(VIDEO_RATE))
        picture.height, picture.width, picture.pix_fmt = frames.shape[1], frames.shape[2], "gray"
        track = container.add_stream("flac", rate=sample_rate, layout="mono")
        for frame in frames:
            for packet in picture.encode(av.VideoFrame.from_ndarray(frame, format="gray")):
                container.mux(packet)
        for packet in picture.encode(None):
            container.mux(packet)
        samples = np.clip(np.rint(np.asarray(sound) * 32767), -32768, 32767).astype(np.int16)
        audio = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        audio.sample_rate, audio.pts, audio.time_base = sample_rate, 0, Fraction(1, sample_rate)
        for packet in (*track.encode(audio), *track.encode(None)):
            container.mux(packet)

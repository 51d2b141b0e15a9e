"""Spectrograms of a signal of any length in constant memory, and the picture of before and after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from udse_fast.atomic import atomic_write
from udse_fast.errors import UdseError

WINDOW_SECONDS = 0.032
RANGE_DB = 70.0
TOP_HZ = 8000.0
"""The picture ends at this frequency: priors know nothing above."""


class RunningSpectrogram:
    """Averages the power of a signal over channels, and over the frames of each of at most `columns` columns.

    Args:
        sample_rate: in Hz.
        frames: expected number of samples; if more come, the rest goes to the last column.
    """

    def __init__(self, sample_rate: int, frames: int, columns: int = 1200) -> None:
        self.sample_rate = sample_rate
        self._length = max(16, round(WINDOW_SECONDS * sample_rate)) // 2 * 2
        self._hop = self._length // 4
        hops = max(1, -(-frames // self._hop))
        self._columns = min(columns, hops)
        self._hops_per_column = hops / self._columns
        self._window = np.hanning(self._length + 1)[:-1].astype(np.float32)
        self._bins = int(min(self._length // 2, TOP_HZ / sample_rate * self._length)) + 1
        self._power = np.zeros((self._bins, self._columns))
        self._count = np.zeros(self._columns)
        self._rest: NDArray[np.float32] | None = None
        self._hop_number = 0
        self._samples = 0

    def push(self, samples: NDArray[Any]) -> None:
        """Add samples (channels, n): int16, or float with full scale 1."""
        scale = 1 / 32768 if samples.dtype == np.int16 else 1.0
        signal = samples.astype(np.float32) * np.float32(scale)
        self._samples += signal.shape[1]
        if self._rest is None:
            # frame n is centred at n hops
            self._rest = np.zeros((len(signal), self._length // 2), np.float32)
        signal = np.concatenate([self._rest, signal], axis=1)
        count = max(0, (signal.shape[1] - self._length) // self._hop + 1)
        for first in range(0, count, 256):
            self._add(signal[:, first * self._hop :], min(256, count - first))
        self._rest = signal[:, count * self._hop :]

    def _add(self, signal: NDArray[np.float32], count: int) -> None:
        windows = np.lib.stride_tricks.sliding_window_view(signal, self._length, axis=1)
        frames = windows[:, :: self._hop][:, :count]
        spectrum = np.fft.rfft(frames * self._window, axis=2)[..., : self._bins]
        power = np.square(np.abs(spectrum)).mean(0)  # (count, bins)
        columns = ((self._hop_number + np.arange(count)) / self._hops_per_column).astype(int)
        columns = np.minimum(columns, self._columns - 1)
        np.add.at(self._power.T, columns, power)
        np.add.at(self._count, columns, 1)
        self._hop_number += count

    def decibels(self) -> NDArray[np.float64]:
        """Return the picture (bins, columns) in dB relative to full scale."""
        filled = self._count > 0  # the windows of the last frames would reach beyond the end
        if not filled.any():
            return np.full((self._bins, 1), -200.0)
        power = self._power[:, filled] / self._count[filled] / float(np.square(self._window.sum() / 2))
        return 10 * np.log10(power + 1e-20)

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Return (left, right, bottom, top) of the picture, in seconds and kHz."""
        top = (self._bins - 1) * self.sample_rate / self._length / 1000
        return 0.0, self._samples / self.sample_rate, 0.0, top


def check_plotting(path: Path) -> None:
    """Raise UdseError if matplotlib is missing or the name is not that of a PNG."""
    if path.suffix.lower() != ".png":
        raise UdseError(f"--plot: expected a name that ends in .png, got {path}")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise UdseError("--plot needs matplotlib: pip install udse-fast[plot]") from error


def draw_spectrograms(path: Path, panels: dict[str, RunningSpectrogram]) -> None:
    """Draw one spectrogram below the other into a PNG, all on the colour scale of the first."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.4 * len(panels)), layout="constrained")
    rows = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    pictures = {title: spectrogram.decibels() for title, spectrogram in panels.items()}
    top = max(-180.0, float(next(iter(pictures.values())).max()))
    for axes, (title, picture) in zip(rows, pictures.items(), strict=True):
        image = axes.imshow(
            picture, origin="lower", aspect="auto", cmap="magma", interpolation="nearest",
            extent=panels[title].extent, vmin=top - RANGE_DB, vmax=top,
        )  # fmt: skip
        axes.set(title=title, ylabel="kHz")
    rows[-1].set_xlabel("s")
    figure.colorbar(image, ax=rows, label="dB re full scale")
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)

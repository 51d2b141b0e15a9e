"""The figures of `how-it-works.md`: a reverse pass of the example, and noise that posterior networks are trained on.

python docs/figures.py
"""

from __future__ import annotations

import importlib.resources
from pathlib import Path

import matplotlib
import numpy as np
import soundfile
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor

import udse_fast
from udse_fast.sampling.diffusion import StepInfo
from udse_fast.training.noise_variances import draw_picture

matplotlib.use("Agg")
FOLDER = Path(__file__).parent / "figures"
SHOWN_STEPS = 5
FLOOR_DB = -50


def recording(name: str) -> Tensor:
    """A recording of the package, (L,) float32 at 16 kHz."""
    with importlib.resources.as_file(importlib.resources.files("udse_fast") / f"examples/{name}.flac") as path:
        return torch.from_numpy(soundfile.read(path, dtype="float32")[0])


def panels(rows: list[list[tuple[str, Tensor]]]) -> Figure:
    """Spectrograms in dB below the largest of each, one row above the other."""
    figure, axes = plt.subplots(
        len(rows), len(rows[0]), figsize=(2.2 * len(rows[0]), 1.9 * len(rows)), sharex=True, sharey=True, squeeze=False
    )
    for line, row in zip(axes, rows, strict=True):
        for axis, (title, power) in zip(line, row, strict=True):
            decibels = 10 * np.log10((power / power.max()).clamp_min(1e-10).numpy())
            axis.imshow(decibels, origin="lower", aspect="auto", vmin=FLOOR_DB, vmax=0, cmap="magma")
            axis.set_title(title, fontsize=9)
            axis.set_xticks([])
            axis.set_yticks([])
    figure.tight_layout()
    return figure


def main() -> None:
    """Draw the figures."""
    clean, noisy = recording("clean"), recording("noisy")
    enhancer = udse_fast.Enhancer()
    spectral = enhancer.model.spectral
    mixture, level = spectral.analyse(noisy)
    noise = spectral.compress(spectral.stft(noisy - clean)) / level
    states, estimates, variances, times = [], [], [], []

    def look(step: StepInfo) -> None:
        states.append(step.transitions["speech"].state[0].abs().square())
        estimates.append(step.denoised["speech"][0].abs().square())
        times.append(float(step.transitions["speech"].time))
        variances.append((mixture - step.denoised["speech"][0]).abs().square())

    settings = enhancer.settings
    grid, dt = settings.time_grid()
    udse_fast.posterior_sample(
        mixture,
        enhancer.model.prior,
        enhancer.sampler,
        steps=settings.steps,
        samples=1,
        rank=settings.rank,
        times=grid,
        dt=dt,
        corrector_snr=settings.corrector_snr,
        callback=look,
        **enhancer.options,
    )
    chosen = np.linspace(0, len(states) - 1, SHOWN_STEPS).round().astype(int)
    FOLDER.mkdir(exist_ok=True)
    panels(
        [
            [(f"state, t = {times[k]:.2f}", states[k]) for k in chosen],
            [("estimate", estimates[k]) for k in chosen],
        ]
    ).savefig(FOLDER / "reverse_pass.png", dpi=110)
    panels(
        [
            [
                *((f"left for the noise, t = {times[k]:.2f}", variances[k]) for k in chosen[1:]),
                ("true noise", noise.abs().square()),
            ]
        ]
    ).savefig(FOLDER / "noise_model.png", dpi=110)
    draw_picture(FOLDER / "noise_variances.png", rows=3)


if __name__ == "__main__":
    main()

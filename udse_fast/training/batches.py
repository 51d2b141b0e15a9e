"""Training batches: crops of a corpus as compressed spectrograms at the levels met at inference.

Everything random is a function of (seed, step): a resumed run draws what the uninterrupted one would have drawn, and
batches can be made ahead in other threads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from udse_fast.spectral import Spectral
from udse_fast.training.corpus import Corpus, Crops

SPEECH, NOISE = 1, 0


@dataclass(frozen=True)
class Batch:
    """spectrograms (N, F, T) complex64, label (N,) int64 or None for a prior of one source."""

    spectrograms: Tensor
    label: Tensor | None

    def to(self, device: torch.device) -> Batch:
        label = None if self.label is None else self.label.to(device, non_blocking=True)
        return Batch(self.spectrograms.to(device, non_blocking=True), label)


def normalised(crops: Crops, gain: Tensor, spectral: Spectral) -> Tensor:
    """Compressed spectrograms whose whole recording would have `gain` (N,) as its largest modulus, (N, F, T).

    The recording's largest modulus is taken from the crop's and the ratio of their peaks, so that a quiet crop of a
    loud recording stays quiet.
    """
    audio = torch.from_numpy(crops.audio)
    compressed = spectral.compress(spectral.stft(audio))
    largest = compressed.abs().amax((1, 2)).clamp_min(1e-6)
    peak = torch.from_numpy(crops.peak)
    share = (audio.abs().amax(1) / peak.clamp_min(1e-6)).clamp(1e-4, 1) ** spectral.exponent
    return compressed * (gain * share / largest)[:, None, None]


class Batches:
    """Batch number n of a run, for training (random levels) and validation (fixed crops)."""

    def __init__(
        self,
        speech: Corpus | None,
        noise: Corpus | None,
        spectral: Spectral,
        *,
        size: int,
        frames: int,
        gain_range: tuple[float, float] = (0.25, 1.0),
        seed: int = 0,
    ) -> None:
        self.sources = [(label, corpus) for label, corpus in ((SPEECH, speech), (NOISE, noise)) if corpus is not None]
        self.spectral, self.size, self.frames, self.gain_range, self.seed = (
            spectral,
            size,
            frames,
            gain_range,
            seed,
        )

    @property
    def seconds(self) -> float:
        """Audio in one batch."""
        return self.size * self.frames * self.spectral.hop_length / self.spectral.sample_rate

    def __getitem__(self, number: int) -> Batch:
        rng = np.random.default_rng((self.seed, number))
        length = (self.frames - 1) * self.spectral.hop_length
        spectrograms, labels = [], []
        for i, (label, corpus) in enumerate(self.sources):
            count = self.size // len(self.sources) + (i < self.size % len(self.sources))
            crops = corpus.crops(rng, count, length)
            gain = torch.from_numpy(rng.uniform(*self.gain_range, count).astype(np.float32))
            spectrograms.append(normalised(crops, gain, self.spectral))
            labels += [label] * count
        joint = len(self.sources) > 1
        return Batch(torch.cat(spectrograms), torch.tensor(labels) if joint else None)

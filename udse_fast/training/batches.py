"""Training batches: crops of a corpus as compressed spectrograms at the levels met at inference.

Everything random is a function of (seed, step): a resumed run draws what the uninterrupted one would have drawn, and
batches can be made ahead in other threads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from udse_fast.audio.spectral import Spectral
from udse_fast.networks.base import Network
from udse_fast.networks.conditions import NOISE_LABEL, NOTHING, SPEECH_LABEL, Conditions
from udse_fast.training.corpus import Corpus, Crops


@dataclass(frozen=True)
class Batch:
    """Clean spectrograms (N, F, T) complex64, and what the network is told about them."""

    spectrograms: Tensor
    conditions: Conditions = NOTHING
    frames: Tensor | None = None
    """Mouth crops (N, Tv, 88, 88) uint8, of which the network's own visual encoder makes the video it is told."""
    sees: Tensor | None = None
    """(N,) float32, with the frames: 1, or 0 for items that are told no video."""

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """Return a batch with change(tensor) in the place of every tensor."""
        frames, sees = (None if tensor is None else change(tensor) for tensor in (self.frames, self.sees))
        return Batch(change(self.spectrograms), self.conditions.mapped(change), frames, sees)

    def told(self, module: Network) -> Conditions:
        """What the network is told, which it is trained through where a part of it makes that."""
        if self.frames is None or self.sees is None:
            return self.conditions
        assert module.visual_encoder is not None
        features = module.visual_encoder(self.frames[:, None])
        return self.conditions.merged(Conditions(video=features * self.sees[:, None, None]))

    def to(self, device: torch.device) -> Batch:
        """Move the batch to a device; out of pinned memory this does not wait."""
        return self.mapped(lambda tensor: tensor.to(device, non_blocking=True))


@dataclass(frozen=True)
class Augmentation:
    """Changes that make recordings sound like other voices through other microphones."""

    speed_range: float = 0.0
    """Crops are played up to this share faster or slower."""
    equalisation_db: float = 0.0
    """Standard deviation, over the bins, of a smooth random frequency response."""
    bright_share: float = 0.0
    """Of a posterior network's crops: those with sibilants as loud as the vowels, as of a bright, close microphone."""

    def response(self, rng: np.random.Generator, count: int, bins: int) -> NDArray[np.float32]:
        """Draw amplitude responses (count, F): in dB they are cosines of 1/2 to 2 periods over the band."""
        phase = np.pi * np.arange(bins) / bins
        weights = rng.normal(0, self.equalisation_db * math.sqrt(2 / 4), (count, 4))
        decibels = weights @ np.cos(np.outer(np.arange(1, 5), phase))
        return np.asarray(10 ** (decibels / 20), np.float32)


def normalised(crops: Crops, gain: Tensor, spectral: Spectral, response: Tensor | None = None) -> Tensor:
    """Return compressed spectrograms (N, F, T) at a level where the whole recording would peak at `gain` (N,).

    The recording's largest modulus is taken from the crop's and the ratio of their peaks, so that a quiet crop of a
    loud recording stays quiet. `response` (N, F) multiplies the amplitudes.
    """
    audio = torch.from_numpy(crops.audio)
    spectra = spectral.stft(audio)
    compressed = spectral.compress(spectra if response is None else spectra * response[:, :, None])
    largest = compressed.abs().amax((1, 2)).clamp_min(1e-6)
    peak = torch.from_numpy(crops.peak)
    share = (audio.abs().amax(1) / peak.clamp_min(1e-6)).clamp(1e-4, 1) ** spectral.exponent
    return compressed * (gain * share / largest)[:, None, None]


class Batches:
    """The batches of a run by number, for training (random levels) and validation (fixed crops)."""

    def __init__(
        self,
        speech: Corpus | None,
        noise: Corpus | None,
        spectral: Spectral,
        *,
        size: int,
        frames: int,
        gain_range: tuple[float, float] = (0.25, 1.0),
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        self.sources = [
            (label, corpus) for label, corpus in ((SPEECH_LABEL, speech), (NOISE_LABEL, noise)) if corpus is not None
        ]
        self.spectral, self.size, self.frames, self.gain_range, self.seed = (
            spectral,
            size,
            frames,
            gain_range,
            seed,
        )
        self.augmentation = augmentation or Augmentation()

    @property
    def seconds(self) -> float:
        """Seconds of audio in one batch."""
        return self.size * self.frames * self.spectral.hop_length / self.spectral.sample_rate

    def spectrograms(self, rng: np.random.Generator, crops: Crops) -> Tensor:
        """Of crops, (N, F, T), at random levels and through random microphones."""
        count = len(crops.audio)
        gain = torch.from_numpy(rng.uniform(*self.gain_range, count).astype(np.float32))
        response = None
        if self.augmentation.equalisation_db:
            response = torch.from_numpy(self.augmentation.response(rng, count, self.spectral.bins))
        return normalised(crops, gain, self.spectral, response)

    def __getitem__(self, number: int) -> Batch:
        rng = np.random.default_rng((self.seed, number))
        length = (self.frames - 1) * self.spectral.hop_length
        spectrograms, labels = [], []
        for i, (label, corpus) in enumerate(self.sources):
            count = self.size // len(self.sources) + (i < self.size % len(self.sources))
            crops = corpus.crops(rng, count, length, self.augmentation.speed_range)
            spectrograms.append(self.spectrograms(rng, crops))
            labels += [label] * count
        conditions = Conditions(label=torch.tensor(labels)) if len(self.sources) > 1 else NOTHING
        return Batch(torch.cat(spectrograms), conditions)

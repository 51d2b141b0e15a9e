"""Training batches of a conditional network: clean speech beside the recording it is in, mixed here or recorded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from udse_fast.audio.files import open_recording
from udse_fast.audio.spectral import Spectral
from udse_fast.errors import UdseError
from udse_fast.networks.conditions import Conditions
from udse_fast.tagger import Tagger
from udse_fast.training.batches import Augmentation, Batch
from udse_fast.training.corpus import Corpus

SNR_RANGE = (-8.0, 15.0)
"""dB, of speech and noise that are mixed here: over the crop of each."""
LEAST_PEAK = 1e-3
"""Of a recording, -60 dBFS: a crop that is quieter than that is amplified no further."""

Samples = NDArray[np.float32]


class PairedCrops(NamedTuple):
    """Excerpts (N, L) of the same places."""

    clean: Samples
    noisy: Samples


class Pairs(Protocol):
    """Where pairs come from."""

    def crops(self, rng: np.random.Generator, count: int, length: int) -> PairedCrops:
        """Draw `count` excerpts of `length` samples."""


class MixedPairs:
    """Speech and noise of two corpora, mixed at a random SNR.

    Args:
        augmentation: of the speech; its equaliser takes the frequencies of the whole crop.
    """

    def __init__(
        self,
        speech: Corpus,
        noise: Corpus,
        augmentation: Augmentation | None = None,
        snr_range: tuple[float, float] = SNR_RANGE,
    ) -> None:
        self.speech, self.noise, self.snr_range = speech, noise, snr_range
        self.augmentation = augmentation or Augmentation()

    def crops(self, rng: np.random.Generator, count: int, length: int) -> PairedCrops:
        """Speech, and speech with noise."""
        clean = self.speech.crops(rng, count, length, self.augmentation.speed_range).audio
        noise = self.noise.crops(rng, count, length).audio
        if self.augmentation.equalisation_db:
            response = self.augmentation.response(rng, count, length // 2 + 1)
            clean = np.fft.irfft(np.fft.rfft(clean) * response, length).astype(np.float32)
        snr = rng.uniform(*self.snr_range, count)
        powers = np.square(clean).sum(1), np.square(noise).sum(1)
        gain = np.sqrt(powers[0] / np.maximum(powers[1], 1e-12) / 10 ** (snr / 10))
        return PairedCrops(clean, clean + gain[:, None].astype(np.float32) * noise)


class RecordedPairs:
    """Recordings with their clean references."""

    def __init__(self, clean: Sequence[Path], noisy: Sequence[Path], sample_rate: int) -> None:
        for paths in zip(clean, noisy, strict=True):
            of_clean, of_noisy = (_length(path, sample_rate) for path in paths)
            if of_clean != of_noisy:
                raise UdseError(
                    f"{paths[0]}: expected as many samples as the noisy recording has, {of_noisy}, got {of_clean}; "
                    "pairs must be aligned"
                )
        self.clean, self.noisy = Corpus(clean, sample_rate), Corpus(noisy, sample_rate)

    @property
    def seconds(self) -> float:
        """Of all recordings."""
        return self.noisy.seconds

    @property
    def files(self) -> list[Path]:
        """The noisy recordings."""
        return self.noisy.files

    def crops(self, rng: np.random.Generator, count: int, length: int) -> PairedCrops:
        """The same places of both."""
        places = [self.noisy.place(rng, length) for _ in range(count)]
        clean, noisy = (
            np.stack([corpus.excerpt(index, start, length) for index, start in places])
            for corpus in (self.clean, self.noisy)
        )
        return PairedCrops(clean, noisy)


def _length(path: Path, sample_rate: int) -> int:
    """Samples of a recording at a rate, as its header says."""
    with open_recording(path) as recording:
        return round(recording.layout.frames / recording.layout.sample_rate * sample_rate)


class ConditionalBatches:
    """The batches of a run by number: clean spectrograms, and the noisy ones as a condition.

    Both are divided by the largest sample of the noisy crop, as whole recordings are when they are enhanced.

    Args:
        gain_range: of a factor beside that: the crop may be a quiet part of its recording.
        tagger: whose latents of the noisy crops the network is told; its weights stay what they are.
    """

    def __init__(
        self,
        pairs: Pairs,
        spectral: Spectral,
        *,
        size: int,
        frames: int,
        gain_range: tuple[float, float] = (0.4, 1.0),
        seed: int = 0,
        tagger: Tagger | None = None,
    ) -> None:
        self.tagger = tagger
        self.pairs, self.spectral, self.size, self.frames = pairs, spectral, size, frames
        self.gain_range, self.seed = gain_range, seed

    @property
    def seconds(self) -> float:
        """Seconds of audio in one batch."""
        return self.size * self.frames * self.spectral.hop_length / self.spectral.sample_rate

    def __getitem__(self, number: int) -> Batch:
        clean, noisy = self.waveforms(number)
        compressed = [self.spectral.compress(self.spectral.stft(torch.from_numpy(audio))) for audio in (clean, noisy)]
        latent = None
        if self.tagger is not None:
            latent = self.tagger.latent(torch.from_numpy(noisy), self.spectral.sample_rate)
        return Batch(compressed[0], Conditions(noisy=compressed[1], latent=latent))

    def waveforms(self, number: int) -> PairedCrops:
        """Clean and noisy samples (N, L) of a batch, at the level that the network sees."""
        rng = np.random.default_rng((self.seed, 15, number))
        crops = self.pairs.crops(rng, self.size, (self.frames - 1) * self.spectral.hop_length)
        gain = rng.uniform(*self.gain_range, self.size) / np.abs(crops.noisy).max(1).clip(LEAST_PEAK)
        return PairedCrops(*(audio * gain[:, None].astype(np.float32) for audio in crops))

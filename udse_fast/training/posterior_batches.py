"""Training batches of a posterior network: speech in noise of a variance drawn at random, at any level from none up.

The noise is white noise through the STFT, multiplied by sqrt(V), and back to samples, so that neighbouring frames
share samples as those of a real recording do. A few sources are made as samples at once (tones, clicks, hum, babble of
the corpus's own speakers), and their V is their smoothed power.
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
from udse_fast.sampling.noise_guesses import NO_NOISE, smoothed
from udse_fast.training.batches import Augmentation
from udse_fast.training.corpus import Corpus
from udse_fast.training.noise_variances import draw_noise_variance

Samples = NDArray[np.float32]


@dataclass(frozen=True)
class PosteriorBatch:
    """mixture and clean (N, F, T) complex64, the true noise_variance (N, F, T)."""

    mixture: Tensor
    clean: Tensor
    noise_variance: Tensor

    def mapped(self, change: Callable[[Tensor], Tensor]) -> PosteriorBatch:
        """With change(tensor) in the place of every tensor."""
        return PosteriorBatch(change(self.mixture), change(self.clean), change(self.noise_variance))

    def to(self, device: torch.device) -> PosteriorBatch:
        """On a device; from pinned memory without waiting."""
        return self.mapped(lambda tensor: tensor.to(device, non_blocking=True))


def _reverberant(rng: np.random.Generator, audio: Samples, rate: int) -> Samples:
    """As heard in a room: a direct path and noise that decays by 60 dB in 0.15 to 0.9 s."""
    seconds = rng.uniform(0.15, 0.9)
    time = np.arange(round(seconds * rate)) / rate
    response = rng.standard_normal(len(time)) * 10 ** (-3 * time / seconds)
    response[: round(rng.uniform(0.001, 0.02) * rate)] = 0
    response *= 10 ** (-rng.uniform(-3, 12) / 20) / np.sqrt((response**2).sum() + 1e-9)
    response[0] = 1
    size = len(audio) + len(response)
    return np.asarray(np.fft.irfft(np.fft.rfft(audio, size) * np.fft.rfft(response, size), size)[: len(audio)], "f4")


def _tones(rng: np.random.Generator, length: int, rate: int) -> Samples:
    """Hum of the mains, or partials that stand or waver, with an offset (DC) at times."""
    time = np.arange(length) / rate
    audio = np.full(length, rng.normal() * (rng.random() < 0.15))
    pitch = float(rng.choice([50, 60, 100, 120])) if rng.random() < 0.35 else np.exp(rng.uniform(4.4, 7.8))
    for _ in range(rng.integers(1, 4)):
        depth, speed = (rng.uniform(0, 0.1), rng.uniform(0.2, 8)) if rng.random() < 0.5 else (0.0, 1.0)
        phase = pitch * (time - depth / (2 * np.pi * speed) * np.cos(2 * np.pi * speed * time + rng.uniform(0, 6.3)))
        for partial in range(1, int(rng.integers(2, 20))):
            if partial * pitch * (1 + depth) < rate / 2:
                level = rng.normal() / partial ** rng.uniform(0, 1.5)
                audio += level * np.sin(2 * np.pi * partial * phase + rng.uniform(0, 6.3))
        pitch = pitch * float(rng.choice([1.26, 1.335, 1.5, 2.0]))
    if rng.random() < 0.4:  # on and off
        gate = np.repeat(rng.random(length // 1000 + 1) < rng.uniform(0.3, 0.8), 1000)[:length].astype(float)
        gate = np.convolve(gate, np.hanning(161) / 80, "same")
        audio = audio * gate
    return np.asarray(audio, np.float32)


def _clicks(rng: np.random.Generator, length: int, rate: int) -> Samples:
    """Short events of 0.05 to 30 ms, each a decaying resonance or a decaying hiss."""
    audio = np.zeros(length, np.float32)
    for _ in range(max(1, rng.poisson(length / rate * np.exp(rng.uniform(0, 3))))):
        decay = np.exp(rng.uniform(np.log(5e-5), np.log(0.03))) * rate
        time = np.arange(int(8 * decay) + 2)
        hiss = rng.standard_normal(len(time))
        ring = np.cos(2 * np.pi * rng.uniform(100, 7000) / rate * time)
        event = np.exp(rng.normal(0, 0.7)) * np.exp(-time / decay) * (hiss if rng.random() < 0.5 else ring)
        start = int(rng.integers(0, length))
        audio[start : start + len(event)] += event[: length - start]
    return audio


class PosteriorBatches:
    """Batch number n of a run; the same for the same (seed, n)."""

    def __init__(
        self,
        speech: Corpus,
        spectral: Spectral,
        *,
        size: int,
        frames: int,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        self.speech, self.spectral, self.size, self.frames, self.seed = speech, spectral, size, frames, seed
        self.augmentation = augmentation or Augmentation()

    @property
    def seconds(self) -> float:
        """Audio in one batch."""
        return self.size * self.frames * self.spectral.hop_length / self.spectral.sample_rate

    def __getitem__(self, number: int) -> PosteriorBatch:
        rng = np.random.default_rng((self.seed, 7, number))
        items = [self._item(rng) for _ in range(self.size)]
        return PosteriorBatch(*(torch.stack(parts) for parts in zip(*items, strict=True)))

    @property
    def _length(self) -> int:
        return (self.frames - 1) * self.spectral.hop_length

    # -- speech --------------------------------------------------------------------------------------------------

    def _voice(self, rng: np.random.Generator) -> Samples:
        crops = self.speech.crops(rng, 1, self._length, self.augmentation.speed_range)
        return crops.audio[0] / max(float(crops.peak[0]), 1e-4)

    def _talkers(self, rng: np.random.Generator) -> Samples:
        """One talker or two, dry or in a room."""
        audio = self._voice(rng)
        if rng.random() < 0.02:
            audio = audio + self._voice(rng) * np.float32(np.exp(rng.normal(0, 0.4)))
        return _reverberant(rng, audio, self.spectral.sample_rate) if rng.random() < 0.1 else audio

    def _speech(self, rng: np.random.Generator) -> Tensor:
        """Linear spectrogram (F, T) of speech as one of many microphones would have it."""
        spectra = self.spectral.stft(torch.from_numpy(self._talkers(rng)))
        kind = rng.random()
        if kind < 0.08:  # another excitation in the same envelope: whispered, or sung
            envelope = smoothed(spectra.abs().square(), 7, 1).sqrt()
            tilt = torch.linspace(float(rng.uniform(0.1, 1)), 1, self.spectral.bins)[:, None]
            spectra = envelope * (self._white(rng) * tilt if kind < 0.05 else self._sung(rng))
        if self.augmentation.equalisation_db:
            spectra = spectra * torch.from_numpy(self.augmentation.response(rng, 1, self.spectral.bins))[0, :, None]
        hertz = torch.arange(self.spectral.bins) * self.spectral.sample_rate / self.spectral.n_fft
        if rng.random() < self.augmentation.bright_share:  # such sibilants are no bursts of noise
            corner, octaves = float(rng.uniform(1500, 4500)), float(rng.uniform(0.2, 0.8))
            shelf = torch.sigmoid(torch.log2(hertz.clamp_min(1) / corner) / octaves)
            spectra = spectra * (1 + (10 ** float(rng.uniform(0.1, 0.9)) - 1) * shelf)[:, None]
        if rng.random() < 0.02:  # a telephone
            low, high = float(rng.uniform(50, 350)), float(rng.uniform(2800, 4000))
            inside = torch.sigmoid((hertz - low) / 30) * torch.sigmoid((high - hertz) / 60)
            spectra = spectra * inside[:, None]
        return spectra

    def _sung(self, rng: np.random.Generator) -> Tensor:
        """Pulses at the pitch of a voice that holds its notes, with vibrato, (F, T) of mean power 1."""
        rate, time = self.spectral.sample_rate, np.arange(self._length) / self.spectral.sample_rate
        notes = np.exp(rng.uniform(np.log(90), np.log(600))) * 2 ** (rng.integers(-4, 5, 1 + int(time[-1] * 2)) / 12)
        held = np.repeat(notes, rate)[: len(time)] if rng.random() < 0.6 else np.full(len(time), notes[0])
        vibrato = rng.uniform(0, 0.03) * np.sin(2 * np.pi * rng.uniform(4, 7) * time)
        turns = np.cumsum(held * (1 + vibrato)) / rate
        audio = np.zeros(len(time))
        for partial in range(1, int(rate / 2 / held.max())):
            audio += np.cos(2 * np.pi * partial * turns + rng.uniform(0, 6.3))
        return self._of_samples(audio.astype(np.float32), 3, 3)[0]

    # -- noise ---------------------------------------------------------------------------------------------------

    def _white(self, rng: np.random.Generator) -> Tensor:
        """White noise, (F, T) of mean power 1, as the STFT of samples."""
        spectra = self.spectral.stft(torch.from_numpy(rng.standard_normal(self._length).astype(np.float32)))
        return spectra / spectra.abs().square().mean().sqrt()

    def _of_samples(self, audio: Samples, bands: int, frames: int) -> tuple[Tensor, Tensor]:
        noise = self.spectral.stft(torch.from_numpy(audio))
        noise = noise / noise.abs().square().mean().sqrt().clamp_min(1e-6)
        return noise, smoothed(noise.abs().square(), bands, frames)

    def _babble(self, rng: np.random.Generator) -> Samples:
        """Five to twelve voices at once, at other speeds than those of the talkers."""
        audio = np.zeros(self._length, np.float32)
        for _ in range(rng.integers(5, 13)):
            audio += self._voice(rng) * np.float32(np.exp(rng.normal(0, 0.5)))
        return _reverberant(rng, audio, self.spectral.sample_rate) if rng.random() < 0.7 else audio

    def _noise(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Linear spectrogram nu and variance V, (F, T) each, of mean power 1."""
        variance = torch.from_numpy(draw_noise_variance(rng, self.spectral.bins, self.frames))
        shaped = self._white(rng) * variance.sqrt()
        noise = self.spectral.stft(self.spectral.istft(shaped, self._length))
        variance = smoothed(variance, 3, 3) * 0.3 + variance * 0.7  # the transform spreads it over its neighbours
        rate = self.spectral.sample_rate
        for share, made, smoothing in (
            (0.1, lambda: _tones(rng, self._length, rate), (3, 3)),
            (0.10, lambda: _clicks(rng, self._length, rate), (5, 1)),
            (0.06, lambda: self._babble(rng), (5, 5)),
        ):
            if rng.random() < share:
                more, its_variance = self._of_samples(made(), *smoothing)
                level = float(np.exp(rng.normal(0.5, 1.2)))
                noise, variance = noise + level * more, variance + level**2 * its_variance
        scale = noise.abs().square().mean().clamp_min(1e-12)
        return noise / scale.sqrt(), variance / scale

    def _hum(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Tones, the mains' among them, over faint noise: far above the speech they are easily told from it."""
        tones, variance = self._of_samples(_tones(rng, self._length, self.spectral.sample_rate), 3, 9)
        noise, its_variance = self._noise(rng)
        share = float(10 ** -rng.uniform(0.5, 4))
        return tones + math.sqrt(share) * noise, variance + share * its_variance

    # -- mixtures ------------------------------------------------------------------------------------------------

    def _item(self, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        kind = rng.random()
        speech = self._speech(rng)
        hum = 0.22 <= kind < 0.25
        noise, variance = self._hum(rng) if hum else self._noise(rng)
        energy = float(speech.abs().square().mean())
        if kind < 0.04 or energy < 1e-8:  # noise alone
            speech, power = torch.zeros_like(speech), 1.0
        elif kind < 0.10:  # none
            power = 0.0
        else:
            snr = rng.uniform(15, 50) if kind < 0.22 else rng.uniform(-30, 5) if hum else rng.uniform(-10, 20)
            power = energy / 10 ** (snr / 10)
        noise, variance = noise * math.sqrt(power), variance * power
        mixture = speech + noise
        loudest = float(mixture.abs().amax())
        scale = (1.0 if rng.random() < 0.5 else rng.uniform(0.25, 1.0) ** 2) / max(
            loudest, 1e-8
        )  # c(scale X): its root
        compressed, clean = self._compressed(mixture * scale), self._compressed(speech * scale)
        return compressed, clean, (variance * scale**2).clamp_min(NO_NOISE)

    @staticmethod
    def _compressed(linear: Tensor) -> Tensor:
        """c(z) = |z|^1/2 exp(i arg z): x |x| is linear again."""
        return linear / linear.abs().sqrt().clamp_min(1e-12)

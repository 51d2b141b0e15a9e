"""Cnn14 in its decision-level form: the tagger of sounds of PANNs, as far as its latent (Kong et al., TASLP 2020).

The names of the weights are those of the public checkpoints (`Cnn14_DecisionLevelMax`), among them the Fourier and the
mel matrix of the front end, so that their `state_dict` loads without renaming.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SAMPLE_RATE = 32000
WINDOW, HOP = 1024, 320
MELS, LOWEST, HIGHEST = 64, 50.0, 14000.0
BLOCKS = 6
POOLED = 32
"""Frames of 10 ms that one frame of the latent stands for."""
CLASSES = 527
QUIETEST = 1e-10
"""Least power in a band: -100 dB."""


class ConvBlock(nn.Module):
    """Twice: convolution, batch norm, ReLU; then the average over pieces of the map."""

    def __init__(self, channels: int, out_channels: int, pool: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(out_channels), nn.BatchNorm2d(out_channels)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, M) -> (B, C', T / pool, M / pool)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.avg_pool2d(x, self.pool)


class FourierLayers(nn.Module):
    """The short-time Fourier transform as two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        bins = WINDOW // 2 + 1
        self.conv_real = nn.Conv1d(1, bins, WINDOW, HOP, bias=False)
        self.conv_imag = nn.Conv1d(1, bins, WINDOW, HOP, bias=False)
        turns = torch.outer(torch.arange(bins), torch.arange(WINDOW)).remainder(WINDOW) * (2 * math.pi / WINDOW)
        window = torch.hann_window(WINDOW)
        self.conv_real.weight.data = (turns.cos() * window)[:, None]
        self.conv_imag.weight.data = (-turns.sin() * window)[:, None]


class Spectrogram(nn.Module):
    """(B, L) -> power (B, 1, T, 513), frames centred with reflected edges."""

    def __init__(self) -> None:
        super().__init__()
        self.stft = FourierLayers()

    def forward(self, audio: Tensor) -> Tensor:
        padded = F.pad(audio[:, None], (WINDOW // 2, WINDOW // 2), mode="reflect")
        power = self.stft.conv_real(padded).square() + self.stft.conv_imag(padded).square()
        return power.transpose(1, 2)[:, None]


class LogMel(nn.Module):
    """(B, 1, T, 513) -> dB in mel bands, (B, 1, T, 64)."""

    def __init__(self) -> None:
        super().__init__()
        self.melW = nn.Parameter(mel_filters())

    def forward(self, power: Tensor) -> Tensor:
        return 10 * (power @ self.melW).clamp_min(QUIETEST).log10()


def mel_filters() -> Tensor:
    """(513, 64) triangles of unit area in Hz, whose corners are equally far on Slaney's mel scale."""

    def hertz(mel: Tensor) -> Tensor:
        return torch.where(mel < 15, mel * 200 / 3, 1000 * torch.exp((mel - 15) * math.log(6.4) / 27))

    def mel(frequency: float) -> float:
        return frequency * 3 / 200 if frequency < 1000 else 15 + 27 * math.log(frequency / 1000) / math.log(6.4)

    corners = hertz(torch.linspace(mel(LOWEST), mel(HIGHEST), MELS + 2, dtype=torch.float64))
    frequencies = torch.linspace(0, SAMPLE_RATE / 2, WINDOW // 2 + 1, dtype=torch.float64)[:, None]
    low, middle, high = corners[:-2], corners[1:-1], corners[2:]
    rising, falling = (frequencies - low) / (middle - low), (high - frequencies) / (high - middle)
    return (torch.minimum(rising, falling).clamp_min(0) * 2 / (high - low)).float()


class Cnn14(nn.Module):
    """Latents of a sound: the activations before the decision about classes.

    Args:
        width: channels of the first block; each block has twice those before. Published: 64.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.latent_size = width * 2 ** (BLOCKS - 1)
        """H."""
        self.spectrogram_extractor = Spectrogram()
        self.logmel_extractor = LogMel()
        self.bn0 = nn.BatchNorm2d(MELS)
        channels = 1
        for number in range(1, BLOCKS + 1):
            out_channels = width * 2 ** (number - 1)
            setattr(self, f"conv_block{number}", ConvBlock(channels, out_channels, 1 if number == BLOCKS else 2))
            channels = out_channels
        self.fc1 = nn.Linear(channels, channels)
        self.fc_audioset = nn.Linear(channels, CLASSES)
        self.requires_grad_(False)
        self.eval()

    def forward(self, audio: Tensor) -> Tensor:
        """(B, L) float32 at 32 kHz, full scale 1 -> latents (B, T_l, H), one every 0.32 s; at least one."""
        shortest = POOLED * HOP
        audio = F.pad(audio, (0, max(0, shortest - audio.shape[-1])))
        x = self.logmel_extractor(self.spectrogram_extractor(audio))
        x = self.bn0(x.transpose(1, 3)).transpose(1, 3)
        for number in range(1, BLOCKS + 1):
            x = self.get_submodule(f"conv_block{number}")(x)
        x = x.mean(3)  # (B, H, T_l)
        x = F.max_pool1d(x, 3, 1, 1) + F.avg_pool1d(x, 3, 1, 1)
        latent: Tensor = F.relu(self.fc1(x.transpose(1, 2)))
        return latent

    def class_probabilities(self, latent: Tensor) -> Tensor:
        """(B, T_l, H) -> (B, T_l, 527), of AudioSet's classes in its order."""
        return self.fc_audioset(latent).sigmoid()

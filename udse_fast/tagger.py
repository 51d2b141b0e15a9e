"""`Tagger`: latents of a recording for networks that are told what sounds in it (Ex-Diff), and those that are given."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from udse_fast.audio.resampling import Resampler
from udse_fast.audio.spectral import Spectral
from udse_fast.checkpoints.tagger_file import read_tagger
from udse_fast.checks import described
from udse_fast.errors import UdseError
from udse_fast.networks.cnn14 import SAMPLE_RATE, Cnn14
from udse_fast.networks.conditions import Conditions
from udse_fast.streaming.blocks import Block


class Tagger:
    """Latents of sounds, by a frozen network.

    Args:
        path: weights of `Cnn14` in its decision-level form: a public .pth file, or the same as safetensors.

    Raises:
        UdseError: unreadable, or of another network.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.network: Cnn14 = read_tagger(path)

    @property
    def latent_size(self) -> int:
        """H."""
        return self.network.latent_size

    @torch.no_grad()
    def latent(self, audio: Tensor, sample_rate: int) -> Tensor:
        """(B, L) float32, full scale 1 -> (B, T_l, H) float32, one frame every 0.32 s."""
        resampled = []
        for samples in audio.cpu().numpy():
            resampler = Resampler(sample_rate, SAMPLE_RATE)
            resampled.append(np.concatenate([resampler.process(samples), resampler.flush()]))
        return self.network(torch.from_numpy(np.stack(resampled)))


@dataclass(frozen=True)
class TaggedBlocks:
    """Tells the network the latent of each block of a recording."""

    tagger: Tagger
    sample_rate: int
    """Of the blocks."""

    def __call__(self, block: Block[Any]) -> Conditions:
        return Conditions(latent=self.tagger.latent(block.signal[None], self.sample_rate))


class GivenLatent:
    """Tells the network the part of a given latent that belongs to each block.

    Args:
        latent: (T_l, H) of a whole recording, in equal steps from its start to its end.
        seconds: of the recording.
        spectral: of the blocks.
        size: H of the network.

    Raises:
        UdseError: another shape, or numbers that are not finite.
    """

    def __init__(self, latent: Any, seconds: float, spectral: Spectral, size: int) -> None:
        tensor = torch.from_numpy(latent) if isinstance(latent, np.ndarray) else latent
        fits = isinstance(tensor, Tensor) and tensor.ndim == 2 and tensor.is_floating_point() and len(tensor) > 0
        if not fits or tensor.shape[1] != size or not bool(torch.isfinite(tensor).all()):
            raise UdseError(f"latent: expected finite real numbers (frames, {size}), got {described(latent)}")
        self._latent, self._seconds, self._spectral = tensor.detach().cpu().float(), seconds, spectral

    def __call__(self, block: Block[Any]) -> Conditions:
        frames, rate = len(self._latent), self._spectral.sample_rate
        start = block.first_frame * self._spectral.hop_length / rate
        first, last = (round(second / self._seconds * frames) for second in (start, start + len(block.signal) / rate))
        first = min(first, frames - 1)
        return Conditions(latent=self._latent[first : max(last, first + 1)][None])

"""The conditional network for CPUs: `Compact` that is told the recording, for diffusion that drifts to it (SGMSE+)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from udse_fast.audio.spectral import PeakSpectral
from udse_fast.errors import UdseError
from udse_fast.networks.compact import Compact, Conv, frames_of, input_planes, interleave
from udse_fast.networks.conditions import NOTHING, Conditions
from udse_fast.networks.latent_attention import LatentAttention
from udse_fast.networks.past import Past

FILTER = 18
"""Of the output: real and imaginary weights of the 9 bins that the filter on the recording combines."""


class CompactConditional(Compact):
    """Denoiser D(u, a, y) of u = x_0 + a z, told the recording y: D = D_Compact + sum_k w_k y_k.

    Another filter over the bin itself and its 8 neighbours is added, on the recording; it starts at zero.

    Args:
        latent_size: H of a tagger's latent, to which the frames at the bottleneck attend (`LatentAttention`); 0: none.
        latent_pooling: see `LatentAttention`.
        arguments: of `Compact`, but `joint` and `causal_block`.
    """

    drifts = True
    planes = 6
    """Of the input: state and recording, each with its log-magnitude."""
    spectral = PeakSpectral(hop_length=255, window="sqrt_hann")
    has_core = False

    def __init__(self, latent_size: int = 0, latent_pooling: str = "frames", **arguments: Any) -> None:
        super().__init__(**arguments)
        if "label" in self.conditions or self.causal_block:
            raise UdseError("compact-conditional: expected a network of speech that sees the future, got another one")
        width = self.input.weight.shape[0]
        self.on_recording = Conv(width, FILTER * self.stem, (3, 3), zero=True)
        self.conditions = ("noisy",)
        self.latent: LatentAttention | None = None
        if latent_size:
            self.latent = LatentAttention(self.to_frames.weight.shape[0], latent_size, latent_pooling)
            self.conditions, self.condition_sizes = ("noisy", "latent"), {"H": latent_size}

    def posterior(
        self, noisy: Tensor, noise_level: Tensor, conditions: Conditions = NOTHING, past: Past | None = None
    ) -> tuple[Tensor, Tensor]:
        """E[x_0 | u, y] and its variance; arguments as of `Compact`, with the recording y as a condition."""
        assert conditions.noisy is not None
        assert past is None
        level = noise_level.float()
        level = level.unsqueeze(1) if level.ndim == 1 else level  # (B, T or 1)
        u, y = frames_of(noisy), frames_of(conditions.noisy)
        a2, data2 = level.square()[:, :, None, None], self.scale.by_label[1].square()
        planes = torch.cat([input_planes(u * (a2 + data2).rsqrt()), input_planes(y * data2.rsqrt() / 2)], dim=-1)

        def attending(frames: Tensor) -> Tensor:
            assert self.latent is not None
            assert conditions.latent is not None
            return frames + self.latent.attended(frames, conditions.latent)

        at_bottleneck = None if self.latent is None else attending
        h = self._features(planes.permute(0, 3, 1, 2), self._embedded(level), None, at_bottleneck)
        clean, variance = self._estimate(h, u, a2, data2, None)
        weights = interleave(self.on_recording(h), self.stem).permute(0, 2, 3, 1).float()
        clean = clean + self._filter(y, weights[..., :9], weights[..., 9:], None)
        return clean.permute(0, 3, 2, 1), variance.transpose(1, 2)

    def hidden_matrices(self) -> list[Tensor]:
        """As of `Compact`, without the filter on the recording."""
        return [w for w in super().hidden_matrices() if w is not self.on_recording.weight]

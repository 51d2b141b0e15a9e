"""The audio-visual network for CPUs: `Compact` that sees the lips, by FiLM in every residual block.

The features of the video are spread over the frames of the sound, and a layer of each block makes scales and shifts of
them, beside those of the noise level. How much each feature counts goes by the noise level: where little noise is left,
the sound says more than lips can. Without a video they are zero, and the network is the one that only hears: with
`udse-fast train --freeze`, the prior that it was started from. The video is expected to cover the time of the sound.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udse_fast.errors import UdseError
from udse_fast.networks.compact import Compact, FilmNorm, Residual
from udse_fast.networks.conditions import Conditions
from udse_fast.networks.visual_encoder import VisualEncoder, build_visual_encoder


class SeeingFilmNorm(FilmNorm):
    """A `FilmNorm` whose embedding is that of the noise level (E) with the features of the video (p) behind it."""

    def __init__(self, channels: int, embedding: int, features: int) -> None:
        super().__init__(channels, embedding)
        self.sees = nn.Linear(features, 2 * channels, bias=False)
        nn.init.zeros_(self.sees.weight)  # a network that starts from a speech prior starts as that prior

    def modulation(self, embedding: Tensor) -> Tensor:
        """Of both."""
        level, seen = embedding.split([self.film.in_features, self.sees.in_features], dim=-1)
        modulation: Tensor = self.film(level) + self.sees(seen)
        return modulation


class CompactAudioVisual(Compact):
    """D(u, a, video) of one source.

    Args:
        encoder: arguments of the visual encoder, which is trained with the network (`build_visual_encoder`).
        arguments: of `Compact`; `joint` and `causal_block` are not for it.
    """

    sees = True
    has_core = False
    causal_blocks = ()

    def __init__(self, encoder: Mapping[str, Any] | None = None, embedding: int = 128, **arguments: Any) -> None:
        super().__init__(embedding=embedding, **arguments)
        if self.conditions or self.causal_block:
            raise UdseError("compact-av: expected a network of one source that is not causal, got joint or causal")
        self.encoder = build_visual_encoder(encoder or {"name": "compact"})
        self.conditions = ("video",)
        self.condition_sizes = {"p": self.encoder.features}
        self.counts = nn.Linear(embedding, self.encoder.features)
        nn.init.zeros_(self.counts.weight)
        nn.init.ones_(self.counts.bias)
        for block in [module for module in self.modules() if isinstance(module, Residual)]:
            channels = block.norm.film.out_features // 2
            block.norm = SeeingFilmNorm(channels, embedding, self.encoder.features)

    @property
    def visual_encoder(self) -> VisualEncoder:
        """From mouth crops to the features that it is told."""
        return self.encoder

    def told(self, embedding: Tensor, conditions: Conditions, frames: int) -> Tensor:
        """With the video (B, Tv, p) behind it that belongs to the frames, interpolated; zeros are no video."""
        B, T, _ = embedding.shape
        if conditions.video is None:
            return torch.cat([embedding, embedding.new_zeros(B, T, self.encoder.features)], dim=-1)
        seen = F.interpolate(conditions.video.transpose(1, 2), frames, mode="linear", align_corners=False)
        seen = self.counts(embedding) * seen.transpose(1, 2).to(embedding.dtype)
        return torch.cat([embedding.expand(-1, frames, -1), seen], dim=-1)

    def completed(self, conditions: Conditions, batch: int) -> Conditions:
        """Without a video, one of zeros, which it was trained with, too."""
        if conditions.video is not None:
            return conditions
        return conditions.merged(Conditions(video=torch.zeros(1, 1, self.encoder.features)))

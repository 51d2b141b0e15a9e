"""The audio-visual network for CPUs: `Compact` that sees the lips, by FiLM in every residual block.

The features of the video are spread over the frames of the sound and added to the embedding of the noise level, which
scales and shifts the normalised maps everywhere. The video is expected to cover the time of the spectrogram.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udse_fast.errors import UdseError
from udse_fast.networks.compact import Compact
from udse_fast.networks.conditions import Conditions
from udse_fast.networks.visual_encoder import VisualEncoder, build_visual_encoder


class CompactAudioVisual(Compact):
    """D(u, a, video) of one source.

    Args:
        encoder: arguments of the visual encoder, which is trained with the network (`build_visual_encoder`).
        arguments: of `Compact`; `joint` and `causal_block` are not for it.
    """

    sees = True
    has_causal_core = False
    causal_blocks = ()

    def __init__(self, encoder: Mapping[str, Any] | None = None, embedding: int = 128, **arguments: Any) -> None:
        super().__init__(embedding=embedding, **arguments)
        if self.conditions or self.causal_block:
            raise UdseError("compact-av: expected a network of one source that is not causal, got joint or causal")
        self.encoder = build_visual_encoder(encoder or {"name": "compact"})
        self.conditions = ("video",)
        self.condition_sizes = {"p": self.encoder.features}
        self.film = nn.Linear(self.encoder.features, embedding, bias=False)
        nn.init.zeros_(self.film.weight)  # a network that starts from a speech prior starts as that prior

    @property
    def visual_encoder(self) -> VisualEncoder:
        """From mouth crops to the features that it is told."""
        return self.encoder

    def told(self, embedding: Tensor, conditions: Conditions, frames: int) -> Tensor:
        """With the video (B, Tv, p) that belongs to the frames, interpolated; zeros are no video."""
        if conditions.video is None:
            return embedding
        seen = self.film(conditions.video.to(self.film.weight.dtype)).transpose(1, 2)
        return embedding + F.interpolate(seen, frames, mode="linear", align_corners=False).transpose(1, 2)

    def completed(self, conditions: Conditions, batch: int) -> Conditions:
        """Without a video, one of zeros, which it was trained with, too."""
        if conditions.video is not None:
            return conditions
        return conditions.merged(Conditions(video=torch.zeros(1, 1, self.encoder.features)))

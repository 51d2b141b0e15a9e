"""The audio-visual NCSN++ of AV-UDiffSE (Ayilo et al. 2025): the published network, which sees the lips.

After the input, and on each level on the way down, at the bottleneck and on the way up, every frame of the map attends
to all frames of the video. Nothing aligns the two: video of any length and any rate will do, and where in time a video
frame is can only come from its features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udse_fast.networks.conditions import NOTHING, Conditions
from udse_fast.networks.ncsnpp import NCSNpp
from udse_fast.networks.visual_encoder import VisualEncoder, build_visual_encoder

INPUT_WIDTH = 128
"""Of the attention on the highest level of the published networks; on the others the width is the number of bins."""
PROJECTED = 256
"""Width of features that the network maps by a layer of its own first."""


class Attending(nn.Module):
    """Cross-attention from the frames of one channel to those of the video, one head, without a scale: its layers."""

    def __init__(self, bins: int, features: int, width: int) -> None:
        super().__init__()
        self.to_q = nn.Linear(bins, width, bias=False)
        self.to_k = nn.Linear(features, width, bias=False)
        self.to_v = nn.Linear(features, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, bins))

    def forward(self, x: Tensor, video: Tensor) -> Tensor:
        """x (B, C, F, T), video (B, Tv, p) -> (B, C, F, T); all channels share the weights, and the keys."""
        B, C, bins, T = x.shape
        query = self.to_q(x.transpose(2, 3).reshape(B, 1, C * T, bins))
        key, value = self.to_k(video)[:, None], self.to_v(video)[:, None]
        attended = self.to_out(F.scaled_dot_product_attention(query, key, value, scale=1.0))
        return attended.view(B, C, T, bins).transpose(2, 3)


class VideoFusion(nn.Module):
    """h + GroupNorm(what h attends to in the video)."""

    def __init__(self, channels: int, bins: int, features: int, width: int) -> None:
        super().__init__()
        self.cross_attention = Attending(bins, features, width)
        self.groupnorm = nn.GroupNorm(min(channels // 4, 32), channels, eps=1e-6)

    def seen(self, h: Tensor, conditions: Conditions) -> Tensor:
        """What is added to h, (B, C, F, T)."""
        assert conditions.video is not None
        seen: Tensor = self.groupnorm(self.cross_attention(h, conditions.video))
        return seen

    def forward(self, h: Tensor, conditions: Conditions) -> Tensor:
        """(B, C, F, T), conditions with the video -> (B, C, F, T)."""
        return h + self.seen(h, conditions)


class AudioVisualNCSNpp(NCSNpp):
    """`NCSNpp` of speech that sees the lips.

    Args:
        video: width p of the features of a video frame.
        encoder: arguments of the visual encoder that comes with the network (`build_visual_encoder`); None: features
            are given.
        projects: the features are mapped by SiLU(Linear(p -> 256)) first.
        arguments: of `NCSNpp`, without `joint`.
    """

    def __init__(
        self,
        video: int = 768,
        encoder: Mapping[str, Any] | None = None,
        projects: bool = False,
        ch_mult: Sequence[int] = (1, 1, 1, 1),
        **arguments: Any,
    ) -> None:
        features = PROJECTED if projects else video

        def fusion(place: str, channels: int, bins: int) -> VideoFusion:
            return VideoFusion(channels, bins, features, INPUT_WIDTH if place == "input" else bins)

        super().__init__(ch_mult=ch_mult, fusion=fusion, **arguments)
        if self.joint:
            raise ValueError("a network of one source is expected, got joint=True")
        self.conditions = ("video",)
        self.condition_sizes = {"p": video}
        self.feature_extractor: VisualEncoder | None = None if encoder is None else build_visual_encoder(encoder)
        if self.feature_extractor is not None and self.feature_extractor.features != video:
            raise ValueError(f"features of the width {video} are expected, the encoder's are {encoder}")
        if projects:
            self.adapt_dim_layer = nn.Linear(video, PROJECTED)
        self.projects = projects

    @property
    def visual_encoder(self) -> VisualEncoder | None:
        """From mouth crops to the features that it is told."""
        return self.feature_extractor

    def predict_noise(self, state: Tensor, time: Tensor, conditions: Conditions = NOTHING) -> Tensor:
        """As of `NCSNpp`, told the features of the video (B, Tv, p) float32."""
        video = conditions.video
        assert video is not None
        video = video.to(self.output_layer.weight.dtype)
        if self.projects:
            video = F.silu(self.adapt_dim_layer(video))
        return super().predict_noise(state, time, Conditions(video=video))

    def completed(self, conditions: Conditions, batch: int) -> Conditions:
        """Without a video, one of zeros: this network was never trained without."""
        if conditions.video is not None:
            return conditions
        return conditions.merged(Conditions(video=torch.zeros(1, 1, self.condition_sizes["p"])))

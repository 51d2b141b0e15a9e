"""The visual encoder for CPUs: 0.2 M parameters, 3 MFLOP a frame, trained with the network that it is part of."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from udse_fast.networks.visual_encoder import CROP, VisualEncoder


class CompactVisualEncoder(VisualEncoder):
    """Three convolutions over the picture, two over time, and a norm: features are never near zero.

    Args:
        features: width p of what comes out.
        channels: of the convolutions over the picture, which divide its sides by 4, 2 and 2.
        reach: frames on either side that a convolution over time sees.
    """

    def __init__(self, features: int = 64, channels: tuple[int, int, int] = (16, 32, 48), reach: int = 2) -> None:
        super().__init__()
        self.features = features
        first, second, third = channels
        self.picture = nn.Sequential(
            nn.Conv2d(1, first, 7, stride=4, padding=3),
            nn.SiLU(),
            nn.Conv2d(first, second, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(second, third, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Flatten(),
        )
        self.project = nn.Linear(third * (-(-CROP // 16)) ** 2, features)
        self.over_time = nn.ModuleList(nn.Conv1d(features, features, 2 * reach + 1, padding=reach) for _ in range(2))
        self.norm = nn.LayerNorm(features)

    def encode(self, pixels: Tensor) -> Tensor:
        """Frame by frame, then over time."""
        B, _, T = pixels.shape[:3]
        x = self.project(self.picture(pixels.transpose(1, 2).flatten(0, 1))).unflatten(0, (B, T)).transpose(1, 2)
        for layer in self.over_time:
            x = x + layer(F.silu(x))
        features: Tensor = self.norm(x.transpose(1, 2))
        return features

"""Cross-attention from the bottleneck of a U-Net to the latent of an audio tagger.

Ex-Diff: "Extract and diffuse: latent integration for improved diffusion-based speech and vocal enhancement", 2024. The
paper says that the latent is averaged over its frames, and that the frames are encoded by their position: both readings
are here.
"""

from __future__ import annotations

import math
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udse_fast.errors import UdseError
from udse_fast.networks.conditions import Conditions

POOLINGS: Final = ("frames", "mean")
"""Of a latent: its frames are looked at one by one, or their average."""


class LatentAttention(nn.Module):
    """Each position of a map looks at the frames of a latent: W_o softmax(Q K^T / sqrt(C)) V, zero at the start.

    A sinusoidal encoding of the frames is added to the latent, which a linear layer brings to the channels of the map.
    With one frame (an average over time) the softmax is 1, and every position is told the same.

    Args:
        channels: C of the map.
        latent_size: H.
        pooling: see `POOLINGS`.
    """

    def __init__(self, channels: int, latent_size: int, pooling: str = "frames") -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise UdseError(f"latent_pooling: expected {' or '.join(POOLINGS)}, got {pooling!r}")
        self.pooling = pooling
        self.norm = nn.GroupNorm(min(channels // 4, 32), channels, eps=1e-6)
        self.latent = nn.Linear(latent_size, channels)
        self.query, self.key, self.value = (nn.Linear(channels, channels) for _ in range(3))
        self.output = nn.Linear(channels, channels)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def attended(self, h: Tensor, latent: Tensor) -> Tensor:
        """h (B, C, F, T), latent (B, T_l, H) float32 -> (B, C, F, T), what to add to h."""
        dtype = self.query.weight.dtype
        if self.pooling == "mean":
            latent = latent.mean(1, keepdim=True)
        told = self.latent((latent + frame_encoding(latent)).to(dtype))
        positions = self.norm(h.to(dtype)).flatten(2).transpose(1, 2)  # (B, F T, C)
        attended = F.scaled_dot_product_attention(
            self.query(positions)[:, None], self.key(told)[:, None], self.value(told)[:, None]
        )[:, 0]
        return self.output(attended).transpose(1, 2).reshape(h.shape).to(h.dtype)


class LatentFusion(LatentAttention):
    """(h + attention) / sqrt(2), as the self-attention beside it: at the bottleneck of an NCSN++."""

    def seen(self, h: Tensor, conditions: Conditions) -> Tensor:
        """What is added to h, (B, C, F, T)."""
        assert conditions.latent is not None
        return self.attended(h, conditions.latent)

    def forward(self, h: Tensor, conditions: Conditions) -> Tensor:
        """(B, C, F, T), conditions with the latent -> (B, C, F, T)."""
        return (h + self.seen(h, conditions)) / math.sqrt(2)


def frame_encoding(latent: Tensor) -> Tensor:
    """[sin, cos](n w) of the frame number n, geometric w down to 1e-4 (Vaswani et al. 2017): (T_l, H) float32."""
    size = latent.shape[-1]
    number = (
        torch.ones_like(latent[0, :, 0], dtype=torch.float32).cumsum(0) - 1
    )  # unlike arange, exports for any length
    rate = torch.exp(torch.arange(0, size, 2, device=latent.device) * (-math.log(1e4) / size))
    phase = number[:, None] * rate
    return torch.stack([phase.sin(), phase.cos()], dim=-1).flatten(1)[:, :size]

"""The visual half of AV-HuBERT (Shi et al. 2022, base size), as it is inside the published audio-visual checkpoints.

A ResNet-18 with a convolution over five frames in front, and a transformer over the whole clip. The modules have the
names of the published checkpoints, so that their `state_dict` loads without renaming.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udse_fast.errors import UdseError
from udse_fast.networks.visual_encoder import VisualEncoder

UNUSED = ("mask_emb", "label_embs_concat", "feature_extractor_audio.")
"""Beginnings of the names of weights that the way from pixels to features does not read."""
HEAD_WIDTH = 64
"""Of the published sizes, base and large."""


class ResidualBlock(nn.Module):
    """relu(x + bn(conv(relu(bn(conv(x)))))) with two sets of slopes."""

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.PReLU(out_channels)
        self.relu2 = nn.PReLU(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels != out_channels:
            shortcut = nn.Conv2d(channels, out_channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, y, x) -> (N, C', y / stride, x / stride)."""
        h = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        activated: Tensor = self.relu2(h + (x if self.downsample is None else self.downsample(x)))
        return activated


class Trunk(nn.Module):
    """ResNet on each frame by itself, and the mean over what is left of the picture."""

    def __init__(self, widths: Sequence[int], blocks: Sequence[int]) -> None:
        super().__init__()
        channels = widths[0]
        for number, (width, count) in enumerate(zip(widths, blocks, strict=True), 1):
            layer = [ResidualBlock(channels, width, 1 if number == 1 else 2)]
            layer += [ResidualBlock(width, width, 1) for _ in range(count - 1)]
            self.add_module(f"layer{number}", nn.Sequential(*layer))
            channels = width

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, y, x) -> (N, C')."""
        for layer in self.children():
            x = layer(x)
        return x.mean((2, 3))


class ResNet(nn.Module):
    """A convolution over five frames, then `Trunk`."""

    def __init__(self, widths: Sequence[int], blocks: Sequence[int]) -> None:
        super().__init__()
        self.frontend3D = nn.Sequential(
            nn.Conv3d(1, widths[0], (5, 7, 7), (1, 2, 2), (2, 3, 3), bias=False),
            nn.BatchNorm3d(widths[0]),
            nn.PReLU(widths[0]),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
        )
        self.trunk = Trunk(widths, blocks)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 1, Tv, 88, 88) -> (B, Tv, C)."""
        h = self.frontend3D(pixels).transpose(1, 2)
        features: Tensor = self.trunk(h.flatten(0, 1)).unflatten(0, h.shape[:2])
        return features


class VideoFeatures(nn.Module):
    """`ResNet`, and a linear map to the width of the transformer."""

    def __init__(self, widths: Sequence[int], blocks: Sequence[int], width: int) -> None:
        super().__init__()
        self.resnet = ResNet(widths, blocks)
        self.proj = nn.Linear(widths[-1], width)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 1, Tv, 88, 88) -> (B, Tv, D)."""
        features: Tensor = self.proj(self.resnet(pixels))
        return features


class TapNormConv(nn.Module):
    """Convolution over time with w[:, :, j] = g[j] v[:, :, j] / ||v[:, :, j]||; frame t sees t - K/2 to t + K/2 - 1."""

    def __init__(self, width: int, taps: int, groups: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))
        self.weight_g = nn.Parameter(torch.ones(1, 1, taps))
        self.weight_v = nn.Parameter(torch.randn(width, width // groups, taps))
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, T) -> (B, D, T)."""
        v = self.weight_v
        weight = v * (self.weight_g / v.square().sum((0, 1), keepdim=True).sqrt())
        return F.conv1d(x, weight, self.bias, padding=v.shape[2] // 2, groups=self.groups)[..., : x.shape[-1]]


class SelfAttention(nn.Module):
    """Softmax attention over all frames, with a scale, without a mask."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        query, key, value = (
            layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended: Tensor = self.out_proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        return attended


class TransformerLayer(nn.Module):
    """x + attention(norm(x)), then x + fc2(GELU(fc1(norm(x))))."""

    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.self_attn = SelfAttention(width, heads)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x = x + self.self_attn(self.self_attn_layer_norm(x))
        h: Tensor = self.fc2(F.gelu(self.fc1(self.final_layer_norm(x))))
        return x + h


class Transformer(nn.Module):
    """Adds where a frame is by a convolution, then `TransformerLayer`s and a norm."""

    def __init__(self, width: int, inner: int, heads: int, layers: int, taps: int, groups: int) -> None:
        super().__init__()
        self.pos_conv = nn.Sequential(TapNormConv(width, taps, groups), nn.GELU())
        self.layers = nn.ModuleList(TransformerLayer(width, inner, heads) for _ in range(layers))
        self.layer_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x = x + self.pos_conv(x.transpose(1, 2)).transpose(1, 2)
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.layer_norm(x)
        return out


class AVHubert(VisualEncoder):
    """Features of the last layer; the sound, which the published model can hear too, is left out.

    Args:
        width: D, of the transformer, and of what comes out.
        inner: of its layers.
        heads: of its attention.
        layers: of it.
        resnet: widths of the ResNet's layers.
        blocks: residual blocks of each.
        taps, groups: of the convolution that says where a frame is.
    """

    def __init__(
        self,
        width: int = 768,
        inner: int = 3072,
        heads: int = 12,
        layers: int = 12,
        resnet: Sequence[int] = (64, 128, 256, 512),
        blocks: Sequence[int] = (2, 2, 2, 2),
        taps: int = 128,
        groups: int = 16,
    ) -> None:
        super().__init__()
        if width % heads or width % groups or len(resnet) != len(blocks):
            raise UdseError(
                f"expected heads and groups that divide the width {width}, and as many blocks as resnet widths, got "
                f"{heads}, {groups}, {len(blocks)} and {len(resnet)}"
            )
        self.features = width
        self.feature_extractor_video = VideoFeatures(resnet, blocks, width)
        self.post_extract_proj = nn.Linear(2 * width, width)
        self.layer_norm = nn.LayerNorm(2 * width)
        self.encoder = Transformer(width, inner, heads, layers, taps, groups)

    def encode(self, pixels: Tensor) -> Tensor:
        """The half of the features that is of sound is zeros, which the norm moves."""
        seen = self.feature_extractor_video(pixels)
        both = self.layer_norm(torch.cat([torch.zeros_like(seen), seen], dim=2))
        features: Tensor = self.encoder(self.post_extract_proj(both))
        return features


def av_hubert_arguments(shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Name and arguments of the encoder whose weights have these names and shapes.

    Raises:
        KeyError, IndexError, ValueError: they are not those of an AV-HuBERT.
    """
    layers = [name.split(".")[2] for name in shapes if name.startswith("encoder.layers.")]
    trunk = "feature_extractor_video.resnet.trunk.layer"
    resnet, blocks = [], []
    for number in range(1, 5):
        resnet.append(shapes[f"{trunk}{number}.0.conv1.weight"][0])
        blocks.append(len({n.split(".")[4] for n in shapes if n.startswith(f"{trunk}{number}.")}))
    inner, width = shapes["encoder.layers.0.fc1.weight"]
    _, per_group, taps = shapes["encoder.pos_conv.0.weight_v"]
    return {
        "name": "av-hubert",
        "width": width,
        "inner": inner,
        "heads": max(1, width // HEAD_WIDTH),  # the one size that no weight tells
        "layers": 1 + max(map(int, layers)),
        "resnet": resnet,
        "blocks": blocks,
        "taps": taps,
        "groups": width // per_group,
    }

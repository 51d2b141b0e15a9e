"""`VisualEncoder`: from mouth crops to one vector per video frame, which audio-visual networks are told.

Mouth crops are 88 x 88 grey pixels, 0 to 255, normalised as for AV-HuBERT (Shi et al. 2022): (v / 255 - 0.421) / 0.165.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from udse_fast.checks import described
from udse_fast.errors import UdseError
from udse_fast.networks.base import Float32

CROP = 88
"""Height and width of a mouth crop in pixels."""
VIDEO_RATE = 25.0
"""Frames per second that the encoders are made for."""
MEAN, DEVIATION = 0.421, 0.165
"""Of the pixels, where white is 1."""

_CLASSES = {
    "av-hubert": ("udse_fast.networks.av_hubert", "AVHubert"),
    "compact": ("udse_fast.networks.compact_visual_encoder", "CompactVisualEncoder"),
}


class VisualEncoder(Float32, nn.Module, ABC):
    """Makes features (B, Tv, `features`) of a video."""

    features: int
    """Width p of what it gives for a frame."""

    def forward(self, frames: Tensor) -> Tensor:
        """Mouth crops (B, 1, Tv, 88, 88), pixels 0 to 255, of any kind of number -> (B, Tv, p) float32.

        Raises:
            UdseError: another shape.
        """
        fits = isinstance(frames, Tensor) and frames.ndim == 5 and frames.shape[1] == 1 and not frames.is_complex()
        if not fits or frames.shape[3:] != (CROP, CROP) or frames.numel() == 0:
            raise UdseError(f"video: expected mouth crops (B, 1, Tv, {CROP}, {CROP}), got {described(frames)}")
        return self.encode((frames.float() / 255 - MEAN) / DEVIATION)

    @abstractmethod
    def encode(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, 1, Tv, 88, 88) float32 -> (B, Tv, p) float32."""


def build_visual_encoder(arguments: Mapping[str, Any]) -> VisualEncoder:
    """A visual encoder with fresh weights; `arguments` holds its name and the arguments of its class.

    Raises:
        UdseError: there is none of this name.
    """
    arguments = dict(arguments)
    name = arguments.pop("name", None)
    if name not in _CLASSES:
        raise UdseError(f"expected a visual encoder named {' or '.join(_CLASSES)}, got {name!r}")
    module, class_name = _CLASSES[name]
    encoder: VisualEncoder = getattr(importlib.import_module(module), class_name)(**arguments)
    return encoder


def encoded(encoder: VisualEncoder, frames: Tensor) -> Tensor:
    """Features of a video (Tv, 88, 88), (Tv, p) on its device; no gradients."""
    device = next(encoder.parameters()).device
    with torch.no_grad():
        return encoder(frames.to(device)[None, None])[0]

"""From posterior samples to one estimate: averaging, Wiener filters, strength."""

from __future__ import annotations

import torch
from torch import Tensor

READOUTS = ("wiener", "mean", "mean_compressed")


def wiener_gain(speech: Tensor, noise: Tensor) -> Tensor:
    """ParaDiffUSE: `mean_b |s|^2 / (|s|^2 + |n|^2)`; speech, noise (B, F, T) complex -> (F, T) in [0, 1]."""
    s, n = speech.abs().square(), noise.abs().square()
    return (s / (s + n).clamp_min(torch.finfo(s.dtype).tiny)).mean(0)


def paradiffuse_wiener(mixture: Tensor, speech: Tensor, noise: Tensor) -> Tensor:
    """`sqrt(gain |x|^2) exp(i arg mean_b s)`: mixture (F, T), samples (B, F, T) -> (F, T) compressed speech."""
    magnitude = wiener_gain(speech, noise).sqrt() * mixture.abs()
    return torch.polar(magnitude, speech.mean(0).angle())

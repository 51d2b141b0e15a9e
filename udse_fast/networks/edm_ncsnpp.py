"""NCSN++ as an EDM-preconditioned denoiser, which may see the lips by FiLM: the form of the priors of DAVSS-NM.

Preconditioning: Karras et al. 2022, Table 1. Lips: FiLM on every level (Perez et al. 2018), of features that are
interpolated in time to the frames of the level.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udse_fast.checks import Range, real_number
from udse_fast.networks.conditions import NOTHING, Conditions
from udse_fast.networks.ncsnpp import NCSNpp
from udse_fast.networks.visual_encoder import VisualEncoder, build_visual_encoder

_SIZE = {"nf": 128, "ch_mult": (1, 2, 2, 2)}
EDM_SIZES: dict[str, dict[str, Any]] = {
    "ncsnpp-edm": {"name": "ncsnpp-edm", **_SIZE},
    "ncsnpp-edm-av": {"name": "ncsnpp-edm-av", **_SIZE, "encoder": {"name": "compact"}},
}
"""Arguments for the sizes of DAVSS-NM's priors: of noise, or of speech that is only heard; of speech that is seen."""


class VideoFilm(nn.Module):
    """h (1 + scale) + shift, alike for all bins; it starts as the identity."""

    def __init__(self, channels: int, features: int) -> None:
        super().__init__()
        self.film = nn.Conv1d(features, 2 * channels, 1)
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)  # type: ignore[arg-type]

    def forward(self, h: Tensor, conditions: Conditions) -> Tensor:
        """(B, C, F, T), conditions with the video (B, Tv, p) -> (B, C, F, T)."""
        assert conditions.video is not None
        seen = F.interpolate(conditions.video.transpose(1, 2).to(h.dtype), h.shape[-1], mode="linear")
        scale, shift = self.film(seen).unsqueeze(2).chunk(2, dim=1)
        return h * (1 + scale) + shift


class EDMNCSNpp(NCSNpp):
    """D(u, a) = c_skip u + c_out N(c_in u, c_noise), with N an `NCSNpp`, c_noise = log(a) / 4 and d = `sigma_data`.

    c_skip = d^2 / (a^2 + d^2), c_out = a d / sqrt(a^2 + d^2), c_in = 1 / sqrt(a^2 + d^2).

    Args:
        sigma_data: root mean square of the training spectrograms.
        arguments: of `NCSNpp`, without `joint`.
    """

    predicts = "clean"
    has_data_scale = True
    frame_multiple = 1  # it pads by itself

    def __init__(self, sigma_data: float = 0.06, **arguments: Any) -> None:
        super().__init__(**arguments)
        if self.joint:
            raise ValueError("a network of one source is expected, got joint=True")
        self.sigma_data = real_number("sigma_data", sigma_data, Range(0, excluded=True))

    def denoise(self, noisy: Tensor, noise_level: Tensor, conditions: Conditions = NOTHING) -> Tensor:
        """E[s_0 | u], (B, 2, F, T) float32, of u (B, 2, F, T) at the noise levels a, (B,) or one per frame (B, T)."""
        frames = noisy.shape[-1]
        missing = -frames % NCSNpp.frame_multiple
        level = noise_level[:, None] if noise_level.ndim == 1 else noise_level
        a2 = level.square()[:, None, None]
        total = a2 + self.sigma_data**2
        scaled = F.pad(noisy * total.rsqrt(), (0, missing))
        told = level if level.shape[1] == 1 else F.pad(level, (0, missing), mode="replicate")
        # its Fourier features are of the logarithm of what it is told: log(a^(1/4)) = c_noise
        out = self.output_layer(self._progressive(scaled, told**0.25, self._spread(conditions, frames, missing)))
        out = out.float()[..., :frames]
        return (self.sigma_data**2 * noisy + (a2 * total).sqrt() * self.sigma_data * out) / total

    def _spread(self, conditions: Conditions, frames: int, missing: int) -> Conditions:
        """Conditions of a spectrogram that is padded by so many frames."""
        return conditions

    def loss_weight(self, noise_level: Tensor, conditions: Conditions = NOTHING) -> Tensor:
        """Of ||sigma S + z||^2, which makes the denoising loss 1 / c_out^2 weighted: (a^2 + d^2) / d^2."""
        return 1 + (noise_level / self.sigma_data).square()


class SeeingEDMNCSNpp(EDMNCSNpp):
    """The same of a talker who is seen. The video is expected to cover the time of the spectrogram.

    Args:
        video: width p of the features of a video frame, where there is no encoder.
        encoder: arguments of a visual encoder that is trained with the network, and says p.
        arguments: of `EDMNCSNpp`.
    """

    sees = True

    def __init__(self, video: int = 1024, encoder: Mapping[str, Any] | None = None, **arguments: Any) -> None:
        made = None if encoder is None else build_visual_encoder(encoder)
        width = video if made is None else made.features

        def film(place: str, channels: int, bins: int) -> VideoFilm | None:
            return None if place == "input" else VideoFilm(channels, width)

        super().__init__(fusion=film, **arguments)
        self.encoder = made
        self.conditions, self.condition_sizes = ("video",), {"p": width}

    @property
    def visual_encoder(self) -> VisualEncoder | None:
        """From mouth crops to the features that it is told."""
        return self.encoder

    def completed(self, conditions: Conditions, batch: int) -> Conditions:
        """Without a video, one of zeros, which it was trained with, too."""
        if conditions.video is not None:
            return conditions
        return conditions.merged(Conditions(video=torch.zeros(1, 1, self.condition_sizes["p"])))

    def _spread(self, conditions: Conditions, frames: int, missing: int) -> Conditions:
        """With one video frame for each frame of the spectrogram."""
        assert conditions.video is not None
        seen = F.interpolate(conditions.video.transpose(1, 2), frames, mode="linear")
        return Conditions(video=F.pad(seen, (0, missing), mode="replicate").transpose(1, 2))

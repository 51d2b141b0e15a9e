"""`TalkerVideo`: what is seen of one talker, for the blocks of a recording."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from udse_fast.checks import Range, described, real_number
from udse_fast.errors import UdseError
from udse_fast.networks.score_network import ScoreNetwork
from udse_fast.networks.visual_encoder import CROP, encoded

VIDEO_RATES = Range(1, 1000)


@dataclass(frozen=True)
class TalkerVideo:
    """Features (Tv, p) of a video that starts with the recording, and their rate in Hz."""

    features: Tensor
    rate: float

    @classmethod
    def of(cls, name: str, video: Any, rate: Any, network: ScoreNetwork) -> TalkerVideo:
        """A user's video of a talker, for the network of that talker.

        Args:
            name: of the talker.
            video: mouth crops (Tv, 88, 88), pixels 0 to 255, or features (Tv, p); numpy or torch.
            rate: frames per second.

        Raises:
            UdseError: another shape, numbers that are not finite, or a network that sees nothing.
        """
        if "video" not in network.conditions:
            kind = network.config["architecture"].get("name")
            raise UdseError(f"video of {name}: expected a prior that sees the lips, got {kind}; give its checkpoint")
        width = network.module.condition_sizes["p"]
        given = torch.from_numpy(video) if isinstance(video, np.ndarray) else video
        encoder = network.module.visual_encoder
        is_tensor = isinstance(given, Tensor) and not given.is_complex() and given.numel() > 0
        if is_tensor and given.ndim == 3 and given.shape[1:] == (CROP, CROP) and encoder is not None:
            features = encoded(encoder, given)
        elif is_tensor and given.ndim == 2 and given.shape[1] == width:
            features = given.to(network.device, torch.float32)
        else:
            crops = "" if encoder is None else f"mouth crops (Tv, {CROP}, {CROP}) or "
            raise UdseError(f"video of {name}: expected {crops}features (Tv, {width}), got {described(video)}")
        if not torch.isfinite(features).all():
            raise UdseError(f"video of {name}: expected finite numbers, got NaN or infinity")
        return cls(features, real_number("video_rate", rate, VIDEO_RATES))

    def during(self, start: float, end: float) -> Tensor:
        """Features (1, n, p) of the frames that are shown between two times in s.

        After the end of the video they are zeros, which say that nothing is seen.
        """
        first = round(start * self.rate)
        last = max(first + 1, math.ceil(end * self.rate))
        shown = self.features[first:last]
        missing = last - first - len(shown)
        return torch.nn.functional.pad(shown, (0, 0, 0, missing))[None]

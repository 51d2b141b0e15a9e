"""`VideoTrack`: the video that belongs to a signal, and what of it a network is told about each block."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from udse_fast.audio.spectral import Spectral
from udse_fast.checks import Range, described, real_number
from udse_fast.errors import UdseError
from udse_fast.networks.conditions import Conditions
from udse_fast.networks.score_network import ScoreNetwork
from udse_fast.networks.visual_encoder import CROP, VIDEO_RATE, encoded
from udse_fast.streaming.blocks import Block

RATES = Range(1, 1000)
"""Of a video, frames per second."""
HELD_SECONDS = 0.2
"""So long the last frame is held: a video is rarely as long as its sound to the sample."""


class VideoTrack:
    """Video that comes with a signal: frame j is what is seen from j / rate to (j + 1) / rate seconds of the sound.

    A block is told 25 frames for each of its seconds, each the one that is seen in the middle of its 40 ms. Where the
    video has ended, by more than `HELD_SECONDS`, or is missing, features are zeros, which stand for no video. What
    is longer than the sound is not looked at.

    Args:
        network: an audio-visual one.
        spectral: the domain of its blocks.
        rate: frames per second.

    Raises:
        UdseError: the network hears only.
    """

    def __init__(self, network: ScoreNetwork, spectral: Spectral, rate: float = VIDEO_RATE) -> None:
        if "video" not in network.conditions:
            raise UdseError(
                "video: expected none with a prior that only hears, got one; give an audio-visual checkpoint"
            )
        self.rate = real_number("video_rate", rate, RATES)
        self.network, self.spectral = network, spectral
        self.width = network.module.condition_sizes["p"]
        self.reset()

    def reset(self) -> None:
        """Forget everything; the next frame is the first."""
        self._frames: Tensor | None = None
        self._first = 0
        self._told: tuple[int, int, Tensor] | None = None

    def append(self, video: Any) -> None:
        """Frames that come next: mouth crops (n, 88, 88), pixels 0 to 255, or features (n, p); numpy or torch, n >= 0.

        Raises:
            UdseError: another shape or kind than these, or than before; numbers that are no pixels.
        """
        frames = self._checked(video)
        if self._frames is None:
            self._frames = frames
        elif frames.shape[1:] == self._frames.shape[1:] and frames.dtype == self._frames.dtype:
            self._frames = torch.cat([self._frames, frames])
        else:
            raise UdseError(
                f"video: expected frames like the first, {described(self._frames)}, got {described(frames)}"
            )

    def _checked(self, video: Any) -> Tensor:
        frames = torch.from_numpy(video) if isinstance(video, np.ndarray) and video.dtype.kind in "uif" else video
        shapes = f"mouth crops (Tv, {CROP}, {CROP}), pixels 0 to 255, or features (Tv, {self.width})"
        if not isinstance(frames, Tensor) or frames.is_complex() or frames.dtype == torch.bool:
            raise UdseError(f"video: expected {shapes}, got {described(video)}")
        of_pixels = frames.ndim == 3 and frames.shape[1:] == (CROP, CROP)
        if not of_pixels and not (frames.ndim == 2 and frames.shape[1] == self.width):
            raise UdseError(f"video: expected {shapes}, got {described(frames)}")
        if of_pixels and self.network.visual_encoder is None:
            raise UdseError(
                f"video: expected features (Tv, {self.width}), as this checkpoint has no visual encoder that is known, "
                "got mouth crops"
            )
        frames = frames.detach().cpu()
        if frames.dtype != torch.uint8:
            frames = frames.to(torch.float32)
            if not frames.isfinite().all():
                raise UdseError("video: expected finite numbers, got NaN or infinity")
            if of_pixels and frames.numel() and not (frames.min() >= 0 and 1 < frames.max() <= 255):
                least, most = float(frames.min()), float(frames.max())
                raise UdseError(f"video: expected pixels from 0 (black) to 255 (white), got {least:g} to {most:g}")
        return frames

    def tell(self, block: Block[Any]) -> Conditions:
        """The features that belong to a block, (1, n, p) on the network's device. Blocks come in order of time."""
        place = block.first_frame, len(block.signal)
        if self._told is None or self._told[:2] != place:  # the channels of a signal see the same
            self._told = *place, self._features(*place)
        return Conditions(video=self._told[2])

    def _features(self, first_frame: int, samples: int) -> Tensor:
        start = first_frame * self.spectral.hop_length / self.spectral.sample_rate
        length = samples / self.spectral.sample_rate
        count = max(1, round(length * VIDEO_RATE))
        features = torch.zeros(1, count, self.width, device=self.network.device)
        if self._frames is None or not len(self._frames):
            return features
        self._drop_before(int(start * self.rate))
        times = start + (torch.arange(count, dtype=torch.float64) + 0.5) * (length / count)
        seen = times[times < (self._first + len(self._frames)) / self.rate + HELD_SECONDS]
        if len(seen):
            numbers = (seen * self.rate + 1e-6).long() - self._first
            frames = self._frames[numbers.clamp(0, len(self._frames) - 1)]
            encoder = self.network.visual_encoder
            told = frames if frames.ndim == 2 or encoder is None else encoded(encoder, frames)
            features[0, : len(seen)] = told.to(features)
        return features

    def _drop_before(self, number: int) -> None:
        """Frames that no later block will see; the last one is kept."""
        assert self._frames is not None
        dropped = min(number - self._first, len(self._frames) - 1)
        if dropped > 0:
            self._frames, self._first = self._frames[dropped:], self._first + dropped

    def state(self) -> dict[str, Any]:
        """Everything that the blocks to come depend on."""
        return {"frames": None if self._frames is None else self._frames.clone(), "first": self._first}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.reset()
        self._frames, self._first = state["frames"], state["first"]

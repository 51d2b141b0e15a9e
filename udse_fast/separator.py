"""`Separator`: talkers and noise out of recordings, by posterior sampling of all sources at once."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from udse_fast.audio.format import check_sample_rate, checked_audio
from udse_fast.audio.spectral import Spectral
from udse_fast.checkpoints.checkpoint import load_network
from udse_fast.checks import whole_number
from udse_fast.devices import usable_device
from udse_fast.errors import UdseError
from udse_fast.model import BUILT_IN, BUILT_IN_JOINT
from udse_fast.networks.score_network import ScoreNetwork
from udse_fast.networks.visual_encoder import VIDEO_RATE
from udse_fast.sampling.samplers import SEEDS
from udse_fast.separation.block import BlockSeparator
from udse_fast.separation.source import Source, named_sources
from udse_fast.separation.stream import SeparationStream
from udse_fast.settings import SeparationSettings, setting_names
from udse_fast.streaming.blocks import Block
from udse_fast.streaming.overlap import OverlapBlocks
from udse_fast.streaming.stream import CHANNELS, Audio
from udse_fast.video.track import VideoTrack

Path = str | os.PathLike[str]


class Separator:
    """Talkers and noise of a mixture, each with a prior of its own.

    Nothing tells talkers of one and the same prior apart but what they say: where they have no video, the prior
    alone decides what belongs together, and their order is that of chance.

    Args:
        sources: number of talkers, named "talker_1", "talker_2", ...; or names and `Source`s with checkpoints of their
            own. "noise" is what the talkers leave over; it is always there, and last.
        checkpoint: of the talkers' prior; None: the built-in one of speech.
        noise_checkpoint: of the noise's; None: the built-in joint one.
        sampler: "shares" (default): shares of the recording by the powers that the priors expect, in few calls;
            "dps": posterior sampling by coupled reverse ODEs, with gradients through the networks (DAVSS-NM).
        steps: each is a network call of every source; two of a talker with a video.
        device: "auto", "cpu", "cuda", "cuda:1".
        seed: of all randomness; the same seed gives the same output.
        settings: more of `udse_fast.settings.SeparationSettings`.

    Raises:
        UdseError: unreadable checkpoint, unknown setting or device, priors that do not fit each other.
    """

    def __init__(
        self,
        /,  # so that a setting called self is an unknown one
        sources: int | Sequence[str | Source] = 2,
        checkpoint: Path | None = None,
        noise_checkpoint: Path | None = None,
        sampler: str | None = None,
        steps: int | None = None,
        device: str = "auto",
        seed: int = 0,
        **settings: Any,
    ) -> None:
        known = setting_names(SeparationSettings)
        if unknown := sorted(settings.keys() - {*known}):
            raise UdseError(f"Separator: unknown setting {', '.join(unknown)}; there are {', '.join(known)}")
        settings |= {name: value for name, value in (("sampler", sampler), ("steps", steps)) if value is not None}
        self.settings = SeparationSettings(**settings)
        self.seed = whole_number("seed", seed, SEEDS)
        self.sources = named_sources(sources)
        defaults = {False: checkpoint or BUILT_IN, True: noise_checkpoint or BUILT_IN_JOINT}
        paths = [source.checkpoint or defaults[source.is_noise] for source in self.sources]
        on = usable_device(device)
        loaded = {path: load_network(path, on) for path in dict.fromkeys(paths)}
        self.networks = [loaded[path] for path in paths]
        for path, network in loaded.items():
            _check_prior(path, network, self.networks[0], self.settings)
        first = self.networks[0].config
        self.spectral = Spectral(**{**first["stft"], **first["compression"]})
        self._blocks = BlockSeparator(self.sources, self.networks, self.spectral, self.settings, self.seed)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the sources in results: the talkers, and "noise"."""
        return (*(source.name for source in self.sources if not source.is_noise), "noise")

    def separate(
        self,
        audio: Audio,
        sample_rate: int,
        *,
        video: Mapping[str, Any] | None = None,
        video_rate: float = VIDEO_RATE,
    ) -> dict[str, Audio]:
        """Return every source of a recording.

        Args:
            audio: (L,) or (channels, L), numpy or torch, float32, float64 (full scale 1) or int16. All channels are
                shared out by the same masks, which keep the image.
            sample_rate: in Hz, 8000 to 1000000. What lies above the priors' band (8 kHz) is part of the noise.
            video: by the name of a talker: mouth crops (Tv, 88, 88), pixels 0 to 255, or features (Tv, p), which start
                with the recording; where they end before it, nothing is seen. For audio-visual priors.
            video_rate: frames per second.

        Returns:
            By name, in the form, length, alignment and level of `audio`. They add up to it: the noise is what the
            talkers leave over.

        Raises:
            UdseError: another shape or dtype, empty, NaN or infinite; or the sampler diverged.
        """
        form, samples = checked_audio(audio, sample_rate)
        stream = self.open_stream(sample_rate, len(samples), video=video, video_rate=video_rate)
        ready, rest = stream.process(samples), stream.flush()
        return {name: form.from_float(np.concatenate([ready[name], rest[name]], axis=1)) for name in self.names}

    def open_stream(
        self,
        sample_rate: int,
        channels: int = 1,
        *,
        video: Mapping[str, Any] | None = None,
        video_rate: float = VIDEO_RATE,
    ) -> SeparationStream:
        """For a recording that comes in chunks: the result of `separate`, in constant memory.

        Raises:
            UdseError: a rate or number of channels that there is not, a video that does not fit.
        """
        seen = self._tracks(video or {}, video_rate)
        return SeparationStream(
            partial(self._separated, seen),
            partial(OverlapBlocks.of, self.settings.blocks, self.spectral),
            self.names,
            check_sample_rate(sample_rate),
            self.spectral.sample_rate,
            whole_number("channels", channels, CHANNELS),
        )

    def _tracks(self, video: Mapping[str, Any], rate: float) -> dict[str, VideoTrack]:
        """What is seen of each talker that has a video."""
        networks = {source.name: network for source, network in zip(self.sources, self.networks, strict=True)}
        if unknown := video.keys() - networks.keys():
            raise UdseError(f"video: expected the names of sources, {', '.join(networks)}, got {', '.join(unknown)}")
        tracks = {}
        for name, frames in video.items():
            try:
                tracks[name] = VideoTrack(networks[name], self.spectral, rate)
                tracks[name].append(frames)
            except UdseError as error:
                raise UdseError(f"{name}: {error}") from None
        return tracks

    def _separated(self, seen: Mapping[str, VideoTrack], signals: Tensor, block: Block[Any]) -> Tensor:
        """The talkers (C, K, L) of a block (C, L), told what is seen of them in its time."""
        told = {name: track.tell(block) for name, track in seen.items()}
        return self._blocks.separate(signals, block.first_frame, told)


def _check_prior(path: Path, network: ScoreNetwork, first: ScoreNetwork, settings: SeparationSettings) -> None:
    """A prior of its source alone, in the domain of the first, at all noise levels."""
    if network.tells_noise_variance or "noisy" in network.conditions:
        raise UdseError(
            f"{path}: expected a prior, got a network that is told the recording; udse-fast train makes one"
        )
    for section in ("stft", "compression"):
        if network.config[section] != first.config[section]:
            raise UdseError(
                f"{path}: expected the {section} settings of the first source's prior, {first.config[section]}, got "
                f"{network.config[section]}"
            )
    if settings.sampler == "shares" and not network.has_posterior_variance:
        raise UdseError(f"{path}: expected a prior that tells its variance with the sampler 'shares', got one that "
                        "does not; its sampler is 'dps'")  # fmt: skip
    first_level = "start_level" if settings.sampler == "shares" else "highest_level"
    for name in (first_level, "lowest_level"):
        level = getattr(settings, name)
        if (t := network.sde.time(level)) not in network.sde.times:
            raise UdseError(f"{name}: expected a level that {path} knows, got {level:g}, which is its time {t:.3g}")

"""`Enhancer`: a prior, a sampler and its settings, ready for whole signals and streams."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from udse_fast.audio.format import check_sample_rate, checked_audio
from udse_fast.audio.spectral import Spectral
from udse_fast.block_enhancer import BlockEnhancer, CausalBlockEnhancer, MakeNoiseModel, OverlapBlockEnhancer, Tell
from udse_fast.checks import Range, flag, real_number, whole_number
from udse_fast.errors import UdseError
from udse_fast.model import (
    BUILT_IN,
    BUILT_IN_CAUSAL,
    BUILT_IN_JOINT,
    BUILT_IN_POSTERIOR,
    Model,
    load_model,
)
from udse_fast.networks.score_network import ScoreNetwork
from udse_fast.networks.visual_encoder import VIDEO_RATE
from udse_fast.sampling.samplers import SEEDS, find_sampler
from udse_fast.settings import PRESETS, STREAM_BLOCKS, CausalSettings, InferenceSettings, OverlapSettings, setting_names
from udse_fast.streaming.native import make_stream
from udse_fast.streaming.stream import CHANNELS, Audio, Stream, flush_together, process_together, separate_together
from udse_fast.tagger import GivenLatent, TaggedBlocks, Tagger
from udse_fast.video.track import VideoTrack


class Enhancer:
    """Unsupervised diffusion-based speech enhancement with one prior and one sampler.

    Args:
        checkpoint: None for the built-in prior, or a path: .safetensors, TorchScript .pt, a published Lightning .ckpt.
        sampler: a name of `udse_fast.sampler_names()`; None: what suits the checkpoint, "diffuseen" if it does not say.
        steps, samples: reverse steps N and posterior samples B; None: what suits checkpoint and sampler.
        device: "auto", "cpu", "cuda", "cuda:1".
        precision: of the network, "auto", "float32", "bfloat16", "float16".
        seed: of all randomness; the same seed gives the same output.
        max_attenuation_db: the noise is attenuated by so much at most, in dB; 0 gives the input back; None: no limit.
        noise_checkpoint: a noise prior of its own for ParaDiffUSE; None: the checkpoint must be a joint one.
        posterior_checkpoint: a posterior network for "amortised_ddrm"; None: the built-in one. With the built-in prior
            a causal one is for the causal streams, another one for whole signals.
        tagger: file of Cnn14 (PANNs, decision level), for networks that are told the latent of a tagger ("ex_diff").
        preset: published settings for another task, "vocals" or "dereverberation".
        settings: more of `InferenceSettings` (rank, readout, block_seconds, ...) and options of the sampler
            (`udse_fast.sampling.samplers.SAMPLERS[name].options`).

    Raises:
        UdseError: unreadable checkpoint, unknown sampler, device or setting.
    """

    def __init__(
        self,
        /,  # so that a setting called self is an unknown one
        checkpoint: str | os.PathLike[str] | None = None,
        sampler: str | None = None,
        steps: int | None = None,
        samples: int | None = None,
        device: str = "auto",
        precision: str = "auto",
        seed: int = 0,
        *,
        max_attenuation_db: float | None = None,
        noise_checkpoint: str | os.PathLike[str] | None = None,
        posterior_checkpoint: str | os.PathLike[str] | None = None,
        tagger: str | os.PathLike[str] | None = None,
        preset: str | None = None,
        **settings: Any,
    ) -> None:
        limit = _attenuation_limit(max_attenuation_db, settings)
        self.max_attenuation_db = None if limit is None else real_number("max_attenuation_db", limit, Range(0))
        self.seed = whole_number("seed", seed, SEEDS)
        self._given = (
            _preset(preset)
            | settings
            | {name: value for name, value in (("steps", steps), ("samples", samples)) if value is not None}
        )
        is_built_in = checkpoint in (None, BUILT_IN)
        row = None if sampler is None else find_sampler(sampler)
        if is_built_in and row is not None:
            needs_noise = row.noise == "score" and noise_checkpoint is None
            checkpoint = BUILT_IN_POSTERIOR if row.network == "posterior" else BUILT_IN_JOINT if needs_noise else None
        self.model = load_model(
            checkpoint, noise_checkpoint, sampler, device, precision, self._given, posterior_checkpoint
        )
        self.tagger = self._tagger(tagger)
        self._causal_model: Model | None = self.model if self.model.network.causal_block else None
        chosen = find_sampler(self.sampler)
        self._has_causal_form = is_built_in and (
            sampler is None or (chosen.noise == "nmf" and chosen.network == "prior")
        )
        self._asked = sampler, device, precision, posterior_checkpoint
        self._stream: Stream | None = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy has a stream of its own, which starts anew."""
        return {**self.__dict__, "_stream": None}

    def _tagger(self, path: str | os.PathLike[str] | None) -> Tagger | None:
        """The tagger of a network that is told its latent."""
        if path is None:
            return None
        tagger, size = Tagger(path), self.model.network.module.condition_sizes.get("H")
        if size != tagger.latent_size:
            wanted = "no tagger, which this network is not told of" if size is None else f"one with a latent of {size}"
            raise UdseError(f"tagger: expected {wanted}, got one with a latent of {tagger.latent_size}")
        return tagger

    # -- what was chosen -------------------------------------------------------------------------------------------

    @property
    def sampler(self) -> str:
        """Name of the sampler."""
        return self.model.sampler

    @property
    def settings(self) -> InferenceSettings:
        """How whole signals are sampled, read out and cut into blocks; `Stream.settings` are those of a stream."""
        return self.model.settings

    @property
    def options(self) -> dict[str, Any]:
        """Of the sampler, those that are not as published."""
        return self.model.options

    @property
    def network(self) -> ScoreNetwork:
        """The prior of speech, or the joint one."""
        return self.model.network

    @property
    def noise_network(self) -> ScoreNetwork:
        """The prior of noise, where there is one of its own; else `network`."""
        return self.model.noise_network

    @property
    def spectral(self) -> Spectral:
        """The domain that the prior was trained in."""
        return self.model.spectral

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.model.device

    @property
    def precision(self) -> str:
        """Of the networks: "float32", "bfloat16" or "float16"."""
        return self.model.precision

    # -- whole signals ---------------------------------------------------------------------------------------------

    def enhance(
        self,
        audio: Audio,
        sample_rate: int,
        *,
        causal: bool = False,
        video: Any = None,
        video_rate: float = VIDEO_RATE,
        latent: Any = None,
    ) -> Audio:
        """Return the speech in a recording.

        Args:
            audio: (L,) or (channels, L), numpy or torch, float32, float64 (full scale 1) or int16. Channels are
                enhanced one by one.
            sample_rate: in Hz, 8000 to 1000000; what lies above the prior's band (8 kHz) follows the highest part of
                it (`high_band`).
            causal: the result of a causal stream, which looks ahead by its latency only (see `open_stream`).
            video: of audio-visual priors: mouth crops (Tv, 88, 88), grey pixels 0 to 255, from the first sample of the
                sound on, or features (Tv, p) float32 of them. Where it has ended, or without it, such a prior hears
                only; what is longer than the sound is left out (`udse_fast.video.track.VideoTrack`).
            video_rate: its frames per second; other rates than 25 are brought to it.
            latent: (T_l, H) real numbers about the recording, in equal steps from its start to its end, in place of
                the tagger's; for networks that are told a latent.

        Returns:
            Speech in the form, length, alignment and level of `audio`.

        Raises:
            UdseError: another shape or dtype, empty, NaN or infinite; or the sampler diverged.
        """
        return self.separate(audio, sample_rate, causal=causal, video=video, video_rate=video_rate, latent=latent)[0]

    def separate(
        self,
        audio: Audio,
        sample_rate: int,
        *,
        causal: bool = False,
        video: Any = None,
        video_rate: float = VIDEO_RATE,
        latent: Any = None,
        make_noise_model: MakeNoiseModel | None = None,
    ) -> tuple[Audio, Audio]:
        """Return speech and noise, which add up to the recording.

        Args:
            audio, sample_rate, causal, video, video_rate, latent: see `enhance`.
            make_noise_model: makes the noise model of a block in place of NMF; not for `causal`.
        """
        tell = None if latent is None else self._given_latent(latent, audio, sample_rate)
        enhancer = self._block_enhancer(causal, falls_back=False, tell=tell)
        if make_noise_model is not None:
            if not isinstance(enhancer, OverlapBlockEnhancer):
                raise UdseError("make_noise_model: expected causal=False with it, got True; it is for whole signals")
            enhancer = replace(enhancer, make_noise_model=make_noise_model)
        track = None if video is None else VideoTrack(self.network, self.spectral, video_rate)
        return self._separate_whole(enhancer, [(audio, sample_rate, "audio")], track, video)[0]

    def enhance_many(
        self, recordings: Sequence[tuple[Audio, int]], *, causal: bool = False, together: int = 8
    ) -> list[Audio]:
        """Return the speech in each of many recordings, as `enhance` would give it up to rounding.

        Args:
            recordings: (audio, sample_rate) of each, see `enhance`.
            causal: see `enhance`.
            together: recordings whose blocks are enhanced as one batch; more of them fill a GPU, and take more memory.

        Raises:
            UdseError: what `enhance` raises, with the number of the recording.
        """
        together = whole_number("together", together, Range(1, 1000))
        named = [(audio, rate, f"recordings[{number}]") for number, (audio, rate) in enumerate(recordings)]
        enhancer = self._block_enhancer(causal, falls_back=False)
        for audio, rate, name in named:
            checked_audio(audio, rate, name)
        seconds = [audio.shape[-1] / rate for audio, rate, _ in named]
        order = sorted(range(len(named)), key=seconds.__getitem__)  # alike in length: full batches to the end
        results: dict[int, Audio] = {}
        for start in range(0, len(order), together):
            numbers = order[start : start + together]
            pairs = self._separate_whole(enhancer, [named[number] for number in numbers])
            results.update(zip(numbers, (speech for speech, _ in pairs), strict=True))
        return [results[number] for number in range(len(named))]

    def _separate_whole(
        self,
        enhancer: BlockEnhancer[Any],
        recordings: Sequence[tuple[Any, int, str]],
        track: VideoTrack | None = None,
        video: Any = None,
    ) -> list[tuple[Any, Any]]:
        """Speech and noise of (audio, sample rate, name in errors): streams that everything comes into at once.

        `track` and `video`: of a recording that is alone.
        """
        checked = [checked_audio(*recording) for recording in recordings]
        streams = [
            make_stream(enhancer, int(rate), len(samples), self.max_attenuation_db, track)
            for (_, samples), (_, rate, _) in zip(checked, recordings, strict=True)
        ]
        streams[0].see(video)
        ready = separate_together(streams, [samples for _, samples in checked])
        rest = flush_together(streams)
        return [
            (form.from_float(np.concatenate([a, c], 1)), form.from_float(np.concatenate([b, d], 1)))
            for (form, _), (a, b), (c, d) in zip(checked, ready, rest, strict=True)
        ]

    # -- streams ---------------------------------------------------------------------------------------------------

    def open_stream(
        self,
        sample_rate: int = 16000,
        channels: int = 1,
        *,
        causal: bool | None = None,
        whole_signal: bool = False,
        video_rate: float = VIDEO_RATE,
        **settings: Any,
    ) -> Stream:
        """Open a stream of its own, independent of the others.

        Args:
            sample_rate: in Hz, 8000 to 1000000.
            channels: enhanced one by one.
            causal: True: a few frames at a time, with everything before them remembered (needs a causal prior, the
                built-in one has such a form); False: overlapping blocks of 2 s (`block_seconds`), for any prior;
                None: causal where the prior is, unless `settings` are about overlapping blocks.
            whole_signal: overlapping blocks as `enhance` makes them: its result, in constant memory.
            video_rate: of audio-visual priors, frames per second of the video that comes with the chunks.
            settings: override those of the Enhancer for this stream; `block_frames` sets the latency of a causal one.

        Raises:
            UdseError: unknown setting, or `causal` with a prior that is not.
        """
        if unknown := sorted(settings.keys() - {*setting_names()}):
            there = ", ".join(setting_names())
            raise UdseError(f"open_stream: unknown setting {', '.join(unknown)}; there are {there}")
        overlap_names = {*setting_names(OverlapSettings)} & settings.keys()
        if causal is None:
            causal = self._can_be_causal and not overlap_names and not whole_signal
        kinds = ("causal streams", "overlapping blocks")
        foreign = overlap_names if flag("causal", causal) else {*setting_names(CausalSettings)} & settings.keys()
        if foreign:
            is_for, got = reversed(kinds) if causal else kinds
            raise UdseError(f"open_stream: {', '.join(sorted(foreign))}: a setting of {is_for}, got it for {got}")
        if not causal and not flag("whole_signal", whole_signal):
            own = {name: value for name, value in self._given.items() if name in STREAM_BLOCKS}
            settings = {**STREAM_BLOCKS, **own, **settings}
        enhancer = self._block_enhancer(causal, **settings)
        rate, channels = check_sample_rate(sample_rate), whole_number("channels", channels, CHANNELS)
        track = None
        if "video" in enhancer.model.network.conditions:
            track = VideoTrack(enhancer.model.network, enhancer.model.spectral, video_rate)
        return make_stream(enhancer, rate, channels, self.max_attenuation_db, track)

    def _block_enhancer(
        self, causal: bool, falls_back: bool = True, tell: Tell | None = None, **settings: Any
    ) -> BlockEnhancer[Any]:
        model = self._causal() if flag("causal", causal) else self.model
        if tell is None and model.network.kind == "tagged":
            if self.tagger is None:
                raise UdseError(
                    f"sampler {model.sampler!r}: expected tagger=FILE (Cnn14_DecisionLevelMax of PANNs), or a latent, "
                    "got neither"
                )
            tell = TaggedBlocks(self.tagger, model.spectral.sample_rate)
        kind = CausalBlockEnhancer if causal else OverlapBlockEnhancer
        return kind(model, replace(model.settings, **settings), self.seed, falls_back, tell)

    def _given_latent(self, latent: Any, audio: Any, sample_rate: int) -> GivenLatent:
        """What the network is told of a recording by the user."""
        size = self.network.module.condition_sizes.get("H")
        if size is None:
            raise UdseError("latent: expected a network that is told one (sampler 'ex_diff'), got another checkpoint")
        checked_audio(audio, sample_rate, "audio")
        return GivenLatent(latent, audio.shape[-1] / sample_rate, self.spectral, size)

    @property
    def _can_be_causal(self) -> bool:
        return self._causal_model is not None or self._has_causal_form

    def _causal(self) -> Model:
        """The causal prior: the Enhancer's own, or for the built-in one its causal form."""
        if self._causal_model is None:
            if not self._has_causal_form:
                raise UdseError(
                    "causal: expected a causal prior (udse-fast train --network compact-causal), and a sampler that "
                    f"asks no other network, got {self.network.config['architecture'].get('name')} and {self.sampler!r}"
                )
            sampler, device, precision, posterior_checkpoint = self._asked
            self._causal_model = load_model(
                BUILT_IN_CAUSAL, None, sampler, device, precision, self._given, posterior_checkpoint
            )
        return self._causal_model

    @staticmethod
    def process_many(streams: Sequence[Stream], chunks: Sequence[Audio]) -> list[Audio]:
        """Feed many streams of this Enhancer at once: their network calls are made together.

        Returns:
            What is ready of each, as `streams[i].process(chunks[i])` would give: up to rounding, those of native
            streams to the bit.
        """
        return process_together(streams, chunks)

    def _default_stream(self) -> Stream:
        if self._stream is None:
            self._stream = self.open_stream()
        return self._stream

    def process(self, chunk: Audio, video: Any = None) -> Audio:
        """Feed (n,) samples at 16 kHz, n >= 0, to the Enhancer's own stream; return what is ready.

        Args:
            video: of audio-visual priors, the frames that came with the chunk, 25 a second, see `enhance`.
        """
        return self._default_stream().process(chunk, video)

    def flush(self) -> Any:
        """Return the rest of the Enhancer's own stream, which starts anew afterwards."""
        return self._default_stream().flush()

    def reset(self) -> None:
        """Forget everything the Enhancer's own stream has heard."""
        self._default_stream().reset()

    @property
    def latency_samples(self) -> int:
        """Algorithmic latency of the Enhancer's own stream in samples at 16 kHz."""
        return self._default_stream().latency_samples

    @property
    def latency_seconds(self) -> float:
        """Algorithmic latency of the Enhancer's own stream."""
        return self._default_stream().latency_seconds


def _preset(name: str | None) -> dict[str, Any]:
    """Its settings."""
    if name is not None and name not in PRESETS:
        raise UdseError(f"preset: expected {' or '.join(PRESETS)}, got {name!r}")
    return {} if name is None else dict(PRESETS[name])


def _attenuation_limit(given: float | None, settings: dict[str, Any]) -> float | None:
    """`max_attenuation_db`, or what it was called before; takes that out of the settings."""
    if "strength" not in settings:
        return given
    before = settings.pop("strength")
    if given is not None:
        raise UdseError("strength: expected max_attenuation_db alone, which is its new name, got both")
    warnings.warn("strength is called max_attenuation_db now", DeprecationWarning, stacklevel=3)
    limit: float | None = before
    return limit

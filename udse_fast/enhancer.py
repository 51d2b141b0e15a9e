"""`Enhancer`: a prior, a sampler and its settings, ready for whole signals and streams."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property, partial
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from udse_fast.audio.format import AudioFormat, check_finite, check_sample_rate
from udse_fast.audio.resampling import Resampler
from udse_fast.audio.spectral import Spectral
from udse_fast.backends.cuda_graphs import Replayed, addresses
from udse_fast.checkpoints.checkpoint import fingerprint, load_network
from udse_fast.checks import Range, flag, real_number, whole_number
from udse_fast.devices import fast_bfloat16, usable_device
from udse_fast.errors import UdseError
from udse_fast.networks.optimised import optimised_or_plain
from udse_fast.networks.score_network import PRECISIONS, ScoreNetwork
from udse_fast.prior import CausalPrior, Prior
from udse_fast.sampling.diffusion import Pass, Score
from udse_fast.sampling.noise_models import NMF, FixedVariance, NoiseModel, OnlineNMF, start_nmf
from udse_fast.sampling.passes import in_step, run
from udse_fast.sampling.read_out import ReadOut
from udse_fast.sampling.samplers import OPTIONS, SEEDS, Posterior, find_sampler, posterior_pass, recommended_sampler
from udse_fast.sampling.sde import OUVE
from udse_fast.settings import InferenceSettings
from udse_fast.streaming.causal import CausalBlocks
from udse_fast.streaming.overlap import OverlapBlocks
from udse_fast.streaming.stream import Blocks, Stream, process_together

BUILT_IN_JOINT, BUILT_IN_CAUSAL = "joint", "causal"
OVERLAPPING_STREAM: Final = {"block_seconds": 2.0, "overlap_seconds": 0.25}
"""Shorter blocks than for whole signals: they are the latency."""
OVERLAPPING_ONLY: Final = {"block_seconds", "overlap_seconds", "batch_blocks"}
CAUSAL_ONLY: Final = {"block_frames", "forgetting_seconds", "forgetting_spread", "level_seconds"}
ORACLE_MODES: Final = ("oracle", "pure oracle")
ORACLE_ITERATIONS = 200


class Enhancer:
    """Unsupervised diffusion-based speech enhancement with one prior and one sampler.

    Args:
        checkpoint: None for the built-in prior, or a path: .safetensors, TorchScript .pt, a published Lightning .ckpt.
        sampler: a name of `udse_fast.sampler_names()`; None: what suits the checkpoint, "diffuseen" if it does not say.
        steps, samples: reverse steps N and posterior samples B; None: what suits checkpoint and sampler.
        device: "auto", "cpu", "cuda", "cuda:1".
        precision: of the network, "auto", "float32", "bfloat16", "float16".
        seed: of all randomness; the same seed gives the same output.
        strength: greatest attenuation of the noise in dB; None for no limit.
        noise_checkpoint: a noise prior of its own for ParaDiffUSE; None: the checkpoint must be a joint one.
        settings: more of `InferenceSettings` (rank, readout, block_seconds, ...) and options of the sampler
            (`udse_fast.sampling.samplers.SAMPLERS[name].options`: strength is called `guidance` there).

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
        strength: float | None = None,
        noise_checkpoint: str | os.PathLike[str] | None = None,
        **settings: Any,
    ) -> None:
        self._arguments = {
            "sampler": sampler, "steps": steps, "samples": samples, "device": device, "precision": precision,
            "seed": seed, "strength": strength, **settings,
        }  # fmt: skip
        needs_noise = sampler is not None and find_sampler(sampler).noise == "score"
        self.seed = whole_number("seed", seed, SEEDS)
        self.strength = None if strength is None else real_number("strength", strength, Range(0))
        self.device = usable_device(device)
        self.is_built_in = checkpoint is None
        if checkpoint is None and needs_noise and noise_checkpoint is None:
            checkpoint = BUILT_IN_JOINT
        self.network = load_network(checkpoint, self.device)
        self.sampler = sampler or recommended_sampler(self.network.config)
        if self.sampler == "prior":
            raise UdseError("sampler: 'prior' draws speech without a recording; call udse_fast.posterior_sample for it")
        recommended = self._recommended(checkpoint)
        settings |= {name: value for name, value in (("steps", steps), ("samples", samples)) if value is not None}
        self.settings, self.options = _chosen(self.sampler, {**recommended, **settings})
        self.noise_network = self.network
        if noise_checkpoint is not None:
            self.noise_network = load_network(noise_checkpoint, self.device)
            for section in ("stft", "compression", "sde"):
                speech, noise = self.network.config[section], self.noise_network.config[section]
                if speech != noise:
                    raise UdseError(
                        f"noise_checkpoint: expected the {section} settings of the speech prior, {speech}, got {noise}"
                    )
        elif find_sampler(self.sampler).noise == "score" and not self.network.joint:
            raise UdseError(
                f"sampler {self.sampler!r}: expected a joint speech and noise prior, got a checkpoint of one source; "
                "give noise_checkpoint too, or train with --speech and --noise"
            )
        self.precision = _precision(precision, self.device, self.network)
        if self.device.type == "cuda":
            fast = {n: optimised_or_plain(n, self.precision) for n in {self.network, self.noise_network}}
            self.network, self.noise_network = fast[self.network], fast[self.noise_network]
        else:
            for network in (self.network, self.noise_network):
                network.to(self.device, self.precision)

        config = self.network.config
        self.spectral = Spectral(**{**config["stft"], **config["compression"]})
        self.sde = OUVE(**{k: v for k, v in config["sde"].items() if k != "name"})
        self.score = Prior(self.network, self.noise_network)
        self._passes: Replayed | None = None
        if self.device.type == "cuda":
            self._passes = Replayed(lambda: addresses(self.network.graph, self.noise_network.graph))
        self._stream: Stream | None = None
        self._causal_form: Enhancer | None = None

    def _recommended(self, checkpoint: str | os.PathLike[str] | None) -> dict[str, Any]:
        """What the checkpoint asks for with this sampler; checked on its own, so that an error names the file."""
        by_sampler = self.network.config.get("inference", {})
        recommended = {**by_sampler.get("all", {}), **by_sampler.get(self.sampler, {})}
        try:
            _chosen(self.sampler, recommended)
        except UdseError as error:
            raise UdseError(f"{checkpoint or 'built-in prior'}: settings for inference: {error}") from error
        return recommended

    def __getstate__(self) -> dict[str, Any]:
        """A copy has a stream of its own, which starts anew."""
        return {**self.__dict__, "_stream": None}

    # -- whole signals ---------------------------------------------------------------------------------------------

    def enhance(self, audio: Any, sample_rate: int, *, causal: bool = False) -> Any:
        """The speech in a recording.

        Args:
            audio: (L,) or (channels, L), numpy or torch, float32, float64 (full scale 1) or int16. Channels are
                enhanced one by one.
            sample_rate: in Hz, 8000 to 1000000; what lies above the prior's band (8 kHz) is not in the result.
            causal: the result of a causal stream, which looks ahead by its latency only (see `open_stream`).

        Returns:
            Speech in the form, length, alignment and level of `audio`.

        Raises:
            UdseError: another shape or dtype, empty, NaN or infinite.
        """
        return self.separate(audio, sample_rate, causal=causal)[0]

    def separate(
        self,
        audio: Any,
        sample_rate: int,
        *,
        causal: bool = False,
        true_noise: Any = None,
        oracle: str | None = None,
    ) -> tuple[Any, Any]:
        """Speech and noise; they add up to the recording (in the prior's band).

        Args:
            audio, sample_rate, causal: see `enhance`.
            true_noise: for experiments, the noise in the recording, same form as `audio`.
            oracle: what is made of it: "oracle" (NMF fitted to it) or "pure oracle" (its periodogram as the variance).
        """
        audio_format, samples = self._checked(audio, "audio")
        rate = check_sample_rate(sample_rate)
        if (true_noise is None) != (oracle is None) or oracle not in (None, *ORACLE_MODES):
            raise UdseError(
                f"oracle: expected one of {', '.join(ORACLE_MODES)} together with true_noise, got {oracle!r}"
            )
        if causal and oracle:
            raise UdseError("oracle: expected causal=False with it, got True; oracle modes are for whole signals")
        known = self._checked(true_noise, "true_noise")[1] if oracle else None
        if known is not None and known.shape != samples.shape:
            raise UdseError(f"true_noise: expected the shape of audio {samples.shape}, got {known.shape}")

        speech, noise = np.empty_like(samples), np.empty_like(samples)
        passes = []
        for channel, signal in enumerate(samples):
            side = None if known is None else _resampled(known[channel], rate, self.spectral.sample_rate)
            mixture = torch.from_numpy(_resampled(signal, rate, self.spectral.sample_rate))
            if causal:
                blocks: Blocks = self._causal().causal_blocks()
            else:
                blocks = self.blocks(None if side is None else (side, oracle or ""))
            passes.append(_whole(blocks, mixture))
        with torch.inference_mode():
            results = run(in_step(passes))
        for channel, both in enumerate(results):
            for target, source in zip((speech, noise), both.numpy(), strict=True):
                target[channel] = _resampled(source, self.spectral.sample_rate, rate)[: samples.shape[1]]
        return audio_format.from_float(speech), audio_format.from_float(noise)

    def _checked(self, audio: Any, name: str) -> tuple[AudioFormat, NDArray[np.float32]]:
        audio_format = AudioFormat.of(audio, name)
        samples = audio_format.to_float(audio)
        if samples.size == 0:
            raise UdseError(f"{name}: expected at least one sample, got the shape {tuple(audio.shape)}")
        check_finite(samples, name)
        return audio_format, samples

    # -- blocks ----------------------------------------------------------------------------------------------------

    def blocks(
        self, known_noise: tuple[NDArray[np.float32], str] | None = None, settings: InferenceSettings | None = None
    ) -> OverlapBlocks:
        """Overlapping blocks of one channel at the network's rate; outputs are speech and noise.

        The noise model of a block starts from that of the block before. `known_noise`: (samples, oracle mode).
        """
        settings = settings or self.settings
        hop = self.spectral.hop_length
        rate = self.spectral.sample_rate
        overlap = math.ceil(max(settings.overlap_seconds * rate, 3 * self.spectral.n_fft) / hop) * hop
        block = max(math.ceil(settings.block_seconds * rate / hop) * hop, 2 * overlap)

        def enhance(signal: Tensor, first_frame: int, basis: Tensor | None) -> Pass[tuple[Tensor, Any]]:
            known = None
            if known_noise is not None:
                start = first_frame * hop
                known = (torch.from_numpy(known_noise[0][start : start + len(signal)]), known_noise[1])
            speech, model = yield from self.block_pass(signal, first_frame, known, basis, settings)
            return torch.stack([speech, signal - speech]), model.W if isinstance(model, NMF) else basis

        return OverlapBlocks(
            enhance,
            block,
            overlap,
            guard=self.spectral.n_fft // 2,
            hop=hop,
            outputs=2,
            together=settings.batch_blocks,
        )

    def block_pass(
        self,
        signal: Tensor,
        first_frame: int,
        known_noise: tuple[Tensor, str] | None,
        basis: Tensor | None,
        settings: InferenceSettings,
    ) -> Pass[tuple[Tensor, NoiseModel | None]]:
        """Speech of one block (L,) float32 at the network's rate, and the noise model that was fitted."""
        mixture, level = self.spectral.analyse(signal.to(self.device))
        if not level > 0:
            return torch.zeros_like(signal), None
        model: NoiseModel
        if known_noise is not None:
            model = _oracle(self.spectral, known_noise, level, settings.rank, self.seed)
        else:
            W, H = start_nmf(mixture, settings.rank, self.seed, settings.start_share)
            if basis is not None:
                W, H = basis, H * ((W @ H).mean() / (basis @ H).mean())
            model = NMF(W, H, iterations=settings.nmf_iterations)
        read_out = self._read_out(settings)
        posterior = yield from self._spectrogram_pass(mixture, first_frame, self.score, model, settings)
        speech = read_out(posterior, mixture, level)
        return self._attenuated(self.spectral.istft(speech, len(signal)).to(signal), signal), posterior.noise_model

    def _spectrogram_pass(
        self,
        mixture: Tensor,
        first_frame: int,
        score: Score,
        model: NoiseModel,
        settings: InferenceSettings,
    ) -> Pass[Posterior]:
        """Samples of the speech in the mixture (F, T), compressed and normalised."""
        times, dt = settings.time_grid()
        posterior = yield from posterior_pass(
            mixture,
            score,
            self.sampler,
            steps=settings.steps,
            samples=settings.samples,
            em_rounds=settings.em_rounds,
            rank=settings.rank,
            seed=self.seed,
            first_frame=first_frame,
            noise_model=model,
            times=times,
            dt=dt,
            corrector_snr=settings.corrector_snr,
            sde=self.sde,
            replayed=self._passes if score is self.score else None,  # a causal prior has a memory
            **self.options,
        )
        return posterior

    def _read_out(self, settings: InferenceSettings, forgetting: float = 0.0) -> ReadOut:
        return ReadOut(self.spectral, settings.readout, settings.wiener_exponent, settings.blend_ratio, forgetting)

    def _attenuated(self, speech: Tensor, signal: Tensor) -> Tensor:
        return speech if self.strength is None else speech + self._leave * (signal - speech)

    @property
    def _leave(self) -> float:
        """Share of the noise that stays."""
        return 0.0 if self.strength is None else 10 ** (-self.strength / 20)

    def causal_blocks(self, settings: InferenceSettings | None = None) -> CausalBlocks:
        """Causal blocks of one channel at the network's rate; outputs are speech and noise. Causal networks only."""
        settings = settings or self.settings
        frames = settings.block_frames or self.network.causal_block
        seconds = frames * self.spectral.hop_length / self.spectral.sample_rate
        forgetting = math.exp(-seconds / settings.forgetting_seconds)

        def sample(mixture: Tensor, first_frame: int, prior: CausalPrior, model: OnlineNMF) -> Pass[Posterior]:
            model.next_block(mixture)
            return self._spectrogram_pass(mixture, first_frame, prior, model, settings)

        return CausalBlocks(
            self.spectral,
            frames,
            settings.level_seconds,
            CausalPrior(self.network),
            OnlineNMF(
                self.spectral.bins,
                settings.rank,
                forgetting,
                settings.start_share,
                self.seed,
                settings.nmf_iterations,
                settings.forgetting_spread,
            ),
            sample,
            self._read_out(settings, forgetting),
            self._leave,
            self.device,
        )

    def _causal(self) -> Enhancer:
        """This Enhancer with a causal prior: itself, or for the built-in prior its causal form."""
        if self.network.causal_block:
            return self
        if not self._has_causal_form:
            raise UdseError(
                "causal: expected a causal prior (udse-fast train --network compact-causal), and a sampler that needs "
                f"no noise prior, got {self.network.config['architecture'].get('name')} and {self.sampler!r}"
            )
        if self._causal_form is None:
            self._causal_form = Enhancer(BUILT_IN_CAUSAL, **self._arguments)
        return self._causal_form

    @property
    def _has_causal_form(self) -> bool:
        return self.is_built_in and find_sampler(self.sampler).noise == "nmf"

    # -- streams ---------------------------------------------------------------------------------------------------

    def open_stream(
        self, sample_rate: int = 16000, channels: int = 1, *, causal: bool | None = None, **settings: Any
    ) -> Stream:
        """A stream of its own, independent of the others.

        Args:
            sample_rate: in Hz, 8000 to 1000000.
            channels: enhanced one by one.
            causal: True: a few frames at a time, with everything before them remembered (needs a causal prior, the
                built-in one has such a form); False: overlapping blocks of 2 s (`block_seconds`), for any prior;
                None: causal where the prior is, unless `settings` are about overlapping blocks.
            settings: override those of the Enhancer for this stream; `block_frames` sets the latency of a causal one.

        Raises:
            UdseError: unknown setting, or `causal` with a prior that is not.
        """
        unknown = set(settings) - set(InferenceSettings.__dataclass_fields__)
        if unknown:
            raise UdseError(
                f"open_stream: unknown setting {', '.join(sorted(unknown))}; "
                f"there are {', '.join(InferenceSettings.__dataclass_fields__)}"
            )
        if causal is None:
            causal = bool(self.network.causal_block or self._has_causal_form) and not OVERLAPPING_ONLY & set(settings)
        if foreign := sorted((OVERLAPPING_ONLY if flag("causal", causal) else CAUSAL_ONLY) & set(settings)):
            kinds = ("overlapping blocks", "causal streams") if causal else ("causal streams", "overlapping blocks")
            raise UdseError(f"open_stream: {', '.join(foreign)}: a setting of {kinds[0]}, got it for {kinds[1]}")
        source = self._causal() if causal else self
        if not causal:
            own = {name: value for name, value in self._arguments.items() if name in OVERLAPPING_STREAM}
            settings = {**OVERLAPPING_STREAM, **own, **settings}
        chosen = replace(source.settings, **settings)
        make_blocks = partial(source.causal_blocks if causal else source.blocks, settings=chosen)
        return Stream(
            make_blocks,
            source.spectral.sample_rate,
            check_sample_rate(sample_rate),
            channels,
            partial(source._facts, chosen),
        )

    def _facts(self, settings: InferenceSettings) -> dict[str, Any]:
        """Everything that the output of a stream depends on besides its input: its state belongs to that."""
        return {
            "checkpoint": self._fingerprints[0],
            "noise_checkpoint": self._fingerprints[1],
            "precision": self.precision,
            "device": self.device.type,
            "sampler": self.sampler,
            "seed": self.seed,
            "strength": self.strength,
            **asdict(settings),
            **{
                f"{self.sampler} {name}": value
                for name, value in (find_sampler(self.sampler).options | self.options).items()
            },
        }

    @cached_property
    def _fingerprints(self) -> tuple[str, str]:
        return fingerprint(self.network), fingerprint(self.noise_network)

    @staticmethod
    def process_many(streams: Sequence[Stream], chunks: Sequence[Any]) -> list[Any]:
        """`process` for many streams of this Enhancer at once: their network calls are made as one batch.

        Returns:
            What is ready of each, as `streams[i].process(chunks[i])` would give up to rounding.
        """
        return process_together(streams, chunks)

    def _default_stream(self) -> Stream:
        if self._stream is None:
            self._stream = self.open_stream()
        return self._stream

    def process(self, chunk: Any) -> Any:
        """Feed (n,) samples at 16 kHz, n >= 0, to the Enhancer's own stream; returns what is ready."""
        return self._default_stream().process(chunk)

    def flush(self) -> Any:
        """The rest of the Enhancer's own stream, which starts anew afterwards."""
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


def _chosen(sampler: str, given: dict[str, Any]) -> tuple[InferenceSettings, dict[str, Any]]:
    """Settings, and options of the sampler, out of one dictionary.

    The weight of the likelihood is called guidance there: `strength` is the attenuation.
    """
    spelling = {option: "guidance" if option == "strength" else option for option in OPTIONS}
    own = {spelling[option]: option for option in find_sampler(sampler).options}
    settings = InferenceSettings.__dataclass_fields__.keys()
    unknown = sorted(given.keys() - own.keys() - settings)
    if foreign := [name for name in unknown if name in spelling.values()]:
        raise UdseError(f"sampler {sampler!r} has no {', '.join(foreign)}; it has: {', '.join(own) or 'no options'}")
    if unknown:
        raise UdseError(f"Enhancer: unknown setting {', '.join(unknown)}; there are {', '.join([*settings, *own])}")
    options = {own[name]: value for name, value in given.items() if name in own}
    chosen = InferenceSettings(**{name: value for name, value in given.items() if name in settings})
    return chosen, find_sampler(sampler).checked(options, spelling)


def _precision(name: str, device: torch.device, network: ScoreNetwork) -> str:
    """ "auto": 16 bits where the hardware computes in them, else float32; a TorchScript file keeps its own."""
    if network.scripted:
        return network.precision if name == "auto" else name
    if name != "auto":
        if name not in PRECISIONS:
            raise UdseError(f"precision: expected auto, {', '.join(PRECISIONS)}, got {name!r}")
        return name
    if device.type == "cuda":
        return "bfloat16" if fast_bfloat16(device) else "float16"
    if network.causal_block:
        return "float32"  # what the C++ core computes in
    return "bfloat16" if fast_bfloat16(device) else "float32"


def _oracle(spectral: Spectral, known_noise: tuple[Tensor, str], level: Tensor, rank: int, seed: int) -> NoiseModel:
    """Variance of the true noise (Fig. 4 of the ParaDiffUSE paper): its periodogram, or the NMF fitted to it."""
    noise, mode = known_noise
    normalised = spectral.compress(spectral.stft(noise.to(level.device))) / level
    power = normalised.abs().square()
    if mode == "pure oracle":
        return FixedVariance(power)
    fitted = NMF(*start_nmf(normalised, rank, seed), iterations=ORACLE_ITERATIONS)
    fitted.fit(power)
    return FixedVariance(fitted.W @ fitted.H)


def _resampled(samples: NDArray[np.float32], source: int, target: int) -> NDArray[np.float32]:
    resampler = Resampler(source, target)
    return np.concatenate([resampler.push(samples), resampler.finish()])


def _whole(blocks: Blocks, signal: Tensor) -> Pass[Tensor]:
    """A whole signal (L,) through blocks, (outputs, L)."""
    pushed = yield from blocks.pushing(signal)
    rest = yield from blocks.finishing()
    return torch.cat([pushed, rest], dim=1)

"""`Enhancer`: a prior, a sampler and its settings, ready for whole signals and streams."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from udse_fast.audio import AudioFormat, check_finite, check_sample_rate
from udse_fast.blocks import OverlapBlocks
from udse_fast.checkpoint import load_network
from udse_fast.errors import UdseError
from udse_fast.networks.score_network import PRECISIONS, ScoreNetwork, usable_device
from udse_fast.noise_models import NMF, FixedVariance, NoiseModel, start_nmf
from udse_fast.output import READOUTS, read_out
from udse_fast.randomness import counter_based
from udse_fast.resampling import Resampler
from udse_fast.samplers import find_sampler, posterior_sample
from udse_fast.sde import OUVE, Time, time_grid
from udse_fast.spectral import Spectral
from udse_fast.streaming import Stream

BUILT_IN_JOINT = "joint"
SPEECH_LABEL, NOISE_LABEL = 1, 0
ORACLE_MODES: Final = ("oracle", "pure oracle")
ORACLE_ITERATIONS = 200


@dataclass(frozen=True)
class InferenceSettings:
    """How the posterior is sampled and read out. The defaults are published; a checkpoint may bring its own."""

    steps: int = 30
    samples: int = 4
    start_time: float = 1.0
    end_time: float = 0.03
    corrector_snr: float = 0.5
    rank: int = 4
    em_rounds: int = 5
    start_share: float = 1.0
    """Power of the noise model's start relative to the mixture's."""
    readout: str = "auto"
    wiener_exponent: float = 1.0
    block_seconds: float = 8.0
    overlap_seconds: float = 0.5

    def __post_init__(self) -> None:
        for name in ("steps", "samples", "rank", "em_rounds"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UdseError(f"{name}: expected a whole number >= 1, got {value!r}")
        if self.readout not in READOUTS:
            raise UdseError(f"readout: expected one of {', '.join(READOUTS)}, got {self.readout!r}")
        if not 0 < self.wiener_exponent <= 2:
            raise UdseError(f"wiener_exponent: expected a number in (0, 2], got {self.wiener_exponent!r}")
        if not 0 < self.end_time < self.start_time <= 1:
            raise UdseError(f"expected 0 < end_time < start_time <= 1, got {self.end_time!r} and {self.start_time!r}")
        if not (self.block_seconds >= 0.5 and 0 < self.overlap_seconds <= self.block_seconds / 2):
            raise UdseError(
                f"expected block_seconds >= 0.5 and overlap_seconds up to half of it, "
                f"got {self.block_seconds!r} and {self.overlap_seconds!r}"
            )

    def time_grid(self) -> tuple[list[Time], float]:
        """Times and step size; linspace(1, 0.03, N) and 1/N as published, in proportion for other starts."""
        times: list[Time] = [*time_grid(self.steps, self.start_time, self.end_time)]
        return times, self.start_time / self.steps


class Enhancer:
    """Unsupervised diffusion-based speech enhancement with one prior and one sampler.

    Args:
        checkpoint: None for the built-in prior, or a path: .safetensors, TorchScript .pt, a published Lightning .ckpt.
        sampler: a name of `udse_fast.sampler_names()`.
        steps, samples: reverse steps N and posterior samples B; None: what suits checkpoint and sampler.
        device: "auto", "cpu", "cuda", "cuda:1".
        precision: of the network, "auto", "float32", "bfloat16", "float16".
        seed: of all randomness; the same seed gives the same output.
        strength: greatest attenuation of the noise in dB; None for no limit.
        noise_checkpoint: a noise prior of its own for ParaDiffUSE; None: the checkpoint must be a joint one.
        settings: more of `InferenceSettings` (rank, readout, block_seconds, ...) and options of the sampler
            (`udse_fast.samplers.SAMPLERS[name].options`: strength is called `guidance` there).

    Raises:
        UdseError: unreadable checkpoint, unknown sampler, device or setting.
    """

    def __init__(
        self,
        checkpoint: str | os.PathLike[str] | None = None,
        sampler: str = "diffuseen",
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
        row = find_sampler(sampler)
        if sampler == "prior":
            raise UdseError("sampler: 'prior' draws speech without a recording; call udse_fast.posterior_sample for it")
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**64:
            raise UdseError(f"seed: expected a whole number in [0, 2^64), got {seed!r}")
        if strength is not None and not (isinstance(strength, (int, float)) and strength >= 0):
            raise UdseError(f"strength: expected an attenuation in dB >= 0 or None, got {strength!r}")
        self.sampler, self.seed, self.strength = sampler, seed, strength
        self.device = usable_device(device)
        needs_noise = row.noise == "score"
        if checkpoint is None and needs_noise and noise_checkpoint is None:
            self.network = load_network(BUILT_IN_JOINT, self.device)
        else:
            self.network = load_network(checkpoint, self.device)
        self.noise_network = self.network
        if noise_checkpoint is not None:
            self.noise_network = load_network(noise_checkpoint, self.device)
            for section in ("stft", "compression", "sde"):
                speech, noise = self.network.config[section], self.noise_network.config[section]
                if speech != noise:
                    raise UdseError(
                        f"noise_checkpoint: expected the {section} settings of the speech prior, {speech}, got {noise}"
                    )
        elif needs_noise and not self.network.joint:
            raise UdseError(
                f"sampler {sampler!r}: expected a joint speech and noise prior, got a checkpoint of one source; "
                "give noise_checkpoint too, or train with --speech and --noise"
            )
        self.precision = _precision(precision, self.device, self.network)
        for network in (self.network, self.noise_network):
            network.to(self.device, self.precision)

        config = self.network.config
        self.spectral = Spectral(**{**config["stft"], **config["compression"]})
        self.sde = OUVE(**{k: v for k, v in config["sde"].items() if k != "name"})
        recommended = config.get("inference", {})
        chosen = {**recommended.get("all", {}), **recommended.get(sampler, {}), **settings}
        chosen |= {k: v for k, v in (("steps", steps), ("samples", samples)) if v is not None}
        if "guidance" in chosen:
            chosen["strength"] = chosen.pop("guidance")
        self.options = {k: chosen.pop(k) for k in list(chosen) if k in row.options}
        unknown = set(chosen) - set(InferenceSettings.__dataclass_fields__)
        if unknown:
            raise UdseError(
                f"Enhancer: unknown setting {', '.join(sorted(unknown))}; there are "
                f"{', '.join([*InferenceSettings.__dataclass_fields__, *row.options])}"
            )
        self.settings = InferenceSettings(**chosen)
        self._stream: Stream | None = None

    # -- whole signals ---------------------------------------------------------------------------------------------

    def enhance(self, audio: Any, sample_rate: int) -> Any:
        """The speech in a recording.

        Args:
            audio: (L,) or (channels, L), numpy or torch, float32, float64 (full scale 1) or int16. Channels are
                enhanced one by one.
            sample_rate: in Hz, >= 8000; what lies above the prior's band (8 kHz) is not in the result.

        Returns:
            Speech in the form, length, alignment and level of `audio`.

        Raises:
            UdseError: another shape or dtype, empty, NaN or infinite.
        """
        return self.separate(audio, sample_rate)[0]

    def separate(
        self,
        audio: Any,
        sample_rate: int,
        *,
        true_noise: Any = None,
        oracle: str | None = None,
    ) -> tuple[Any, Any]:
        """Speech and noise; they add up to the recording (in the prior's band).

        Args:
            audio, sample_rate: see `enhance`.
            true_noise: for experiments, the noise in the recording, same form as `audio`.
            oracle: what is made of it: "oracle" (NMF fitted to it) or "pure oracle" (its periodogram as the variance).
        """
        audio_format, samples = self._checked(audio, "audio")
        rate = check_sample_rate(sample_rate)
        if (true_noise is None) != (oracle is None) or oracle not in (None, *ORACLE_MODES):
            raise UdseError(
                f"oracle: expected one of {', '.join(ORACLE_MODES)} together with true_noise, got {oracle!r}"
            )
        known = self._checked(true_noise, "true_noise")[1] if oracle else None
        if known is not None and known.shape != samples.shape:
            raise UdseError(f"true_noise: expected the shape of audio {samples.shape}, got {known.shape}")

        speech, noise = np.empty_like(samples), np.empty_like(samples)
        for channel, signal in enumerate(samples):
            side = None if known is None else _resampled(known[channel], rate, self.spectral.sample_rate)
            mixture = _resampled(signal, rate, self.spectral.sample_rate)
            blocks = self.blocks(None if side is None else (side, oracle or ""), carry_noise=True)
            x = torch.from_numpy(mixture)
            both = torch.cat([blocks.push(x), blocks.finish()], dim=1).numpy()
            for target, source in ((speech, both[0]), (noise, both[1])):
                target[channel] = _fitted(_resampled(source, self.spectral.sample_rate, rate), len(signal))
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
        self,
        known_noise: tuple[NDArray[np.float32], str] | None = None,
        *,
        settings: InferenceSettings | None = None,
        carry_noise: bool = False,
    ) -> OverlapBlocks:
        """Block processing of one channel at the network's rate; outputs are speech and noise.

        `carry_noise`: the noise model of a block starts from that of the block before.
        """
        settings = settings or self.settings
        hop = self.spectral.hop_length
        rate = self.spectral.sample_rate
        overlap = math.ceil(max(settings.overlap_seconds * rate, 3 * self.spectral.n_fft) / hop) * hop
        block = max(math.ceil(settings.block_seconds * rate / hop) * hop, 2 * overlap)
        basis: list[Tensor] = []  # W of the block before

        def enhance(signal: Tensor, first_frame: int) -> Tensor:
            known = None
            if known_noise is not None:
                start = first_frame * hop
                known = (torch.from_numpy(known_noise[0][start : start + len(signal)]), known_noise[1])
            speech, model = self.enhance_block(
                signal, first_frame, known, basis[0] if carry_noise and basis else None, settings
            )
            if carry_noise and isinstance(model, NMF):
                basis[:] = [model.W]
            return torch.stack([speech, signal - speech])

        return OverlapBlocks(enhance, block, overlap, guard=self.spectral.n_fft // 2, hop=hop, outputs=2)

    @torch.inference_mode()
    def enhance_block(
        self,
        signal: Tensor,
        first_frame: int = 0,
        known_noise: tuple[Tensor, str] | None = None,
        initial_basis: Tensor | None = None,
        settings: InferenceSettings | None = None,
    ) -> tuple[Tensor, NoiseModel | None]:
        """Speech of one block (L,) float32 at the network's rate, and the noise model that was fitted."""
        settings = settings or self.settings
        mixture, level = self.spectral.analyse(signal.to(self.device))
        if not level > 0:
            return torch.zeros_like(signal), None
        model: NoiseModel | None = None
        if known_noise is not None:
            model = _oracle(self.spectral, known_noise, level, settings.rank, self.seed)
        W, H = start_nmf(mixture, settings.rank, self.seed, settings.start_share)
        if initial_basis is not None:
            scale = (W @ H).mean() / (initial_basis @ H).mean()
            W, H = initial_basis, H * scale
        times, dt = settings.time_grid()
        posterior = posterior_sample(
            mixture,
            self.score,
            self.sampler,
            steps=settings.steps,
            samples=settings.samples,
            em_rounds=settings.em_rounds,
            rank=settings.rank,
            randomness=counter_based(self.seed, first_frame),
            initial_nmf=(W, H),
            noise_model=model,
            times=times,
            dt=dt,
            corrector_snr=settings.corrector_snr,
            sde=self.sde,
            **self.options,
        )
        spectrogram = read_out(posterior, mixture, level, self.spectral, settings.readout, settings.wiener_exponent)
        speech = self.spectral.istft(spectrogram, len(signal)).to(signal)
        if self.strength is not None:
            speech = speech + 10 ** (-self.strength / 20) * (signal - speech)
        return speech, posterior.noise_model

    def score(self, state: Tensor, time: Time, source: str) -> Tensor:
        """The prior's score as the samplers call it."""
        network = self.network if source == "speech" else self.noise_network
        batch = state.shape[0]
        t = time if isinstance(time, Tensor) else torch.tensor(time)
        t = t.to(state.real).expand((batch,) if t.ndim == 0 else (batch, state.shape[-1]))
        return network.score(state, t, SPEECH_LABEL if source == "speech" else NOISE_LABEL)

    # -- streams ---------------------------------------------------------------------------------------------------

    def open_stream(self, sample_rate: int = 16000, channels: int = 1, **settings: Any) -> Stream:
        """A stream of its own, independent of the others; `settings` override those of the Enhancer for it."""
        unknown = set(settings) - set(InferenceSettings.__dataclass_fields__)
        if unknown:
            raise UdseError(
                f"open_stream: unknown setting {', '.join(sorted(unknown))}; "
                f"there are {', '.join(InferenceSettings.__dataclass_fields__)}"
            )
        return Stream(self, check_sample_rate(sample_rate), channels, replace(self.settings, **settings))

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


def _precision(name: str, device: torch.device, network: ScoreNetwork) -> str:
    """ "auto": 16 bits where the hardware computes in them, else float32; a TorchScript file keeps its own."""
    if network.scripted:
        return network.precision if name == "auto" else name
    if name != "auto":
        if name not in PRECISIONS:
            raise UdseError(f"precision: expected auto, {', '.join(PRECISIONS)}, got {name!r}")
        return name
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float16"
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if device.type == "cpu" and fast else "float32"


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


def _fitted(samples: NDArray[np.float32], length: int) -> NDArray[np.float32]:
    """Cut or padded by the sample or so that two resamplings may be off."""
    return np.pad(samples[:length], (0, max(0, length - len(samples))))

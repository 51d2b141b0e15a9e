"""`BlockEnhancer`: one block of one channel, analyse -> sample -> read out -> synthesise. No checkpoint, no stream."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from typing import Any, Generic

import torch
from torch import Tensor

from udse_fast.audio.hum import steady_part
from udse_fast.errors import UdseError
from udse_fast.model import Model
from udse_fast.networks.conditions import SPEECH_SOURCE, Conditions
from udse_fast.sampling.noise_floor import NoiseFloor
from udse_fast.sampling.noise_models import NMF, NoiseModel, OnlineNMF
from udse_fast.sampling.passes import gather, run
from udse_fast.sampling.posterior import Posterior, SamplerSettings, divergence, posterior_pass
from udse_fast.sampling.read_out import FILTERS, ReadOut
from udse_fast.sampling.requests import Pass, Prior
from udse_fast.sampling.samplers import find_sampler
from udse_fast.settings import InferenceSettings
from udse_fast.streaming.blocks import Block, Blocks, Enhanced, Memory
from udse_fast.streaming.causal import CausalBlocks
from udse_fast.streaming.causal_memory import CausalMemory, Level
from udse_fast.streaming.causal_prior import CausalPrior
from udse_fast.streaming.overlap import OverlapBlocks

LEAST_LEVEL = 1e-6
"""Largest compressed modulus below which a block of a causal stream counts as digital silence."""

FALL_BACK_GAIN = 0.1
"""Of the mixture in a block in which the sampler diverged: 20 dB down, as noise would be."""

HIGHEST_BANDS = (5000, 7500)
"""Hz: where the speech is compared with the mixture, for the gain of what lies above the network's band."""

MakeNoiseModel = Callable[[Tensor, Tensor, Block[Any]], NoiseModel]
"""(mixture x (F, T), compressed and normalised; the level it was divided by; the block) -> its noise model."""

Tell = Callable[[Block[Any]], Conditions]
"""The block -> what the network is told about the speech in it, in every call of its reverse pass."""


@dataclass(frozen=True)
class Analysed(Generic[Memory]):
    """A block as the sampler sees it."""

    block: Block[Memory]
    mixture: Tensor
    """x (F, T) complex, compressed and normalised."""
    level: Tensor
    """What it was divided by, 0-d."""
    prior: Prior
    noise_model: NoiseModel | None
    """None for samplers that fit no noise."""
    read_out: ReadOut
    memory: Callable[[], Memory]
    """For the next block, once the sampler has run."""
    unspoiled: Memory
    """For the next block if the sampler diverged."""


@dataclass(frozen=True)
class BlockEnhancer(ABC, Generic[Memory]):
    """How the blocks of one kind are enhanced.

    Args:
        model: prior and sampler.
        settings: in place of the model's.
        seed: of all randomness.
        falls_back: a filter takes the place of a sampler that diverges, instead of an error.
        tell: what the network is told about each block, beside what the sampler tells it.
    """

    model: Model
    settings: InferenceSettings
    seed: int
    falls_back: bool = True
    tell: Tell | None = None

    def __post_init__(self) -> None:
        sampler, readout = self.model.sampler, self.settings.readout
        if readout in FILTERS and find_sampler(sampler).noise is None:
            raise UdseError(
                f"readout: expected auto, mean or mean_compressed with the sampler {sampler!r}, which says nothing "
                f"about the noise, got {readout!r}"
            )

    @abstractmethod
    def new_blocks(self) -> Blocks:
        """What cuts one channel into blocks of this kind."""

    @abstractmethod
    def analyse(self, block: Block[Memory]) -> Analysed[Memory] | Enhanced[Memory]:
        """The spectrogram of a block, and a noise model for it; of a silent block, its end."""

    @abstractmethod
    def synthesise(self, speech: Tensor, gain: Tensor, length: int) -> Tensor:
        """Spectrogram of the speech (F, T) complex, and a gain per frame (T,) -> (2, length), samples of both."""

    @cached_property
    def sampler_settings(self) -> SamplerSettings:
        """Of the reverse pass: checked here, once."""
        settings = self.settings
        times, equal = settings.time_grid()
        dt = None if find_sampler(self.model.sampler).likelihood.steps_by_grid else equal
        return SamplerSettings(
            self.model.sampler,
            samples=settings.samples,
            shared_steps=settings.shared_steps,
            rank=settings.rank,
            em_rounds=settings.em_rounds,
            seed=self.seed,
            times=times,
            dt=dt,
            corrector_snr=settings.corrector_snr,
            reuse_estimate=settings.reuse_estimate,
            sde=self.model.sde,
            options=self.model.options,
        )

    def sample(self, analysed: Analysed[Memory]) -> Pass[Posterior]:
        """The reverse pass."""
        return posterior_pass(
            analysed.mixture,
            analysed.prior,
            self.sampler_settings,
            first_frame=analysed.block.first_frame,
            noise_model=analysed.noise_model,
            conditions=None if self.tell is None else {SPEECH_SOURCE: self.tell(analysed.block).to(self.model.device)},
            replayed=self.model.passes if analysed.prior is self.model.prior else None,  # a causal prior has a memory
        )

    def finish(self, channels: Sequence[Analysed[Memory]], posteriors: Sequence[Posterior]) -> list[Enhanced[Memory]]:
        """Read the samples out, of one block of all channels of a signal that are not silent.

        Raises:
            UdseError: the sampler diverged, and nothing takes its place.
        """
        speech, mixtures, results = [], [], []
        for analysed, posterior in zip(channels, posteriors, strict=True):
            estimate = None if posterior.diverged else analysed.read_out(posterior, analysed.mixture, analysed.level)
            failed = estimate is None or not torch.view_as_real(estimate).isfinite().all()  # decompression squares
            if failed and not self.falls_back:
                raise divergence(self.sampler_settings, self.model.precision)
            mixture = self.model.spectral.decompress(analysed.mixture * analysed.level)
            mixtures.append(mixture)
            speech.append(FALL_BACK_GAIN * mixture if failed or estimate is None else estimate)
            memory = analysed.unspoiled if failed else analysed.memory()
            results.append(partial(Enhanced, memory=memory, diverged=failed, network_calls=posterior.score_evaluations))
        if self.settings.stereo == "common" and len(channels) > 1:
            gain = _gain(torch.stack(speech), torch.stack(mixtures), dim=0)
            speech = [gain * mixture for mixture in mixtures]
        spectral = self.model.spectral
        top = slice(*(round(hertz * spectral.n_fft / spectral.sample_rate) for hertz in HIGHEST_BANDS))
        enhanced = []
        for analysed, estimate, mixture, result in zip(channels, speech, mixtures, results, strict=True):
            signal = analysed.block.signal
            above = _gain(estimate[top], mixture[top], dim=0)
            enhanced.append(result(self.synthesise(estimate, above, len(signal)).to(signal)))
        return enhanced

    def read_out(self, forgetting: float = 0.0) -> ReadOut:
        """From samples to one estimate; `forgetting` from block to block."""
        settings = self.settings
        return ReadOut(
            self.model.spectral,
            settings.readout,
            settings.wiener_exponent,
            settings.blend_ratio,
            forgetting,
            settings.restraint == "auto",
        )

    def facts(self) -> dict[str, Any]:
        """Everything that the output depends on besides the input and the way it is cut into blocks."""
        model = self.model
        options = find_sampler(model.sampler).options | model.options
        return {
            **model.fingerprints,
            "precision": model.precision,
            "device": model.device.type,
            "sampler": model.sampler,
            "seed": self.seed,
            **asdict(self.settings),
            **{f"{model.sampler} {name}": value for name, value in options.items()},
        }


@dataclass(frozen=True)
class OverlapBlockEnhancer(BlockEnhancer[Tensor | None]):
    """Blocks that are signals of their own. What is left for the next one is the basis W of the noise model, or None.

    Args:
        make_noise_model: in place of NMF, e.g. one that knows the noise.
    """

    make_noise_model: MakeNoiseModel | None = None

    def new_blocks(self) -> OverlapBlocks:
        return OverlapBlocks.of(self.settings, self.model.spectral)

    def analyse(self, block: Block[Tensor | None]) -> Analysed[Tensor | None] | Enhanced[Tensor | None]:
        signal = block.signal
        if self.settings.hum == "remove":
            signal = signal - steady_part(signal, self.model.spectral.sample_rate)
        if self.model.passes is not None and self.make_noise_model is None and self.tell is None:
            signal = self._of_a_common_length(signal)  # all that the pass is told follows from it
        mixture, level = self.model.spectral.analyse(signal.to(self.model.device))
        if not level > 0:
            return Enhanced(block.signal.new_zeros(2, len(block.signal)), block.memory)
        noise_model: NoiseModel | None = None
        if self.make_noise_model is not None:
            noise_model = self.make_noise_model(mixture, level, block)
        elif find_sampler(self.model.sampler).noise is not None:
            noise_model = self._start_nmf(mixture, level, block)

        def basis() -> Tensor | None:
            return noise_model.W if isinstance(noise_model, NMF) else block.memory

        return Analysed(
            block, mixture, level, self.model.prior, noise_model, self.read_out(), basis, unspoiled=block.memory
        )

    def _of_a_common_length(self, signal: Tensor) -> Tensor:
        """The signal, and behind it its mirror image, up to the next quarter of a block: passes are recorded by length.

        Whatever was not in the recording, silence above all, the noise model would learn.
        """
        blocks = self.new_blocks()
        quarter = math.ceil(blocks.block / (4 * blocks.hop)) * blocks.hop
        length = min(math.ceil(len(signal) / quarter) * quarter, blocks.block)
        if length <= len(signal):
            return signal
        place = torch.arange(length, device=signal.device) % (2 * len(signal))
        return signal[torch.minimum(place, 2 * len(signal) - 1 - place)]

    def _start_nmf(self, mixture: Tensor, level: Tensor, block: Block[Tensor | None]) -> NMF:
        """NMF; most samplers start with the basis of the block before, at the power that it would have without."""
        settings, basis = self.settings, block.memory
        likelihood = find_sampler(self.model.sampler).likelihood
        W, H = likelihood.start_noise(mixture, settings.rank, self.seed, settings.start_share)
        if basis is not None and likelihood.carries_noise:
            W, H = basis, H * ((W @ H).mean() / (basis @ H).mean())
        return NMF(W, H, iterations=settings.nmf_iterations)

    def synthesise(self, speech: Tensor, gain: Tensor, length: int) -> Tensor:
        spectral = self.model.spectral
        inner = slice(spectral.n_fft // 2, spectral.n_fft // 2 + length)  # frames are centred
        weight = spectral.squared_windows(len(gain))[inner].to(gain)
        return torch.stack([spectral.istft(speech, length), spectral.weighted_gain(gain)[inner] / weight])


@dataclass(frozen=True)
class CausalBlockEnhancer(BlockEnhancer[CausalMemory]):
    """Blocks of a few frames that go on from each other, of a causal network."""

    def new_blocks(self) -> CausalBlocks:
        model, settings = self.model, self.settings
        frames = settings.block_frames or model.network.causal_block
        block_seconds = frames * model.spectral.hop_length / model.spectral.sample_rate
        forgetting = math.exp(-block_seconds / settings.forgetting_seconds)
        noise_model = OnlineNMF(
            model.spectral.bins,
            settings.rank,
            forgetting,
            settings.start_share,
            self.seed,
            settings.nmf_iterations,
            settings.forgetting_spread,
            NoiseFloor.over(model.spectral.bins, settings.noise_floor, block_seconds) if settings.noise_floor else None,
        )
        level = Level.over(settings.level_seconds, block_seconds)
        prior, nothing = CausalPrior(model.network, model.posterior_network), torch.zeros(0, dtype=torch.float32)
        memory = CausalMemory(prior, noise_model, self.read_out(forgetting), level, nothing)
        return CausalBlocks(model.spectral, frames, memory)

    def analyse(self, block: Block[CausalMemory]) -> Analysed[CausalMemory] | Enhanced[CausalMemory]:
        spectral = self.model.spectral
        signal, heard = self._without_hum(block)
        compressed = spectral.compress(spectral.stft(signal.to(self.model.device), center=False))
        level = block.memory.level.after(compressed)
        unspoiled = replace(block.memory, level=level, heard=heard)
        if not level.now > LEAST_LEVEL:
            return Enhanced(block.signal.new_zeros(2, len(block.signal)), unspoiled)
        memory, now = unspoiled.copy(), level.now.to(self.model.device)
        mixture = compressed / now
        memory.noise_model.next_block(mixture, now)
        return Analysed(
            block, mixture, now, memory.prior, memory.noise_model, memory.read_out, lambda: memory, unspoiled
        )

    def _without_hum(self, block: Block[CausalMemory]) -> tuple[Tensor, Tensor]:
        """The signal of the block, and what has been heard at its end."""
        if self.settings.hum == "keep":
            return block.signal, block.memory.heard
        spectral = self.model.spectral
        before = spectral.n_fft - spectral.hop_length  # samples of the last block
        known = len(block.memory.heard) > 0
        context = torch.cat([block.memory.heard, block.signal[before:]]) if known else block.signal
        hum = steady_part(context, spectral.sample_rate)[-len(block.signal) :]
        return block.signal - hum, context[-spectral.sample_rate :].clone()

    def synthesise(self, speech: Tensor, gain: Tensor, length: int) -> Tensor:
        return torch.stack([self.model.spectral.overlap_add(speech), self.model.spectral.weighted_gain(gain)])


def _gain(speech: Tensor, mixture: Tensor, dim: int) -> Tensor:
    """Real gain up to 1 from the mixture to the speech, by their powers summed over a dimension."""
    power, of_mixture = (part.abs().square().sum(dim) for part in (speech, mixture))
    return (power / of_mixture.clamp_min(torch.finfo(power.dtype).tiny)).sqrt().clamp_max(1)


def enhance_blocks(jobs: Sequence[tuple[BlockEnhancer[Any], Sequence[Block[Any]]]]) -> list[list[Enhanced[Any]]]:
    """Enhance blocks of any number of signals; their network calls are made as one batch.

    Args:
        jobs: how, and a block of each channel of a signal, all of the same place.

    Returns:
        What became of every block.
    """

    with torch.no_grad():
        analysed = [[enhancer.analyse(block) for block in blocks] for enhancer, blocks in jobs]
        heard = [[one for one in channels if isinstance(one, Analysed)] for channels in analysed]
        passes = [e.sample(one) for (e, _), channels in zip(jobs, heard, strict=True) for one in channels]
        posteriors = iter(run(gather(passes)))
        results = []
        for (enhancer, _), channels, loud in zip(jobs, analysed, heard, strict=True):
            finished = iter(enhancer.finish(loud, [next(posteriors) for _ in loud]))
            results.append([next(finished) if isinstance(one, Analysed) else one for one in channels])
        return results

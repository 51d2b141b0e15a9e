"""`BlockEnhancer`: one block of one channel, analyse -> sample -> read out -> synthesise. No checkpoint, no stream."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Generic

import torch
from torch import Tensor

from udse_fast.model import Model
from udse_fast.sampling.noise_models import NMF, NoiseModel, OnlineNMF, start_nmf
from udse_fast.sampling.passes import gather, run
from udse_fast.sampling.posterior import Posterior, SamplerSettings, divergence, posterior_pass
from udse_fast.sampling.read_out import ReadOut
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

MakeNoiseModel = Callable[[Tensor, Tensor, Block[Any]], NoiseModel]
"""(mixture x (F, T), compressed and normalised; the level it was divided by; the block) -> its noise model."""


@dataclass(frozen=True)
class Analysed(Generic[Memory]):
    """A block as the sampler sees it."""

    block: Block[Memory]
    mixture: Tensor
    """x (F, T) complex, compressed and normalised."""
    level: Tensor
    """What it was divided by, 0-d."""
    prior: Prior
    noise_model: NoiseModel
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
    """

    model: Model
    settings: InferenceSettings
    seed: int
    falls_back: bool = True

    @abstractmethod
    def new_blocks(self) -> Blocks:
        """What cuts one channel into blocks of this kind."""

    @abstractmethod
    def analyse(self, block: Block[Memory]) -> Analysed[Memory] | Enhanced[Memory]:
        """The spectrogram of a block, and a noise model for it; of a silent block, its end."""

    @abstractmethod
    def synthesise(self, speech: Tensor, length: int) -> Tensor:
        """(F, T) complex, the spectrogram of the speech -> its samples (length,)."""

    @cached_property
    def sampler_settings(self) -> SamplerSettings:
        """Of the reverse pass: checked here, once."""
        settings = self.settings
        times, dt = settings.time_grid()
        return SamplerSettings(
            self.model.sampler,
            samples=settings.samples,
            rank=settings.rank,
            em_rounds=settings.em_rounds,
            seed=self.seed,
            times=times,
            dt=dt,
            corrector_snr=settings.corrector_snr,
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
            replayed=self.model.passes if analysed.prior is self.model.prior else None,  # a causal prior has a memory
        )

    def finish(self, analysed: Analysed[Memory], posterior: Posterior) -> Enhanced[Memory]:
        """Read the samples out.

        Raises:
            UdseError: the sampler diverged, and nothing takes its place.
        """
        calls = posterior.score_evaluations
        if not posterior.diverged:
            speech = analysed.read_out(posterior, analysed.mixture, analysed.level)
            samples = self._samples(speech, analysed.block)
            if samples.isfinite().all():  # the inverse compression squares
                return Enhanced(samples, analysed.memory(), network_calls=calls)
        if not self.falls_back:
            raise divergence(self.sampler_settings)
        speech = FALL_BACK_GAIN * self.model.spectral.decompress(analysed.mixture * analysed.level)
        return Enhanced(self._samples(speech, analysed.block), analysed.unspoiled, diverged=True, network_calls=calls)

    def _samples(self, speech: Tensor, block: Block[Memory]) -> Tensor:
        return self.synthesise(speech, len(block.signal)).to(block.signal)

    def read_out(self, forgetting: float = 0.0) -> ReadOut:
        """From samples to one estimate; `forgetting` from block to block."""
        settings = self.settings
        return ReadOut(
            self.model.spectral, settings.readout, settings.wiener_exponent, settings.blend_ratio, forgetting
        )

    def facts(self) -> dict[str, Any]:
        """Everything that the output depends on besides the input and the way it is cut into blocks."""
        model = self.model
        options = find_sampler(model.sampler).options | model.options
        return {
            "checkpoint": model.fingerprints[0],
            "noise_checkpoint": model.fingerprints[1],
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
        mixture, level = self.model.spectral.analyse(block.signal.to(self.model.device))
        if not level > 0:
            return Enhanced(torch.zeros_like(block.signal), block.memory)
        make = self.make_noise_model or self._start_nmf
        noise_model = make(mixture, level, block)

        def basis() -> Tensor | None:
            return noise_model.W if isinstance(noise_model, NMF) else block.memory

        return Analysed(
            block, mixture, level, self.model.prior, noise_model, self.read_out(), basis, unspoiled=block.memory
        )

    def _start_nmf(self, mixture: Tensor, level: Tensor, block: Block[Tensor | None]) -> NMF:
        """NMF that starts with the basis of the block before, at the power that it would have without."""
        settings, basis = self.settings, block.memory
        W, H = start_nmf(mixture, settings.rank, self.seed, settings.start_share)
        if basis is not None:
            W, H = basis, H * ((W @ H).mean() / (basis @ H).mean())
        return NMF(W, H, iterations=settings.nmf_iterations)

    def synthesise(self, speech: Tensor, length: int) -> Tensor:
        return self.model.spectral.istft(speech, length)


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
        )
        level = Level.over(settings.level_seconds, block_seconds)
        memory = CausalMemory(CausalPrior(model.network), noise_model, self.read_out(forgetting), level)
        return CausalBlocks(model.spectral, frames, memory)

    def analyse(self, block: Block[CausalMemory]) -> Analysed[CausalMemory] | Enhanced[CausalMemory]:
        spectral = self.model.spectral
        compressed = spectral.compress(spectral.stft(block.signal.to(self.model.device), center=False))
        level = block.memory.level.after(compressed)
        unspoiled = replace(block.memory, level=level)
        if not level.now > LEAST_LEVEL:
            return Enhanced(torch.zeros_like(block.signal), unspoiled)
        memory, now = unspoiled.copy(), level.now.to(self.model.device)
        mixture = compressed / now
        memory.noise_model.next_block(mixture)
        return Analysed(
            block, mixture, now, memory.prior, memory.noise_model, memory.read_out, lambda: memory, unspoiled
        )

    def synthesise(self, speech: Tensor, length: int) -> Tensor:
        return self.model.spectral.overlap_add(speech)


def enhance_blocks(jobs: Sequence[tuple[BlockEnhancer[Any], Block[Any]]]) -> list[Enhanced[Any]]:
    """Enhance blocks of any number of signals; their network calls are made as one batch."""
    with torch.no_grad():
        analysed = [enhancer.analyse(block) for enhancer, block in jobs]
        heard = [
            (enhancer, one) for (enhancer, _), one in zip(jobs, analysed, strict=True) if isinstance(one, Analysed)
        ]
        posteriors = iter(run(gather([enhancer.sample(one) for enhancer, one in heard])))
        return [
            enhancer.finish(one, next(posteriors)) if isinstance(one, Analysed) else one
            for (enhancer, _), one in zip(jobs, analysed, strict=True)
        ]

"""`BlockSeparator`: one block of all channels of a recording, analyse -> sample -> share out -> synthesise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from udse_fast.audio.spectral import Spectral
from udse_fast.kernels.complex_normal import NoiseKey, complex_normal
from udse_fast.networks.conditions import NOTHING, Conditions, labelled
from udse_fast.networks.score_network import ScoreNetwork
from udse_fast.sampling.denoisers import NetworkDenoiser
from udse_fast.sampling.separation import separate_sources
from udse_fast.separation.source import Source
from udse_fast.settings import SeparationSettings


@dataclass(frozen=True)
class BlockSeparator:
    """How blocks are separated.

    Args:
        sources: the noise last.
        networks: of each source.
        spectral: the domain of all of them.
        settings: of the sampler.
        seed: of all randomness.
    """

    sources: Sequence[Source]
    networks: Sequence[ScoreNetwork]
    spectral: Spectral
    settings: SeparationSettings
    seed: int

    def separate(self, signals: Tensor, first_frame: int, told: Mapping[str, Conditions]) -> Tensor:
        """Share a block out among the talkers.

        The sources of the sum of the channels are sampled, and masks |S_k|^q / sum_j |S_j|^q of each bin share every
        channel out: channels keep their image, and talkers and noise add up to the block.

        Args:
            signals: (C, L) float32 at the network's rate.
            first_frame: absolute number of its first frame, by which its noise is drawn.
            told: by the name of a source, what its network is told about this block.

        Returns:
            (C, K, L), the talkers.
        """
        talkers = sum(not source.is_noise for source in self.sources)
        device = self.networks[0].device
        mixture, level = self.spectral.analyse(_sum_of_channels(signals).to(device))
        if not level > 0:
            return signals.new_zeros(len(signals), talkers, signals.shape[1])
        drawn = separate_sources(
            mixture,
            {source.name: self._denoiser(source, network, told.get(source.name, NOTHING), mixture)
             for source, network in zip(self.sources, self.networks, strict=True)},
            tau=self.settings.levels,
            zeta=self.settings.zeta,
            solver=self.settings.solver,
            rule=self.settings.rule,
            start=self._start(mixture, first_frame),
        )  # fmt: skip
        masks = self._masks(drawn.denoised)[:talkers]
        spectra = self.spectral.stft(signals.to(device))
        channels = [self.spectral.istft(masks * spectrum, signals.shape[1]) for spectrum in spectra]
        return torch.stack(channels).to(signals)

    def _denoiser(self, source: Source, network: ScoreNetwork, told: Conditions, mixture: Tensor) -> NetworkDenoiser:
        label = labelled(source.name, mixture[None]) if "label" in network.conditions else NOTHING
        if not told.given:
            return NetworkDenoiser(network, label)
        return NetworkDenoiser(network, label.merged(told), label, source.guidance)

    def _start(self, mixture: Tensor, first_frame: int) -> Tensor:
        """(K, F, T) standard normal; that of a frame is the same in every block that has it."""
        F, T = mixture.shape
        keys = [NoiseKey(self.seed, "init_speech", first_frame=first_frame, first_sample=k)
                for k in range(len(self.sources))]  # fmt: skip
        return torch.cat([complex_normal(key, (1, F, T), mixture.dtype, mixture.device) for key in keys])

    def _masks(self, sources: Tensor) -> Tensor:
        """(K, F, T) compressed spectrograms -> (K, F, T) gains up to 1, which add up to 1."""
        power = sources.abs() ** (self.settings.sharpness / self.spectral.exponent)
        total = power.sum(0)
        return torch.where(total > 0, power / total, 1 / len(sources))


def _sum_of_channels(signals: Tensor) -> Tensor:
    """(C, L) -> (L,), the mean over channels; those that are turned over relative to the loudest one turned back."""
    loudest = signals[signals.square().sum(1).argmax()]
    signs = torch.where(signals @ loudest < 0, -1.0, 1.0)
    return (signs[:, None] * signals).mean(0)

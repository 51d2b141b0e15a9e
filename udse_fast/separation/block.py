"""`BlockSeparator`: one block of all channels of a recording, analyse -> sample -> share out -> synthesise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from udse_fast.audio.spectral import Spectral
from udse_fast.kernels.complex_normal import NoiseKey, complex_normal
from udse_fast.networks.conditions import NOTHING, Conditions, labelled
from udse_fast.networks.score_network import ScoreNetwork
from udse_fast.sampling.denoisers import NetworkDenoiser, NetworkPower
from udse_fast.sampling.separation import separate_sources
from udse_fast.sampling.sharing import share_mixture
from udse_fast.separation.source import Source
from udse_fast.settings import SeparationSettings


class Asked(NamedTuple):
    """A network, and what it is told: see `NetworkDenoiser`."""

    network: ScoreNetwork
    told: Conditions
    untold: Conditions | None = None
    guidance: float = 0.0


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

        The sources of the sum of the channels are sampled, and masks share every channel out: channels keep their
        image, and talkers and noise add up to the block.

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
        asked = [
            self._asked(source, network, told.get(source.name, NOTHING), mixture)
            for source, network in zip(self.sources, self.networks, strict=True)
        ]
        sample = self._by_powers if self.settings.sampler == "shares" else self._by_gradients
        masks = sample(mixture, first_frame, asked)[:talkers]
        spectra = self.spectral.stft(signals.to(device))
        channels = [self.spectral.istft(masks * spectrum, signals.shape[1]) for spectrum in spectra]
        return torch.stack(channels).to(signals)

    def _by_powers(self, mixture: Tensor, first_frame: int, asked: Sequence[Asked]) -> Tensor:
        """Masks (K, F, T) by `share_mixture`."""
        names = [source.name for source in self.sources]
        powers = {name: NetworkPower(**one._asdict()) for name, one in zip(names, asked, strict=True)}
        draw = partial(self._normal, mixture, first_frame)
        return share_mixture(mixture, powers, self.settings.levels, draw, self.spectral.exponent)

    def _by_gradients(self, mixture: Tensor, first_frame: int, asked: Sequence[Asked]) -> Tensor:
        """Masks (K, F, T) of what `separate_sources` draws."""
        names = [source.name for source in self.sources]
        drawn = separate_sources(
            mixture,
            {name: NetworkDenoiser(**one._asdict()) for name, one in zip(names, asked, strict=True)},
            tau=self.settings.levels,
            zeta=self.settings.zeta,
            solver=self.settings.solver,
            rule=self.settings.rule,
            start=torch.stack([self._normal(mixture, first_frame, 0, k) for k in range(len(asked))]),
        )
        power = drawn.denoised.abs() ** (self.settings.sharpness / self.spectral.exponent)
        total = power.sum(0)
        return torch.where(total > 0, power / total, 1 / len(power))

    def _asked(self, source: Source, network: ScoreNetwork, told: Conditions, mixture: Tensor) -> Asked:
        label = labelled(source.name, mixture[None]) if "label" in network.conditions else NOTHING
        if not told.given:
            return Asked(network, label)
        guidance = self.settings.guidance if source.guidance is None else source.guidance
        assert guidance is not None
        return Asked(network, label.merged(told), label, guidance)

    def _normal(self, mixture: Tensor, first_frame: int, step: int, source: int) -> Tensor:
        """(F, T) standard normal; that of a frame is the same in every block that has it."""
        key = NoiseKey(self.seed, "init_speech", step, first_frame, first_sample=source)
        F, T = mixture.shape
        return complex_normal(key, (1, F, T), mixture.dtype, mixture.device)[0]


def _sum_of_channels(signals: Tensor) -> Tensor:
    """(C, L) -> (L,), the mean over channels; those that are turned over relative to the loudest one turned back."""
    loudest = signals[signals.square().sum(1).argmax()]
    signs = torch.where(signals @ loudest < 0, -1.0, 1.0)
    return (signs[:, None] * signals).mean(0)

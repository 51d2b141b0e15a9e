"""What a posterior network says about a recording: of a mixture and a guess of its noise variance, in one call."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

HIGHEST_LEVEL = 1.0
"""Noise level a above which a diffused state says nothing beside a recording: it is not looked at."""


class Said(NamedTuple):
    """What the network says about a mixture, in real planes.

    Attributes:
        clean: E[s | x, V], (B, 2, F, T).
        variance: E|s - clean|^2, (B, F, T).
        log_noise: log of the expected V, (B, F, T), in the linear domain of `noise_variance`.
        gain: log of what to multiply `clean` by for the ear (its magnitudes, not its squares, are right), (B, F, T).
    """

    clean: Tensor
    variance: Tensor
    log_noise: Tensor
    gain: Tensor

    @property
    def heard(self) -> Tensor:
        """The estimate to listen to, (B, 2, F, T)."""
        return self.clean * self.gain.exp().unsqueeze(1)


class Estimate(NamedTuple):
    """The same as samplers see it."""

    speech: Tensor
    """E[s | x, V], (B, F, T) complex, compressed as the mixture."""
    variance: Tensor
    """E|s - speech|^2, (B, F, T)."""
    noise_variance: Tensor
    """V that the network believes in now, (B, F, T), in the linear domain: x |x| = S + nu, E|nu|^2 = V."""
    heard: Tensor | None = None
    """The estimate to listen to, (B, F, T) complex; None: `speech` is."""

    @classmethod
    def of(cls, said: Said, like: Tensor) -> Estimate:
        """On the device and in the precision of a complex tensor."""

        def as_complex(planes: Tensor) -> Tensor:
            return torch.view_as_complex(planes.movedim(1, -1).contiguous()).to(like.device, like.dtype)

        real = like.real.dtype
        variance, noise = (z.contiguous().to(like.device, real) for z in (said.variance, said.log_noise.exp()))
        return cls(as_complex(said.clean), variance, noise, as_complex(said.heard))

    def repeated(self, samples: int) -> Estimate:
        """The same for each of so many samples, of what was said about one."""
        speech, variance, noise_variance = (z.repeat(samples, 1, 1) for z in self[:3])
        heard = None if self.heard is None else self.heard.repeat(samples, 1, 1)
        return Estimate(speech, variance, noise_variance, heard)

    def for_states(self, like: Tensor) -> Estimate:
        """For each of the states (B, F, T) complex, what may have been said once; in their precision."""

        def fitted(z: Tensor) -> Tensor:
            return z.to(like.device, like.dtype if z.is_complex() else like.real.dtype).expand(like.shape)

        heard = None if self.heard is None else fitted(self.heard)
        return Estimate(fitted(self.speech), fitted(self.variance), fitted(self.noise_variance), heard)

    def split(self, sizes: list[int]) -> list[Estimate]:
        """Of a batch, by its parts."""
        parts = [[None] * len(sizes) if tensor is None else tensor.split(sizes) for tensor in self]
        return [Estimate(*values) for values in zip(*parts, strict=True)]

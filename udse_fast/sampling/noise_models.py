"""What the samplers know about the noise: its variance per bin, fitted to the recording (NMF-IS) or given (oracle)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from udse_fast.errors import UdseError
from udse_fast.kernels.nmf_is import nmf_update, online_nmf_update
from udse_fast.kernels.nmf_is.reference import even_start
from udse_fast.sampling.noise_floor import NoiseFloor

POWER_FLOOR = 1e-10


@runtime_checkable
class NoiseModel(Protocol):
    """Variance of the noise, per bin and frame, and what to do with a new estimate of its power."""

    @property
    def variance(self) -> Tensor | tuple[Tensor, Tensor]:
        """(F, T), or the factors W (F, R) and H (R, T) of it."""

    def fit(self, power: Tensor) -> None:
        """M-step: `power` (F, T) is the expected |noise|^2."""


class NMF:
    """Variance V = W H, one multiplicative update of the Itakura-Saito divergence per M-step (Fevotte et al. 2009)."""

    def __init__(self, W: Tensor, H: Tensor, iterations: int = 1) -> None:
        if W.ndim != 2 or H.ndim != 2 or W.shape[1] != H.shape[0]:
            raise UdseError(
                f"initial_nmf: expected W (F, R) and H (R, T), got {tuple(W.shape)} and {tuple(H.shape)}; "
                "give two matrices that can be multiplied"
            )
        self.W, self.H = W, H
        self.iterations = iterations

    @property
    def variance(self) -> tuple[Tensor, Tensor]:
        return self.W, self.H

    def fit(self, power: Tensor) -> None:
        self.W, self.H = nmf_update(power, self.W, self.H, iterations=self.iterations)


class OnlineNMF:
    """NMF of a signal that goes on: H for the frames of the block, W from sufficient statistics with forgetting.

    Every reverse step of a block starts from the statistics of the blocks before; those of the last step stay. Columns
    of W sum to 1, so W and its statistics do not change with the level of the signal.

    Args:
        bins, rank: F, R.
        forgetting: what a block leaves of the statistics.
        share: of the mixture's power, at the start.
        seed: of the unevenness of the start.
        iterations: multiplicative updates a step.
        spread: the first columns forget faster and the last ones slower: longest time constant over the shortest, that
            of `forgetting` is their geometric mean.
        floor: the least power of the noise that the M-steps are told. Without it V has a second fixed point: where V is
            too small, the prior takes steady noise for speech, and what is left of it keeps V small.
    """

    def __init__(
        self,
        bins: int,
        rank: int,
        forgetting: float,
        share: float = 1.0,
        seed: int = 0,
        iterations: int = 2,
        spread: float = 1.0,
        floor: NoiseFloor | None = None,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._random = 0.5 + torch.rand(bins, rank, generator=generator, dtype=torch.float32)
        self.forgetting, self.share, self.iterations = forgetting, share, iterations
        self._floor, self._least = floor, torch.zeros(bins, 1, dtype=torch.float32)
        # forgetting_r / forgetting, of which the update applies the latter to all columns
        self._kept = forgetting ** (spread ** torch.linspace(0.5, -0.5, rank, dtype=torch.float32) - 1)
        self.W = self._random / self._random.sum(0)
        self.H = torch.zeros(rank, 1, dtype=torch.float32)
        # numerator and denominator, of the blocks before
        self._statistics = torch.zeros(bins, rank, dtype=torch.float32), torch.zeros(bins, rank, dtype=torch.float32)
        self._latest = self._statistics
        self._started = False

    @property
    def variance(self) -> tuple[Tensor, Tensor]:
        return self.W, self.H

    def next_block(self, mixture: Tensor, level: Tensor | float = 1.0) -> None:
        """The frames x (F, K) come next: their noise starts as that of the last frame, the first one's as the mixture.

        The spectrum of the very first block, made uneven, is where the columns of W start.

        Args:
            mixture: compressed and normalised.
            level: that it was divided by; it may change from block to block.
        """
        power = mixture.abs().square().clamp_min(POWER_FLOOR)
        if self._floor:
            self._floor = self._floor.after(power * level**2)
            self._least = (self._floor.variance / level**2)[:, None]
        if not self._started:
            self.W = self._random.to(power) * power.mean(1, keepdim=True)
            self.W = self.W / self.W.sum(0)
            self.H = self.share * even_start(power, self.W, POWER_FLOOR)[:, :1]
            self._statistics = self._statistics[0].to(power), self._statistics[1].to(power)
            self._started = True
        else:
            numerator, denominator = self._latest
            kept = self._kept.to(numerator)
            self._statistics = numerator * kept, denominator * kept
        self.H = self.H[:, -1:].repeat(1, mixture.shape[1]).to(power)

    def fit(self, power: Tensor) -> None:
        numerator, denominator = self._statistics
        if self._floor:
            power = torch.maximum(power, self._least)
        self.W, self.H, *latest = online_nmf_update(
            power, self.W, self.H, numerator, denominator, self.forgetting, self.iterations
        )
        self._latest = latest[0], latest[1]

    def state(self) -> dict[str, Any]:
        """What the next block depends on."""
        return {
            "W": self.W,
            "H": self.H,
            "statistics": list(self._statistics),
            "latest": list(self._latest),
            "started": self._started,
            **({"floor": self._floor.state()} if self._floor else {}),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.W, self.H, self._started = state["W"], state["H"], state["started"]
        (a, b), (c, d) = state["statistics"], state["latest"]
        self._statistics, self._latest = (a, b), (c, d)
        if self._floor:
            self._floor = replace(self._floor, **state["floor"])


class FixedVariance:
    """Known variance (F, T): the oracle modes, and the closed-form tests."""

    def __init__(self, variance: Tensor) -> None:
        self.variance = variance

    def fit(self, power: Tensor) -> None:
        """The variance is given: nothing to fit."""


def start_nmf(mixture: Tensor, rank: int, seed: int = 0, share: float = 1.0) -> tuple[Tensor, Tensor]:
    """Random W (F, R), H (R, T) in (0, 1], scaled so that mean(W H) = share * mean |x|^2.

    Unscaled, as in the published code, V starts some 30 times above the mixture: with a prior that is sure of itself
    everything is then taken for noise.
    """
    F, T = mixture.shape
    dtype = mixture.real.dtype
    generator = torch.Generator().manual_seed(seed)
    W = 1 - torch.rand(F, rank, generator=generator, dtype=dtype)
    H = 1 - torch.rand(rank, T, generator=generator, dtype=dtype)
    W, H = W.to(mixture.device), H.to(mixture.device)
    power = mixture.abs().square().mean().clamp_min(POWER_FLOOR)
    return W, H * (share * power / (W @ H).mean())

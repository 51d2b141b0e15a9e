"""Diffusion: `s_t = delta(t) s_0 + sigma(t) z` with E|z|^2 = 1, by an SDE `ds = -gamma s dt + g(t) dw`.

Every function takes one time (float or 0-d), one per batch item, or one per frame: the result has the shape of `t`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from udse_fast.checks import Range
from udse_fast.errors import UdseError
from udse_fast.kernels.coefficients import Coefficients

Time = float | Tensor


def _exp(x: Time) -> Time:
    return x.exp() if isinstance(x, Tensor) else math.exp(x)


def _sqrt(x: Time) -> Time:
    return x.sqrt() if isinstance(x, Tensor) else math.sqrt(x)


@runtime_checkable
class SDE(Protocol):
    """A forward process: what the reverse pass, the networks and training ask of it."""

    name: ClassVar[str]
    """In the configuration of a checkpoint."""
    times: ClassVar[Range]
    """Diffusion times that there are."""

    @property
    def gamma(self) -> float:
        """Stiffness of the drift."""

    @property
    def config(self) -> dict[str, Any]:
        """Name and constants, from which `make_sde` makes the process again."""
        return {"name": self.name, **asdict(self)}  # type: ignore[call-overload]  # every process is a dataclass

    @abstractmethod
    def delta(self, t: Time) -> Time:
        """Attenuation of the clean signal."""

    @abstractmethod
    def sigma(self, t: Time) -> Time:
        """Standard deviation of the perturbation."""

    @abstractmethod
    def g(self, t: Time) -> Time:
        """Diffusion coefficient."""

    def noise_level(self, t: Time) -> Time:
        """`a(t) = sigma(t) / delta(t)`: the noise level on the unattenuated signal `s_t / delta(t)`."""
        return self.sigma(t) / self.delta(t)

    @abstractmethod
    def time(self, noise_level: float) -> float:
        """The t of a noise level a > 0: the inverse of `noise_level`."""

    def coefficients(self, t: Time, dt: float, corrector_snr: float = 0.5) -> Coefficients:
        """All that one reverse step needs at time `t` with step `dt`."""
        return Coefficients(
            gamma=self.gamma,
            delta=self.delta(t),
            sigma=self.sigma(t),
            g=self.g(t),
            dt=dt,
            corrector_snr=corrector_snr,
        )


@dataclass(frozen=True)
class OUVE(SDE):
    """Ornstein-Uhlenbeck SDE with exploding variance (Richter et al. 2023; UDiffSE, eq. 1-6)."""

    name: ClassVar[str] = "ouve"
    times: ClassVar[Range] = Range(0, 1, excluded=True)

    gamma: float = 1.5
    sigma_min: float = 0.05
    sigma_max: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise UdseError(f"sde: expected 0 < sigma_min < sigma_max, got {self.sigma_min} and {self.sigma_max}")

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def delta(self, t: Time) -> Time:
        """`exp(-gamma t)`."""
        return _exp(-self.gamma * t)

    def sigma(self, t: Time) -> Time:
        """`sigma(t)^2 = smin^2 (k^2t - exp(-2 gamma t)) L / (gamma + L)`, k = smax / smin, L = log k."""
        log_ratio = self._log_ratio
        spread = _exp(2 * log_ratio * t) - _exp(-2 * self.gamma * t)
        return self.sigma_min * _sqrt(spread * (log_ratio / (self.gamma + log_ratio)))

    def time(self, noise_level: float) -> float:
        """`a^2 = smin^2 (exp(2 (L + gamma) t) - 1) L / (gamma + L)`, solved for t."""
        rate = self._log_ratio + self.gamma
        return math.log1p((noise_level / self.sigma_min) ** 2 * rate / self._log_ratio) / (2 * rate)

    def g(self, t: Time) -> Time:
        """`smin k^t sqrt(2 L)` (UDiffSE eq. 4 prints smax in front: a misprint)."""
        return self.sigma_min * math.sqrt(2 * self._log_ratio) * _exp(self._log_ratio * t)


@dataclass(frozen=True)
class VE(SDE):
    """Exploding variance with the noise level itself as the time (Karras et al. 2022): s_t = s_0 + t z."""

    name: ClassVar[str] = "ve"
    times: ClassVar[Range] = Range(0, excluded=True)

    @property
    def gamma(self) -> float:
        """0: there is no drift."""
        return 0.0

    def delta(self, t: Time) -> Time:
        """1: nothing is attenuated."""
        return torch.ones_like(t) if isinstance(t, Tensor) else 1.0

    def sigma(self, t: Time) -> Time:
        """t."""
        return t

    def time(self, noise_level: float) -> float:
        """The level itself."""
        return noise_level

    def g(self, t: Time) -> Time:
        """`sqrt(2 t)`, as d sigma^2 / dt = g^2."""
        return _sqrt(2 * t)


SDES: dict[str, type[OUVE | VE]] = {sde.name: sde for sde in (OUVE, VE)}


def make_sde(config: dict[str, Any]) -> SDE:
    """The process of a configuration, {"name": "ouve" | "ve", **constants}; without a name it is an OUVE.

    Raises:
        UdseError: unknown name or constants.
    """
    constants = dict(config)
    name = constants.pop("name", OUVE.name)
    if name not in SDES:
        raise UdseError(f"sde: expected the name {' or '.join(SDES)}, got {name!r}")
    try:
        return SDES[name](**constants)
    except TypeError as error:
        raise UdseError(f"sde {name!r}: expected its constants, got {', '.join(constants)} ({error})") from error


def time_grid(steps: int, start: float = 1.0, end: float = 0.03) -> list[float]:
    """Times of the reverse pass, `linspace(start, end, N)`: the first is `start`."""
    return [float(t) for t in torch.linspace(start, end, steps, dtype=torch.float64)]


def noise_levels(steps: int, highest: float, lowest: float, rho: float = 7.0) -> list[float]:
    """N + 1 noise levels from the highest to the lowest and then 0, evenly spaced in their rho-th roots.

    `tau_i = (smax^(1/rho) + i/(N-1) (smin^(1/rho) - smax^(1/rho)))^rho`, tau_N = 0 (Karras et al. 2022, eq. 5).
    """
    roots = torch.linspace(highest ** (1 / rho), lowest ** (1 / rho), steps, dtype=torch.float64)
    return [*(roots**rho).tolist(), 0.0]

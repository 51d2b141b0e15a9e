"""The OUVE stochastic differential equation: `ds = -gamma s dt + g(t) dw` (Richter et al. 2023; UDiffSE, eq. 1-6).

Every function takes one time (float or 0-d), one per batch item, or one per frame: the result has the shape of `t`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from udse_fast.kernels.coefficients import Coefficients

Time = float | Tensor


def _exp(x: Time) -> Time:
    return x.exp() if isinstance(x, Tensor) else math.exp(x)


def _sqrt(x: Time) -> Time:
    return x.sqrt() if isinstance(x, Tensor) else math.sqrt(x)


@dataclass(frozen=True)
class OUVE:
    """Ornstein-Uhlenbeck SDE with exploding variance. Kernel: `s_t = delta(t) s_0 + sigma(t) z`, E|z|^2 = 1."""

    gamma: float = 1.5
    sigma_min: float = 0.05
    sigma_max: float = 0.5

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    @property
    def config(self) -> dict[str, float]:
        return asdict(self)

    def delta(self, t: Time) -> Time:
        """Attenuation of the clean signal, `exp(-gamma t)`."""
        return _exp(-self.gamma * t)

    def sigma(self, t: Time) -> Time:
        """Standard deviation of the perturbation, `sigma(t)^2 = smin^2 (k^2t - exp(-2 gamma t)) L / (gamma + L)`."""
        log_ratio = self._log_ratio
        spread = _exp(2 * log_ratio * t) - _exp(-2 * self.gamma * t)
        return self.sigma_min * _sqrt(spread * (log_ratio / (self.gamma + log_ratio)))

    def g(self, t: Time) -> Time:
        """Diffusion coefficient, `smin k^t sqrt(2 L)` (UDiffSE eq. 4 prints smax in front: a misprint)."""
        return self.sigma_min * math.sqrt(2 * self._log_ratio) * _exp(self._log_ratio * t)

    def noise_level(self, t: Time) -> Time:
        """`a(t) = sigma(t) / delta(t)`: the noise level on the unattenuated signal `s_t / delta(t)`."""
        return self.sigma(t) / self.delta(t)

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


def time_grid(steps: int, start: float = 1.0, end: float = 0.03) -> list[float]:
    """Times of the reverse pass, `linspace(start, end, N)`: the first is `start`."""
    return [float(t) for t in torch.linspace(start, end, steps, dtype=torch.float64)]

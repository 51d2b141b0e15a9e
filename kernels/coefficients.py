"""Numbers of the diffusion SDE at one reverse step, as the fused updates take them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Coefficients:
    """The SDE at the time(s) of one reverse step.

    Every number is a float (one time for all frames) or a real tensor (T,), one time per frame.
    """

    gamma: float | torch.Tensor
    """Stiffness of the drift."""
    delta: float | torch.Tensor
    """Mean of the perturbation kernel: exp(-gamma t)."""
    sigma: float | torch.Tensor
    """Standard deviation of the perturbation kernel."""
    g: float | torch.Tensor
    """Diffusion coefficient."""
    dt: float | torch.Tensor
    """Step size, positive."""
    corrector_snr: float | torch.Tensor = 0.5
    """r of the corrector: its step is (r sigma)^2."""

    def values(self) -> tuple[float | torch.Tensor, ...]:
        """The numbers in the order of the fields."""
        return self.gamma, self.delta, self.sigma, self.g, self.dt, self.corrector_snr

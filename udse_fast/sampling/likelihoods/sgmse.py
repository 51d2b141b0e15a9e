"""SGMSE+ (Richter et al. 2023): no likelihood; the network is told the recording, where the diffusion drifts to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from udse_fast.kernels.predictor_corrector import predictor
from udse_fast.kernels.step import Step
from udse_fast.networks.conditions import Conditions
from udse_fast.sampling.likelihoods.base import SpeechLikelihood, Transition
from udse_fast.sampling.randomness import Draw


@dataclass
class SGMSE(SpeechLikelihood):
    """Reverse diffusion of dx = gamma (y - x) dt + g dw: u = x - y is the process of all samplers, of mean zero.

    1. start: x = y + sigma z
    2. corrector, so many times: eps = 2 (r sigma)^2
    3. predictor: x <- x - gamma (y - x) dt + g^2 S(x, y, t) dt + g sqrt(dt) z_p, without z_p in the last step
    """

    corrector_steps: int = 1
    """Network calls of the corrector in each step."""

    corrector_scale: ClassVar[float] = 2**0.5
    steps_by_grid: ClassVar[bool] = True

    def conditions(self, source: str) -> Conditions:
        """The recording."""
        return Conditions(noisy=self.mixture if self.mixture.ndim == 3 else self.mixture[None])

    def next_state(self, transition: Transition, draw: Draw) -> Tensor:
        t = transition
        return self.mixture + predictor(Step(t.state - self.mixture, t.score, t.coefficients, t.noise))

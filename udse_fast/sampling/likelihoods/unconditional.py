"""No observation: a draw from the prior itself."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from udse_fast.kernels.coefficients import Coefficients
from udse_fast.kernels.predictor_corrector import predictor
from udse_fast.kernels.step import Step
from udse_fast.sampling.likelihoods.base import SpeechLikelihood, Transition
from udse_fast.sampling.randomness import Draw


@dataclass
class Unconditional(SpeechLikelihood):
    """The likelihood that does nothing (Song et al. 2021, Alg. 2).

    1. start: s = sigma z
    2. predictor: s <- s + gamma s dt + g^2 S dt + g sqrt(dt) z_p
    """

    def start(self, source: str, noise: Tensor, coefficients: Coefficients) -> Tensor:
        """s = sigma(t_0) z."""
        return coefficients.sigma * noise

    def next_state(self, transition: Transition, draw: Draw) -> Tensor:
        t = transition
        return predictor(Step(t.state, t.score, t.coefficients, t.noise))

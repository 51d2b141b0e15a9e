"""No observation: a draw from the prior itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from udse_fast.kernels.coefficients import Coefficients
from udse_fast.kernels.predictor_corrector import predictor
from udse_fast.kernels.step import Step
from udse_fast.sampling.diffusion import Transition
from udse_fast.sampling.randomness import Draw


@dataclass
class Unconditional:
    """The likelihood that does nothing."""

    sources: ClassVar[Sequence[str]] = ("speech",)
    rounds: ClassVar[int] = 1
    needs_posterior_variance: ClassVar[bool] = False

    def start(self, source: str, noise: Tensor, coefficients: Coefficients) -> Tensor:
        """s = sigma(t_0) z."""
        return coefficients.sigma * noise

    def before_step(self, states: dict[str, Tensor], first: bool) -> None:
        """Nothing is fitted."""

    def advance(self, transitions: dict[str, Transition], round_: int, draw: Draw, index: int) -> dict[str, Tensor]:
        step = transitions["speech"]
        return {"speech": predictor(Step(step.state, step.score, step.coefficients, step.noise))}

    def noise_estimate(self, states: dict[str, Tensor]) -> Tensor | None:
        return None

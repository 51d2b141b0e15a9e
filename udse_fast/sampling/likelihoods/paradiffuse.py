"""ParaDiffUSE-IN and -EN: the noise has a score network, nothing is fitted (Ayilo et al. 2025, Alg. 2 and 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from udse_fast.kernels.coefficients import Coefficients
from udse_fast.kernels.posterior_step import joint_guidance, predictor_residual, score_noise_guidance
from udse_fast.kernels.step import Step
from udse_fast.sampling.diffusion import Score, Transition
from udse_fast.sampling.randomness import Draw
from udse_fast.sampling.sde import Time


@dataclass
class ParaDiffUSEIN:
    """Implicit noise: guidance by the noise score at x - s/delta."""

    mixture: Tensor
    score: Score
    times: Sequence[Time]
    guidance: float = 1.0
    perturb_residual: bool = False
    """Add sigma/delta z inside the noise score (the paper, Alg. 2 line 6), or not (the published code)."""

    sources: ClassVar[Sequence[str]] = ("speech",)
    rounds: ClassVar[int] = 1
    needs_posterior_variance: ClassVar[bool] = False

    def start(self, source: str, noise: Tensor, coefficients: Coefficients) -> Tensor:
        """s = delta x + sigma z."""
        return coefficients.delta * self.mixture + coefficients.sigma * noise

    def before_step(self, states: dict[str, Tensor], first: bool) -> None:
        """Nothing is fitted."""

    def advance(self, transitions: dict[str, Transition], round_: int, draw: Draw, index: int) -> dict[str, Tensor]:
        step = transitions["speech"]
        perturbation = draw("forward_mixture", index) if self.perturb_residual else None
        state, residual = predictor_residual(
            Step(step.state, step.score, step.coefficients, step.noise, self.mixture, other_noise=perturbation)
        )
        noise_score = self.score(residual, self.times[step.step], "noise")
        return {"speech": score_noise_guidance(Step(state, noise_score, step.coefficients), guidance=self.guidance)}

    def noise_estimate(self, states: dict[str, Tensor]) -> Tensor | None:
        """n = x - s."""
        return self.mixture - states["speech"]


@dataclass
class ParaDiffUSEEN:
    """Explicit noise: speech and noise states run side by side, each pulled to the mixture less the other."""

    mixture: Tensor
    guidance: float = 5.75
    """lambda_i = guidance * sigma(t_i)."""
    observation_variance: float = 1e-3

    sources: ClassVar[Sequence[str]] = ("speech", "noise")
    rounds: ClassVar[int] = 1
    needs_posterior_variance: ClassVar[bool] = False

    def start(self, source: str, noise: Tensor, coefficients: Coefficients) -> Tensor:
        """s = delta x + sigma z_s, n = delta (s - x) + sigma z_n with that s (speech is started first)."""
        if source == "speech":
            self._speech = coefficients.delta * self.mixture + coefficients.sigma * noise
            return self._speech
        return coefficients.delta * (self._speech - self.mixture) + coefficients.sigma * noise

    def before_step(self, states: dict[str, Tensor], first: bool) -> None:
        """Nothing is fitted."""

    def advance(self, transitions: dict[str, Transition], round_: int, draw: Draw, index: int) -> dict[str, Tensor]:
        speech, noise = transitions["speech"], transitions["noise"]
        s, n = joint_guidance(
            Step(
                speech.state,
                speech.score,
                speech.coefficients,
                speech.noise,
                self.mixture,
                other_state=noise.state,
                other_score=noise.score,
                other_noise=noise.noise,
            ),
            guidance=self.guidance * speech.coefficients.sigma,
            apply=not speech.last,
            observation_variance=self.observation_variance,
        )
        return {"speech": s, "noise": n}

    def noise_estimate(self, states: dict[str, Tensor]) -> Tensor | None:
        return states["noise"]

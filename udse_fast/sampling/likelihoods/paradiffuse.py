"""ParaDiffUSE-IN and -EN: the noise has a score network, nothing is fitted (Ayilo et al. 2025, Alg. 2 and 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from udse_fast.kernels.coefficients import Coefficients
from udse_fast.kernels.posterior_step import joint_guidance, predictor_residual, score_noise_guidance
from udse_fast.kernels.step import Step
from udse_fast.sampling.likelihoods.base import Likelihood, States, Transition
from udse_fast.sampling.randomness import Draw
from udse_fast.sampling.requests import Pass


@dataclass
class ParaDiffUSEIN(Likelihood):
    """Implicit noise: what is left of the mixture is judged by the noise prior.

    1. start: s = delta x + sigma z
    2. predictor: s <- s + gamma s dt + g^2 S dt + g sqrt(dt) z_p
    3. residual: r = x - s/delta (the paper: x - (s - sigma z) / delta)
    4. noise score: S_n = S(r, t), one more network call
    5. guidance: s <- s - lambda g^2 dt (1/delta) S_n
    """

    guidance: float = 1.0
    perturb_residual: bool = False
    """Add sigma/delta z inside the noise score (the paper, Alg. 2 line 6), or not (the published code)."""

    def start(self, source: str, noise: Tensor, coefficients: Coefficients) -> Tensor:
        """s = delta x + sigma z."""
        return coefficients.delta * self.mixture + coefficients.sigma * noise

    def advance(self, transitions: Mapping[str, Transition], draw: Draw) -> Pass[States]:
        step = transitions["speech"]
        perturbation = draw("forward_mixture", step.draw_index) if self.perturb_residual else None
        state, residual = predictor_residual(
            Step(step.state, step.score, step.coefficients, step.noise, self.mixture, other_noise=perturbation)
        )
        (noise,) = yield [self.problem.request(residual, step.time, "noise", step.coefficients)]
        return {"speech": score_noise_guidance(Step(state, noise.score, step.coefficients), guidance=self.guidance)}

    def noise_estimate(self, states: States) -> Tensor | None:
        """n = x - s."""
        return self.mixture - states["speech"]


@dataclass
class ParaDiffUSEEN(Likelihood):
    """Explicit noise: speech and noise states run side by side, each pulled to the mixture less the other.

    1. start: s = delta x + sigma z_s, n = delta (s - x) + sigma z_n
    2. predictor of both: s <- s + gamma s dt + g^2 S dt + g sqrt(dt) z_p, and n likewise
    3. s0, n0 = (s + sigma^2 S_s) / delta, (n + sigma^2 S_n) / delta
    4. guidance of both, but on the last step: s <- s + lambda_i g^2 dt (1/delta) (x - s/delta - n0) / (a^2 + w),
       n <- n + lambda_i g^2 dt (1/delta) (x - n/delta - s0) / (a^2 + w)
    """

    guidance: float = 5.75
    """lambda_i = guidance * sigma(t_i)."""
    observation_variance: float = 1e-3

    sources: ClassVar[Sequence[str]] = ("speech", "noise")

    def start(self, source: str, noise: Tensor, coefficients: Coefficients) -> Tensor:
        """s = delta x + sigma z_s, n = delta (s - x) + sigma z_n with that s (speech is started first)."""
        if source == "speech":
            self._speech = coefficients.delta * self.mixture + coefficients.sigma * noise
            return self._speech
        return coefficients.delta * (self._speech - self.mixture) + coefficients.sigma * noise

    def advance(self, transitions: Mapping[str, Transition], draw: Draw) -> Pass[States]:
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
        yield  # a generator without requests

    def noise_estimate(self, states: States) -> Tensor | None:
        return states["noise"]

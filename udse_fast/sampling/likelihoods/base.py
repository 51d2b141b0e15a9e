"""The parts that most samplers share: one speech state that starts around the mixture, no M-step at the top."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from udse_fast.kernels.coefficients import Coefficients
from udse_fast.kernels.step import Step
from udse_fast.sampling.diffusion import Transition
from udse_fast.sampling.noise_models import NoiseModel


@dataclass
class SpeechLikelihood:
    """x: mixture (F, T) complex; the noise model is fitted in place."""

    mixture: Tensor
    noise_model: NoiseModel

    sources: ClassVar[Sequence[str]] = ("speech",)
    rounds: ClassVar[int] = 1
    needs_posterior_variance: ClassVar[bool] = False

    def start(self, source: str, noise: Tensor, coefficients: Coefficients) -> Tensor:
        """s = x + sigma(t_0) z."""
        return self.mixture + coefficients.sigma * noise

    def before_step(self, states: dict[str, Tensor], first: bool) -> None:
        """Nothing at the top of a step."""

    def observed(self, transition: Transition) -> Step:
        """The prior's step and what is known of the mixture, for the updates."""
        t = transition
        step = Step(t.state, t.score, t.coefficients, t.noise, self.mixture, self.noise_model.variance)
        not_always: dict[str, Any] = {"posterior_variance": t.posterior_variance, "following": t.following}
        return step._replace(**not_always)

    def noise_estimate(self, states: dict[str, Tensor]) -> Tensor | None:
        """None: the sampler has no noise estimate of its own."""
        return None

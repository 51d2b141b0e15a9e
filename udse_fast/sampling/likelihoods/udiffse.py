"""UDiffSE (Nortier et al. 2024, Alg. 1) and UDiffSE+ (Ayilo et al. 2025): guidance by the marginal likelihood."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from udse_fast.kernels.posterior_step import marginal_guidance
from udse_fast.sampling.likelihoods.base import SpeechLikelihood, States, Transition
from udse_fast.sampling.randomness import Draw


@dataclass
class UDiffSE(SpeechLikelihood):
    """EM: each E-step is a whole reverse pass, then comes one NMF update.

    1. start of a round: s = x + sigma z
    2. predictor: s <- s + gamma s dt + g^2 S dt + g sqrt(dt) z_p
    3. guidance on every 2nd step, from round 1 on: s <- s + lambda g^2 dt (1/delta) (x - s/delta) / (a^2 + V)
    4. M-step after the last step of a round: V by NMF-IS on P = mean |x - s|^2
    """

    guidance: float = 1.5

    @property
    def rounds(self) -> int:
        return self.problem.em_rounds

    def next_state(self, transition: Transition, draw: Draw) -> Tensor:
        state, power = marginal_guidance(
            self.observed(transition),
            guidance=self.guidance,
            apply=transition.round_ > 0 and transition.step % 2 == 0,
            power_of_state=True,
        )
        if transition.last:
            self.noise_model.fit(power)
        return state


@dataclass
class UDiffSEPlus(SpeechLikelihood):
    """One reverse pass with an NMF update at the top of each step.

    1. start: s = x + sigma z
    2. M-step: V by NMF-IS on P, at the start mean |x - s|^2
    3. predictor: s <- s + gamma s dt + g^2 S dt + g sqrt(dt) z_p
    4. guidance: s <- s + lambda g^2 dt (1/delta) (x - s/delta) / (a^2 + V)
    5. P = mean |x - s0|^2, s0 = s + sigma^2 S

    With `every` = n, 2, 4 and 5 are left out in all but every n-th step.
    """

    guidance: float = 1.5
    divide_tweedie: bool = False
    """s0 divided by delta (the paper, eq. 9) or not (the published code)."""
    every: int = 1
    """Steps from one M-step and guidance to the next: 1 in the paper, 2 in the public code."""
    _power: Tensor = field(init=False, repr=False)

    def before_step(self, states: States, step: int) -> None:
        if step == 0:
            self._power = (self.mixture - states["speech"]).abs().square().mean(0)
        if step % self.every == 0:
            self.noise_model.fit(self._power)

    def next_state(self, transition: Transition, draw: Draw) -> Tensor:
        guided = transition.step % self.every == 0
        state, power = marginal_guidance(
            self.observed(transition), guidance=self.guidance, apply=guided, divide_tweedie=self.divide_tweedie
        )
        if guided:
            self._power = power
        return state

"""UDiffSE (Nortier et al. 2024, Alg. 1) and UDiffSE+ (Ayilo et al. 2025): guidance by the marginal likelihood."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from udse_fast.kernels.posterior_step import marginal_guidance
from udse_fast.sampling.diffusion import Transition
from udse_fast.sampling.likelihoods.base import SpeechLikelihood
from udse_fast.sampling.randomness import Draw


@dataclass
class UDiffSE(SpeechLikelihood):
    """EM: each E-step is a whole reverse pass, guided on every 2nd step from round 1 on; then one NMF update."""

    guidance: float = 1.5
    em_rounds: int = 5

    @property
    def rounds(self) -> int:  # type: ignore[override]
        return self.em_rounds

    def advance(self, transitions: dict[str, Transition], round_: int, draw: Draw, index: int) -> dict[str, Tensor]:
        step = transitions["speech"]
        state, power = marginal_guidance(
            self.observed(step),
            guidance=self.guidance,
            apply=round_ > 0 and step.step % 2 == 0,
            power_of_state=True,
        )
        if step.last:
            self.noise_model.fit(power)
        return {"speech": state}


@dataclass
class UDiffSEPlus(SpeechLikelihood):
    """One reverse pass with an NMF update at the top of each step."""

    guidance: float = 1.5
    divide_tweedie: bool = False
    """s0 divided by delta (the paper, eq. 9) or not (the published code)."""
    _power: Tensor = field(init=False, repr=False)

    def before_step(self, states: dict[str, Tensor], first: bool) -> None:
        if first:
            self._power = (self.mixture - states["speech"]).abs().square().mean(0)
        self.noise_model.fit(self._power)

    def advance(self, transitions: dict[str, Transition], round_: int, draw: Draw, index: int) -> dict[str, Tensor]:
        step = transitions["speech"]
        state, self._power = marginal_guidance(
            self.observed(step), guidance=self.guidance, divide_tweedie=self.divide_tweedie
        )
        return {"speech": state}

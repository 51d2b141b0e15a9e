"""What a likelihood is, what it is given in a step, and the parts that most of them share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, cast

from torch import Tensor

from udse_fast.kernels.coefficients import Coefficients
from udse_fast.kernels.complex_normal import NoiseKey
from udse_fast.kernels.step import Step
from udse_fast.networks.conditions import NOTHING, Conditions
from udse_fast.networks.estimate import Estimate
from udse_fast.sampling.noise_models import NoiseModel, start_nmf
from udse_fast.sampling.problem import Problem
from udse_fast.sampling.randomness import Draw
from udse_fast.sampling.requests import Pass
from udse_fast.sampling.sde import SDE, Time


class Transition(NamedTuple):
    """The prior's step of one source: N(s + gamma s dt + g^2 S_p dt, g^2 dt). The likelihood turns it into a state."""

    state: Tensor
    """(B, F, T) complex, after the corrector."""
    score: Tensor
    """S_p = S(state, t), (B, F, T) complex."""
    time: Time
    coefficients: Coefficients
    following: Coefficients | None
    """Of the next step, None on the last."""
    noise: Tensor | NoiseKey | None
    """z_p, None on the last step."""
    step: int
    round_: int
    """Of EM, from 0."""
    draw_index: int
    """Of the draws of this step: steps are counted on over the rounds."""
    posterior_variance: Tensor | None = None
    """E|s_0 - s0_hat|^2 (B, F, T) real, for the samplers that ask for it."""
    estimate: Estimate | None = None
    """What a posterior network says about the recording, for the samplers that ask for it."""

    @property
    def last(self) -> bool:
        """Whether this is the last step of the round."""
        return self.following is None


States = dict[str, Tensor]
"""Source -> state (B, F, T) complex."""


@dataclass
class Likelihood(ABC):
    """What a posterior sampler adds to the loop. Its fields, beside the problem, are the sampler's options."""

    problem: Problem

    sources: ClassVar[Sequence[str]] = ("speech",)
    """The sources with a state of their own, in order."""
    needs_posterior_variance: ClassVar[bool] = False
    """Whether transitions say how uncertain the estimate of the clean signal is."""
    needs_estimate: ClassVar[bool] = False
    """Whether the prior is a posterior network, whose estimates transitions have; then there is no corrector."""
    needs_posterior_network: ClassVar[bool] = False
    """Whether it asks a posterior network beside the prior."""
    corrector_steps: int = field(default=1, init=False)
    """Times that the corrector is called in each step."""
    corrector_scale: ClassVar[float] = 1.0
    """Of the corrector's r."""
    steps_by_grid: ClassVar[bool] = False
    """Whether the step sizes are, where none are given, the differences of the times, down to 0; else all are 1/N."""
    carries_noise: ClassVar[bool] = True
    """Whether the noise model of a block of a signal starts from that of the block before."""

    @classmethod
    def start_noise(cls, mixture: Tensor, rank: int, seed: int, share: float) -> tuple[Tensor, Tensor]:
        """W (F, R) and H (R, T) of the noise before anything is known, at a share of the mixture's power."""
        return start_nmf(mixture, rank, seed, share)

    @property
    def rounds(self) -> int:
        """Reverse passes (EM rounds of UDiffSE, else 1)."""
        return 1

    @property
    def mixture(self) -> Tensor:
        """x, (F, T) complex."""
        return self.problem.mixture

    @property
    def noise_model(self) -> NoiseModel:
        """The one that is fitted, of samplers that fit one."""
        assert self.problem.noise_model is not None
        return self.problem.noise_model

    def prepare(self, sde: SDE) -> Pass[None]:
        """What comes before the reverse pass; may yield `problem.request`s."""
        return
        yield  # a generator without requests

    @abstractmethod
    def start(self, source: str, noise: Tensor, coefficients: Coefficients) -> Tensor:
        """State at the first time from `noise` z, (B, F, T) complex."""

    def before_step(self, states: States, step: int) -> None:  # noqa: B027 (most samplers do nothing here)
        """M-step of the samplers that fit the noise at the top of a step, counted from 0 in each round."""

    def conditions(self, source: str) -> Conditions:
        """What the network is told in the calls of this step, beside what it is told in all calls."""
        return NOTHING

    @abstractmethod
    def advance(self, transitions: Mapping[str, Transition], draw: Draw) -> Pass[States]:
        """From the transitions to the next states, and the M-step of the others. May yield `problem.request`s."""

    def noise_estimate(self, states: States) -> Tensor | None:
        """(B, F, T) complex, after the last step; None: the sampler has no noise estimate of its own."""
        return None

    def heard(self) -> Tensor | None:
        """(F, T) complex, an estimate that is averaged with what is read out of the samples; None: there is none.

        Its share is the option `listening` of the sampler.
        """
        return None


@dataclass
class SpeechLikelihood(Likelihood):
    """One speech state that starts around the mixture, and a step that asks for nothing more: `next_state`."""

    def start(self, source: str, noise: Tensor, coefficients: Coefficients) -> Tensor:
        """s = x + sigma(t_0) z."""
        return self.mixture + coefficients.sigma * noise

    def advance(self, transitions: Mapping[str, Transition], draw: Draw) -> Pass[States]:
        """One state after the other."""
        return {source: self.next_state(transition, draw) for source, transition in transitions.items()}
        yield  # a generator without requests

    def observed(self, transition: Transition) -> Step:
        """The prior's step and what is known of the mixture, for the updates."""
        t, V = transition, self.noise_model.variance
        C, following = cast(Tensor, t.posterior_variance), cast(Coefficients, t.following)  # read where they are there
        return Step(t.state, t.score, t.coefficients, t.noise, self.problem.mixture, V, C, following)

    @abstractmethod
    def next_state(self, transition: Transition, draw: Draw) -> Tensor:
        """From the transition to the next state, (B, F, T) complex, and the M-step."""

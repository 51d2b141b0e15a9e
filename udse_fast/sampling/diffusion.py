"""The reverse pass: one loop for every sampler. What a sampler adds is in `udse_fast.sampling.likelihoods`."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from torch import Tensor

from udse_fast.checks import complex_tensor
from udse_fast.kernels.coefficients import Coefficients
from udse_fast.kernels.complex_normal import NoiseKey, complex_normal
from udse_fast.kernels.predictor_corrector import corrector
from udse_fast.kernels.step import Step
from udse_fast.sampling.randomness import Draw
from udse_fast.sampling.sde import OUVE, Time

Score = Callable[[Tensor, Time, str], Tensor]
"""score(state (B, F, T) complex, time: float or (T,), source: "speech" | "noise") -> (B, F, T) complex."""


def asked_score(score: Score, state: Tensor, time: Time, source: str) -> Tensor:
    """S(s, t) in the precision of the state, and one line where a user's function gives something else.

    Raises:
        UdseError: not a complex tensor of the shape of the state.
    """
    return complex_tensor("score", score(state, time, source), state.shape).to(state)


@dataclass(frozen=True)
class ScoreRequest:
    """What a reverse pass asks the prior for, and waits; `sampling.passes` answers, one pass at a time or many."""

    score: Score
    state: Tensor
    time: Time
    source: str
    coefficients: Coefficients
    wants_posterior_variance: bool = False


ScoreAnswer = tuple[Tensor, Tensor | None]
"""S(s, t) (B, F, T) complex, and C = E|s_0 - s0_hat|^2 (B, F, T) real where it was asked for."""

Result = TypeVar("Result")
Pass = Generator[list[Any], list[Any], Result]
"""A reverse pass under way: yields the network calls that are due (or asks to be run as a whole, by a
`udse_fast.backends.cuda_graphs.WholePass`), is sent their answers, returns its result."""


@dataclass(frozen=True)
class Transition:
    """The prior's step of one source: N(s + gamma s dt + g^2 S_p dt, g^2 dt). The likelihood turns it into a state."""

    state: Tensor
    """(B, F, T) complex, after the corrector."""
    score: Tensor
    """S_p = S(state, t), (B, F, T) complex."""
    coefficients: Coefficients
    following: Coefficients | None
    """Of the next step, None on the last."""
    noise: Tensor | NoiseKey | None
    """z_p, None on the last step."""
    step: int
    last: bool
    posterior_variance: Tensor | None = None
    """E|s_0 - s0_hat|^2 (B, F, T) real, for the samplers that ask for it."""


class Likelihood(Protocol):
    """What a posterior sampler adds to the loop."""

    @property
    def sources(self) -> Sequence[str]:
        """The sources with a state of their own: ("speech",) or ("speech", "noise")."""

    @property
    def rounds(self) -> int:
        """Reverse passes (EM rounds of UDiffSE, else 1)."""

    @property
    def needs_posterior_variance(self) -> bool:
        """Whether transitions say how uncertain the estimate of the clean signal is."""

    def start(self, source: str, noise: Tensor, coefficients: Coefficients) -> Tensor:
        """State at the first time from `noise` z, (B, F, T) complex."""

    def before_step(self, states: dict[str, Tensor], first: bool) -> None:
        """M-step of the samplers that fit the noise at the top of a step."""

    def advance(self, transitions: dict[str, Transition], round_: int, draw: Draw, index: int) -> dict[str, Tensor]:
        """From the transitions to the next states, and the M-step of the others."""

    def noise_estimate(self, states: dict[str, Tensor]) -> Tensor | None:
        """(B, F, T) complex, after the last step."""


def _as_draw(value: Tensor | NoiseKey, shape: tuple[int, int, int], like: Tensor) -> Tensor:
    if isinstance(value, NoiseKey):
        return complex_normal(value, shape, dtype=like.dtype, device=like.device)
    return value.to(like)


def reverse_diffusion(
    score: Score,
    likelihood: Likelihood,
    *,
    like: Tensor,
    samples: int,
    times: Sequence[Time],
    dt: float,
    draw: Draw,
    sde: OUVE,
    corrector_snr: float = 0.5,
    corrected_sources: Sequence[str] = ("speech", "noise"),
) -> Pass[dict[str, Tensor]]:
    """Predictor-corrector reverse pass(es) from `times[0]` to `times[-1]` (Song et al. 2021, Alg. 2 and 3).

    Args:
        score: the prior.
        likelihood: the sampler.
        like: (F, T) complex; gives shape, dtype and device of the states.
        samples: B.
        times: decreasing, each a float or one per frame (T,).
        dt: step size.
        draw: noise source.
        sde: forward process.
        corrector_snr: r of the corrector's step (r sigma)^2; 0 leaves the corrector (and its network call) out.
        corrected_sources: sources that the corrector is run for.

    Yields:
        The network calls that are due; send the answers.

    Returns:
        Final state of each source, (B, F, T) complex.
    """
    shape = (samples, like.shape[0], like.shape[1])
    coefficients = [sde.coefficients(t, dt, corrector_snr) for t in times]
    states: dict[str, Tensor] = {}
    for round_ in range(likelihood.rounds):
        states = {
            source: likelihood.start(source, _as_draw(draw(f"init_{source}", round_), shape, like), coefficients[0])
            for source in likelihood.sources
        }
        for step, (t, c) in enumerate(zip(times, coefficients, strict=True)):
            index, last = round_ * len(times) + step, step == len(times) - 1
            likelihood.before_step(states, step == 0)
            if corrected := [s for s in states if corrector_snr > 0 and s in corrected_sources]:
                answers = yield [ScoreRequest(score, states[s], t, s, c) for s in corrected]
                for source, (value, _) in zip(corrected, answers, strict=True):
                    states[source] = corrector(Step(states[source], value, c, draw(f"corrector_{source}", index)))
            told = likelihood.needs_posterior_variance
            answers = yield [ScoreRequest(score, state, t, source, c, told) for source, state in states.items()]
            following = None if last else coefficients[step + 1]
            transitions = {}
            for (source, state), (value, posterior_variance) in zip(states.items(), answers, strict=True):
                noise = None if last else draw(f"predictor_{source}", index)
                transitions[source] = Transition(state, value, c, following, noise, step, last, posterior_variance)
            states = likelihood.advance(transitions, round_, draw, index)
    return states

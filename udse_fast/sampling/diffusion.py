"""The reverse pass: one loop for every sampler. What a sampler adds is in `udse_fast.sampling.likelihoods`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from udse_fast.kernels.complex_normal import NoiseKey, complex_normal
from udse_fast.kernels.predictor_corrector import corrector
from udse_fast.kernels.predictor_corrector.reference import tweedie_mean
from udse_fast.kernels.step import Step
from udse_fast.sampling.likelihoods.base import Likelihood, States, Transition
from udse_fast.sampling.randomness import Draw
from udse_fast.sampling.requests import Pass
from udse_fast.sampling.sde import SDE, Time


@dataclass(frozen=True)
class StepInfo:
    """What a callback sees of a step: after its network calls, before its states move on."""

    step: int
    steps: int
    round_: int
    """Of EM, from 0."""
    transitions: Mapping[str, Transition]
    """By source: state s_t, score, coefficients at t."""

    @property
    def denoised(self) -> States:
        """Tweedie means (s_t + sigma^2 S) / delta, (B, F, T) complex, by source."""
        return {name: tweedie_mean(t.state, t.score, t.coefficients) for name, t in self.transitions.items()}


Callback = Callable[[StepInfo], None]


def reverse_diffusion(
    likelihood: Likelihood,
    *,
    samples: int,
    times: Sequence[Time],
    dt: float | Sequence[float],
    draw: Draw,
    sde: SDE,
    corrector_snr: float = 0.5,
    callback: Callback | None = None,
) -> Pass[States]:
    """Predictor-corrector reverse pass(es) from `times[0]` to `times[-1]` (Song et al. 2021, Alg. 2 and 3).

    Args:
        likelihood: the sampler, with its problem: the mixture (F, T) gives shape, dtype and device of the states.
        samples: B.
        times: decreasing, each a float or one per frame (T,).
        dt: step size, of all steps or one for each.
        draw: noise source.
        sde: forward process.
        corrector_snr: r of the corrector's step (r sigma)^2; 0 leaves the corrector (and its network call) out.
        callback: called in every step.

    Yields:
        The network calls that are due; send the answers.

    Returns:
        Final state of each source, (B, F, T) complex.
    """
    problem, wants_variance = likelihood.problem, likelihood.needs_posterior_variance
    F, T = problem.mixture.shape
    shape = (samples, F, T)
    sizes = [dt] * len(times) if isinstance(dt, float) else dt
    coefficients = [sde.coefficients(t, size, corrector_snr) for t, size in zip(times, sizes, strict=True)]
    states: States = {}
    for round_ in range(likelihood.rounds):
        states = {}
        for source in likelihood.sources:
            noise = _as_draw(draw(f"init_{source}", round_), shape, problem.mixture)
            states[source] = likelihood.start(source, noise, coefficients[0])
        for step, (t, c) in enumerate(zip(times, coefficients, strict=True)):
            index, last = round_ * len(times) + step, step == len(times) - 1
            likelihood.before_step(states, step == 0)

            # corrector: s <- s + eps S(s, t) + sqrt(2 eps) z, eps = (r sigma)^2
            if corrector_snr > 0:
                asked = likelihood.conditions
                answers = yield [problem.request(s, t, source, c, asked(source)) for source, s in states.items()]
                for source, answer in zip(likelihood.sources, answers, strict=True):
                    states[source] = corrector(
                        Step(states[source], answer.score, c, draw(f"corrector_{source}", index))
                    )

            # predictor: N(s + gamma s dt + g^2 S(s, t) dt, g^2 dt)
            answers = yield [
                problem.request(s, t, source, c, likelihood.conditions(source), posterior_variance=wants_variance)
                for source, s in states.items()
            ]
            following = None if last else coefficients[step + 1]
            transitions = {}
            for (source, s), answer in zip(states.items(), answers, strict=True):
                z = None if last else draw(f"predictor_{source}", index)
                transitions[source] = Transition(
                    s, answer.score, t, c, following, z, step, round_, index, answer.posterior_variance
                )
            if callback is not None:
                callback(StepInfo(step, len(times), round_, transitions))

            # likelihood: from that Gaussian to the next state
            states = yield from likelihood.advance(transitions, draw)
    return states


def _as_draw(value: Tensor | NoiseKey, shape: tuple[int, int, int], like: Tensor) -> Tensor:
    if isinstance(value, NoiseKey):
        return complex_normal(value, shape, dtype=like.dtype, device=like.device)
    return value.to(like)

"""The reverse pass: one loop for every sampler. What a sampler adds is in `udse_fast.sampling.likelihoods`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from udse_fast.kernels.coefficients import Coefficients
from udse_fast.kernels.predictor_corrector import corrector
from udse_fast.kernels.predictor_corrector.reference import tweedie_mean
from udse_fast.kernels.step import Step
from udse_fast.sampling.likelihoods.base import Likelihood, States, Transition
from udse_fast.sampling.randomness import Draw, drawn, of_first_sample
from udse_fast.sampling.requests import Pass, Request
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
    reuse_estimate: bool = False,
    shared_steps: int = 0,
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
        reuse_estimate: the predictor takes the denoised estimate of the corrector's network call, in place of a call of
            its own; without a corrector it changes nothing.
        shared_steps: steps at the beginning that the samples have in common, fewer than there are times. The noise of
            the step to the next one is the first that each of them has for itself.
        callback: called in every step.

    Yields:
        The network calls that are due; send the answers.

    Returns:
        Final state of each source, (B, F, T) complex.
    """
    mixture, wants_variance = likelihood.mixture, likelihood.needs_posterior_variance
    F, T = mixture.shape[-2:]
    shape = (1 if shared_steps else samples, F, T)
    sizes = [dt] * len(times) if isinstance(dt, float) else dt
    coefficients = [
        sde.coefficients(t, size, corrector_snr * likelihood.corrector_scale)
        for t, size in zip(times, sizes, strict=True)
    ]
    states: States = {}
    yield from likelihood.prepare(sde)
    for round_ in range(likelihood.rounds):
        states = {}
        own = of_first_sample(draw) if shared_steps else draw
        for source in likelihood.sources:
            noise = drawn(own(f"init_{source}", round_), shape, mixture)
            states[source] = likelihood.start(source, noise, coefficients[0])
        for step, (t, c) in enumerate(zip(times, coefficients, strict=True)):
            index, last = round_ * len(times) + step, step == len(times) - 1
            likelihood.before_step(states, step)

            # corrector: s <- s + eps S(s, t) + sqrt(2 eps) z, eps = (r sigma)^2
            corrects = corrector_snr > 0 and not likelihood.needs_estimate
            repeats = likelihood.corrector_steps if corrects else 0
            for repeat in range(index * repeats, (index + 1) * repeats):
                answers = yield _requests(likelihood, states, t, c, reuse_estimate and wants_variance)
                corrected = {
                    source: corrector(Step(s, answer.score, c, own(f"corrector_{source}", repeat)))
                    for (source, s), answer in zip(states.items(), answers, strict=True)
                }
                if reuse_estimate:
                    pairs = zip(states.values(), corrected.values(), strict=True)
                    answers = [
                        answer.moved(before, after, c) for answer, (before, after) in zip(answers, pairs, strict=True)
                    ]
                states = corrected

            # predictor: N(s + gamma s dt + g^2 S(s, t) dt, g^2 dt)
            if not (corrects and reuse_estimate):
                answers = yield _requests(likelihood, states, t, c, wants_variance)
            if step == shared_steps - 1:  # from here on the samples go apart
                own = draw
                states = {source: s.repeat(samples, 1, 1) for source, s in states.items()}
                answers = [answer.repeated(samples) for answer in answers]
            following = None if last else coefficients[step + 1]
            transitions = {}
            for (source, s), answer in zip(states.items(), answers, strict=True):
                z = None if last else own(f"predictor_{source}", index)
                transitions[source] = Transition(
                    s, answer.score, t, c, following, z, step, round_, index, answer.posterior_variance, answer.estimate
                )
            if callback is not None:
                callback(StepInfo(step, len(times), round_, transitions))

            # likelihood: from that Gaussian to the next state
            states = yield from likelihood.advance(transitions, own)
    return states


def _requests(
    likelihood: Likelihood, states: States, t: Time, c: Coefficients, posterior_variance: bool
) -> list[Request]:
    """One network call for each source at one time."""
    return [
        likelihood.problem.request(
            state,
            t,
            source,
            c,
            likelihood.conditions(source),
            posterior_variance=posterior_variance,
            estimate=likelihood.needs_estimate,
        )
        for source, state in states.items()
    ]

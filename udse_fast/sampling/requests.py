"""What a reverse pass asks of a prior, what it is answered, and who answers: `Request`, `Answer`, `Prior`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Hashable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from udse_fast.backends.cuda_graphs import WholePass
from udse_fast.checks import complex_tensor, described
from udse_fast.errors import UdseError
from udse_fast.kernels.coefficients import Coefficients
from udse_fast.networks.conditions import Conditions
from udse_fast.networks.estimate import HIGHEST_LEVEL, Estimate
from udse_fast.sampling.sde import Time

Score = Callable[[Tensor, Time, str], Tensor]
"""score(state (B, F, T) complex, time: float or (T,), name of the source) -> (B, F, T) complex."""

EStep = Callable[..., Any]
"""e_step(mixture (1, F, T) complex, noise_variance (1, F, T)) -> `Estimate`, what a posterior network says; with more
than one step also of a state u (B, F, T) and its noise level a, or one per frame (T,), infinite where the state says
nothing."""

VectorJacobian = Callable[[Tensor], Tensor]
"""From dL/dRe S + j dL/dIm S, (B, F, T) complex, to the same of the state, for any real L of the score S."""


class Calls:
    """The calls of one reverse pass: each has a number, and is counted when it is answered."""

    def __init__(self) -> None:
        self.made = self.answered = 0


class Request(NamedTuple):
    """One network call that a reverse pass waits for; `sampling.passes` has it answered."""

    prior: Prior
    state: Tensor
    """s_t, (B, F, T) complex."""
    time: Time
    source: str
    coefficients: Coefficients
    conditions: Conditions
    calls: Calls
    """Of the pass that asks."""
    call: int
    """Number of the call in its pass, from 0."""
    wants_posterior_variance: bool = False
    wants_vjp: bool = False
    wants_estimate: bool = False
    """Of a posterior network: all that it says about the recording, which is among the conditions."""

    @property
    def batch_key(self) -> Hashable:
        """Equal for those that can be answered by one call of the network; None for one that is answered alone."""
        key = None if self.wants_vjp else self.prior.batch_key(self.source)
        if key is None:
            return None
        return key, self.wants_posterior_variance, self.wants_estimate, self.state.shape[1:], self.conditions.form


class Answer(NamedTuple):
    """What a prior says about one request."""

    score: Tensor
    """S(s, t), (B, F, T) complex."""
    posterior_variance: Tensor | None = None
    """C = E|s_0 - s0_hat|^2, (B, F, T) real, where it was asked for."""
    vjp: VectorJacobian | None = None
    """Of the score by the state, where it was asked for."""
    estimate: Estimate | None = None
    """Of a posterior network, where it was asked for."""

    @classmethod
    def of(cls, estimate: Estimate, request: Request) -> Answer:
        """With the score that belongs to what a posterior network says, (delta E[s | ...] - s_t) / sigma^2."""
        c = request.coefficients
        score = (c.delta * estimate.speech - request.state) * (1 / c.sigma**2)
        return cls(score, estimate.variance, estimate=estimate)

    def repeated(self, samples: int) -> Answer:
        """The same for each of so many samples, of an answer about one; without the product with a Jacobian."""
        variance = None if self.posterior_variance is None else self.posterior_variance.repeat(samples, 1, 1)
        estimate = None if self.estimate is None else self.estimate.repeated(samples)
        return Answer(self.score.repeat(samples, 1, 1), variance, estimate=estimate)

    def moved(self, before: Tensor, after: Tensor, coefficients: Coefficients) -> Answer:
        """The score at another state of the same time, if the denoised estimate stays what it is.

        S' = (delta s0_hat - s') / sigma^2 with delta s0_hat = s + sigma^2 S, which is S + (s - s') / sigma^2. The
        variance of the estimate stays, too.

        Args:
            before, after: s that the score belongs to, and s', (B, F, T) complex.
            coefficients: of the time of both.
        """
        return Answer(self.score + (before - after) * (1 / coefficients.sigma**2), self.posterior_variance)


Result = TypeVar("Result")
Pass = Generator[Sequence[Request | WholePass], Any, Result]
"""A reverse pass under way. It yields requests, is sent one answer for each (an `Answer`, or for a `WholePass` what
that returns), and returns its result. Where a call fails, its exception is thrown into the pass that asked."""


class Prior(ABC):
    """Who answers: a network, or several; or a function."""

    @abstractmethod
    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """Answers to requests of one `batch_key`, or to one alone.

        A posterior variance that the prior does not know is None in the answer, and guessed from the score.
        """

    def batch_key(self, source: str) -> Hashable:
        """Equal for sources whose requests can share a call, of all priors; None where they never can."""
        return None


class FunctionPrior(Prior):
    """A function of state, time and source, as users write it; for sampler "amortised", an `EStep`."""

    def __init__(self, score: Callable[..., Any]) -> None:
        self.score = score

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """The score in the precision of the state.

        Raises:
            UdseError: not a complex tensor of the shape of the state; conditions, which a function is not told.
        """
        (request,) = requests
        if request.wants_estimate:
            return [Answer.of(_estimated(self.score, request), request)]
        told = [name for name in request.conditions.given if name != "noisy"]  # whoever gives the recording knows it
        if told:
            raise UdseError(
                f"score: expected a prior that is told {', '.join(told)}, got a function of state, "
                "time and source; give a `Prior`"
            )

        def evaluate(state: Tensor) -> Tensor:
            return checked_score(self.score, state, request.time, request.source)

        if request.wants_vjp:
            score, vjp = differentiated(evaluate, request.state)
            return [Answer(score, vjp=vjp)]
        return [Answer(evaluate(request.state))]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FunctionPrior) and self.score == other.score

    def __hash__(self) -> int:
        return hash(self.score)


def _estimated(e_step: EStep, request: Request) -> Estimate:
    """What a user's function says about the recording; it is shown the state where that says something.

    Raises:
        UdseError: it gives something else than an `Estimate`, or its first three parts.
    """
    told = request.conditions
    assert told.noisy is not None
    assert told.noise_variance is not None
    c = request.coefficients
    level = c.sigma / c.delta
    if isinstance(level, Tensor):
        level = torch.where(level > HIGHEST_LEVEL, torch.inf, level)
    seen = isinstance(level, Tensor) or level <= HIGHEST_LEVEL
    given = e_step(told.noisy, told.noise_variance, *((request.state / c.delta, level) if seen else ()))
    if not isinstance(given, tuple) or not 3 <= len(given) <= len(Estimate._fields):
        raise UdseError(
            "score: expected a function of (mixture, noise variance) that returns an `Estimate` (the mean of the "
            f"speech, its variance, the noise variance), got {described(given)}"
        )
    like = request.state
    parts = Estimate(*given)
    for name, value in parts._asdict().items():
        is_kind = isinstance(value, Tensor) and value.is_complex() == (name in ("speech", "heard"))
        fits = is_kind and value.shape in (like.shape, told.noisy.shape)
        if not fits and not (name == "heard" and value is None):
            kind = "complex" if name in ("speech", "heard") else "real"
            raise UdseError(f"score: expected {name} as {kind} numbers {tuple(like.shape)}, got {described(value)}")
    return parts.for_states(like)


def as_prior(score: Score | EStep | Prior) -> Prior:
    """A prior as it is, a function as a prior.

    Raises:
        UdseError: neither.
    """
    if isinstance(score, Prior):
        return score
    if not callable(score):
        raise UdseError(f"score: expected a function, got {type(score).__name__}")
    return FunctionPrior(score)


def checked_score(score: Score, state: Tensor, time: Time, source: str) -> Tensor:
    """S(s, t) in the precision of the state, and one line where a user's function gives something else.

    Raises:
        UdseError: not a complex tensor of the shape of the state.
    """
    return complex_tensor("score", score(state, time, source), state.shape).to(state)


def differentiated(evaluate: Callable[[Tensor], Tensor], state: Tensor) -> tuple[Tensor, VectorJacobian]:
    """evaluate(state) without a graph, and its vector-Jacobian product by torch's autograd, in whatever mode.

    Raises:
        UdseError: the result does not depend on the state in a way that torch can follow.
    """
    with torch.inference_mode(False), torch.enable_grad():
        leaf = state.clone().requires_grad_()
        value = evaluate(leaf)
    if not value.requires_grad:
        raise UdseError("score: expected a function that torch can differentiate by the state, got one that it cannot")

    def vjp(cotangent: Tensor) -> Tensor:
        with torch.inference_mode(False):
            (gradient,) = torch.autograd.grad(value, leaf, cotangent.to(value).clone(), retain_graph=True)
        return gradient

    return value.detach(), vjp

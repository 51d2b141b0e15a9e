"""What a reverse pass asks of a prior, what it is answered, and who answers: `Request`, `Answer`, `Prior`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Hashable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from udse_fast.backends.cuda_graphs import WholePass
from udse_fast.checks import complex_tensor
from udse_fast.errors import UdseError
from udse_fast.kernels.coefficients import Coefficients
from udse_fast.networks.conditions import Conditions
from udse_fast.sampling.sde import Time

Score = Callable[[Tensor, Time, str], Tensor]
"""score(state (B, F, T) complex, time: float or (T,), name of the source) -> (B, F, T) complex."""

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

    @property
    def batch_key(self) -> Hashable:
        """Equal for those that can be answered by one call of the network; None for one that is answered alone."""
        key = None if self.wants_vjp else self.prior.batch_key(self.source)
        return None if key is None else (key, self.wants_posterior_variance, self.state.shape[1:], self.conditions.form)


class Answer(NamedTuple):
    """What a prior says about one request."""

    score: Tensor
    """S(s, t), (B, F, T) complex."""
    posterior_variance: Tensor | None = None
    """C = E|s_0 - s0_hat|^2, (B, F, T) real, where it was asked for."""
    vjp: VectorJacobian | None = None
    """Of the score by the state, where it was asked for."""


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
    """A function of state, time and source, as users write it."""

    def __init__(self, score: Score) -> None:
        self.score = score

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """The score in the precision of the state.

        Raises:
            UdseError: not a complex tensor of the shape of the state; conditions, which a function is not told.
        """
        (request,) = requests
        if request.conditions.given:
            raise UdseError(
                f"score: expected a prior that is told {', '.join(request.conditions.given)}, got a function of state, "
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


def as_prior(score: Score | Prior) -> Prior:
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

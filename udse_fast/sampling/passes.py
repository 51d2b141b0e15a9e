"""Reverse passes, run: one alone, or many side by side, whose network calls are then made as one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor

from udse_fast.backends.cuda_graphs import WholePass, run_alike
from udse_fast.kernels.predictor_corrector.reference import tweedie_mean
from udse_fast.sampling.requests import Answer, Pass, Request, Result


@dataclass(frozen=True)
class Failed:
    """In the place of an answer: the call that raised."""

    error: BaseException


class Together(list[Any]):
    """Requests of several passes: who yields them is sent a `Failed` where a call raised, and nothing is thrown."""


def run(reverse_pass: Pass[Result]) -> Result:
    """Run a pass to its end. What a network call raises is thrown into the pass that asked for it."""
    try:
        requests = next(reverse_pass)
        while True:
            requests = _resume(reverse_pass, requests, answer(requests))
    except StopIteration as end:
        return cast(Result, end.value)


def gather(passes: Sequence[Pass[Result]]) -> Pass[list[Result]]:
    """Many passes as one: what they ask for at the same time is asked for together. They need not be equally long.

    The first exception that a pass does not catch ends them all.
    """
    results: list[Any] = [None] * len(passes)
    due: dict[int, Sequence[Request | WholePass]] = {}
    try:
        for number, reverse_pass in enumerate(passes):
            try:
                due[number] = next(reverse_pass)
            except StopIteration as end:
                results[number] = end.value
        while due:
            answers = iter((yield Together(request for requests in due.values() for request in requests)))
            for number, requests in list(due.items()):
                try:
                    due[number] = _resume(passes[number], requests, [next(answers) for _ in requests])
                except StopIteration as end:
                    results[number] = end.value
                    del due[number]
    finally:
        for reverse_pass in passes:
            reverse_pass.close()
    return results


def _resume(
    reverse_pass: Pass[Any], requests: Sequence[Request | WholePass], answers: list[Any]
) -> Sequence[Request | WholePass]:
    """Send the answers to `requests`, or throw the first exception among them; returns the next requests."""
    if not isinstance(requests, Together):
        for given in answers:
            if isinstance(given, Failed):
                return reverse_pass.throw(given.error)
    return reverse_pass.send(answers)


def answer(requests: Sequence[Request | WholePass]) -> list[Any]:
    """An answer to every request, or a `Failed`. Requests with one `batch_key` are answered in a single call."""
    if len(requests) == 1:
        return list(_answered(requests))
    groups: dict[Any, list[int]] = {}
    for number, request in enumerate(requests):
        key = request.batch_key
        groups.setdefault(number if key is None else key, []).append(number)
    answers: list[Any] = [None] * len(requests)
    for numbers in groups.values():
        members = [requests[number] for number in numbers]
        for number, given in zip(numbers, _answered(members), strict=True):
            answers[number] = given
    return answers


def _answered(members: Sequence[Any]) -> Sequence[Any]:
    """Answers to requests that are alike."""
    try:
        if isinstance(members[0], WholePass):
            return run_alike(members, lambda passes: run(gather(passes)))
        answers = members[0].prior.answer(members)
    except BaseException as error:  # even ^C: what the pass holds is given back by its `finally`
        return [Failed(error)] * len(members)
    for request in members:
        request.calls.answered += 1
    if members[0].wants_posterior_variance and answers[0].posterior_variance is None:
        return [_with_guessed_variance(given, request) for given, request in zip(answers, members, strict=True)]
    return cast(Sequence[Any], answers)


def _with_guessed_variance(given: Answer, request: Request) -> Answer:
    """As if s_0 were Gaussian with the power of its estimate, and twice as uncertain (such posteriors are too sure).

    C = 2 a^2 |s0_hat|^2 / (|s0_hat|^2 + a^2).
    """
    c = request.coefficients
    power: Tensor = tweedie_mean(request.state, given.score, c).abs().square()
    a2 = (c.sigma / c.delta) ** 2
    return given._replace(posterior_variance=2 * a2 * power / (power + a2))

"""Reverse passes, run: one alone, or many in step, whose network calls are then made as one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from udse_fast.backends.cuda_graphs import WholePass, run_alike
from udse_fast.kernels.predictor_corrector.reference import tweedie_mean
from udse_fast.sampling.diffusion import Pass, Result, ScoreAnswer, ScoreRequest, asked_score


def run(reverse_pass: Pass[Result]) -> Result:
    """Run a pass to its end."""
    try:
        requests = next(reverse_pass)
        while True:
            requests = reverse_pass.send(_answered(requests))
    except StopIteration as end:
        result: Result = end.value
        return result


def in_step(passes: Sequence[Pass[Result]]) -> Pass[list[Result]]:
    """Many passes as one: what they ask for at the same time is asked for together. They need not be equally long."""
    results: list[Any] = [None] * len(passes)
    due: dict[int, list[Any]] = {}
    answers: dict[int, list[Any] | None] = dict.fromkeys(range(len(passes)))
    while answers:
        due.clear()
        for number, answer in answers.items():
            try:
                due[number] = passes[number].send(answer)  # type: ignore[arg-type]  # None starts a generator
            except StopIteration as end:
                results[number] = end.value
        answers.clear()
        if due:
            flat = iter((yield [request for requests in due.values() for request in requests]))
            answers.update({number: [next(flat) for _ in requests] for number, requests in due.items()})
    return results


def _answered(requests: list[Any]) -> list[Any]:
    """Those of priors that can share a batch (`batch_key`, `answer`) and whole passes that are alike as one."""
    groups: dict[Any, list[int]] = {}
    for number, request in enumerate(requests):
        if isinstance(request, WholePass):
            groups.setdefault(request.batch_key, []).append(number)
            continue
        key = getattr(request.score, "batch_key", None)
        shape = request.state.shape[1:]
        groups.setdefault(number if key is None else (key, request.wants_posterior_variance, shape), []).append(number)
    answers: dict[int, Any] = {}
    for numbers in groups.values():
        members = [requests[number] for number in numbers]
        if isinstance(members[0], WholePass):
            answers.update(zip(numbers, run_alike(members, lambda passes: run(in_step(passes))), strict=True))
            continue
        batch = members[0].score.answer(members) if len(members) > 1 else [_single(members[0])]
        answers.update(zip(numbers, batch, strict=True))
    return [answers[number] for number in range(len(requests))]


def _single(request: ScoreRequest) -> ScoreAnswer:
    score, state = request.score, request.state
    if not request.wants_posterior_variance:
        return asked_score(score, state, request.time, request.source), None
    told = getattr(score, "with_posterior_variance", None)
    if told is not None:
        answer: ScoreAnswer = told(state, request.time, request.source)
        return answer
    return _with_guessed_variance(asked_score(score, state, request.time, request.source), request)


def _with_guessed_variance(value: Tensor, request: ScoreRequest) -> ScoreAnswer:
    """As if s_0 were Gaussian with the power of its estimate, and twice as uncertain (such posteriors are too sure).

    C = 2 a^2 |s0_hat|^2 / (|s0_hat|^2 + a^2).
    """
    c = request.coefficients
    power = tweedie_mean(request.state, value, c).abs().square()
    a2 = (c.sigma / c.delta) ** 2
    return value, 2 * a2 * power / (power + a2)

"""`NetworkPrior`: score networks as a prior that reverse passes ask."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from udse_fast.networks.conditions import NOISE_SOURCE, Conditions, labelled
from udse_fast.networks.estimate import Estimate
from udse_fast.networks.score_network import ScoreNetwork
from udse_fast.sampling.requests import Answer, Prior, Request, differentiated
from udse_fast.sampling.sde import Time


class NetworkPrior(Prior):
    """Scores of speech (any number of talkers) and noise, from one joint network or two; and what a posterior network
    says about the recording."""

    def __init__(
        self, speech: ScoreNetwork, noise: ScoreNetwork | None = None, posterior: ScoreNetwork | None = None
    ) -> None:
        self.speech, self.noise, self.posterior = speech, noise or speech, posterior or speech

    def network(self, source: str) -> ScoreNetwork:
        """The network of a source."""
        return self.noise if source == NOISE_SOURCE else self.speech

    def batch_key(self, source: str) -> Hashable:
        """The network of the source; not kept, as a copy of the prior has networks of its own."""
        return id(self.network(source)), id(self.posterior)

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """One network call, all with or all without the posterior variance."""
        first = requests[0]
        network = self.posterior if first.wants_estimate else self.network(first.source)
        state, time, conditions = batch(requests, network)
        if first.wants_estimate:
            return estimates(requests, network.say(*unit_gain(state, time, network), conditions))
        told = first.wants_posterior_variance and network.has_posterior_variance
        if first.wants_vjp:
            variance = network.evaluate(state, time, conditions, posterior_variance=True)[1] if told else None
            score, vjp = differentiated(lambda s: network.evaluate(s, time, conditions, plain=True)[0], state)
            return [Answer(score, variance, vjp)]
        return split(requests, *network.evaluate(state, time, conditions, posterior_variance=told))


def batch(requests: Sequence[Request], network: ScoreNetwork) -> tuple[Tensor, Time, Conditions]:
    """States, times and conditions of requests to one network, with the label of each source where it reads one.

    Returns:
        states (B, F, T), one time where it is the same for all, else (B,) or (B, T), conditions of the batch.
    """
    conditions = [request.conditions for request in requests]
    if "label" in network.conditions:
        conditions = [c.merged(labelled(r.source, r.state)) for c, r in zip(conditions, requests, strict=True)]
    first = requests[0]
    if len(requests) == 1:
        time = first.time
        return first.state, _times(first.state, time) if isinstance(time, Tensor) else time, conditions[0]
    time = first.time
    if isinstance(time, Tensor) or any(r.time != time for r in requests):
        time = torch.cat([_times(r.state, r.time) for r in requests])
    whole = [c.repeat(len(r.state)) for c, r in zip(conditions, requests, strict=True)]
    return torch.cat([r.state for r in requests]), time, Conditions.cat(whole)


def unit_gain(state: Tensor, time: Time, network: ScoreNetwork) -> tuple[Tensor, Tensor | float]:
    """u = s_t / delta and its noise level a."""
    delta = network.sde.delta(_over_frames(time))
    return state / delta, network.sde.noise_level(time)


def _over_frames(time: Time) -> Time:
    """Times that multiply states: one, (B, 1, 1) or (B, 1, T)."""
    if not isinstance(time, Tensor) or time.ndim == 0:
        return time
    return time[:, None, None] if time.ndim == 1 else time[:, None]


def estimates(requests: Sequence[Request], estimate: Estimate) -> list[Answer]:
    """The answers of a posterior network to the requests of a batch."""
    parts = estimate.split([len(request.state) for request in requests])
    return [Answer.of(part, request) for part, request in zip(parts, requests, strict=True)]


def split(requests: Sequence[Request], score: Tensor, posterior_variance: Tensor | None) -> list[Answer]:
    """The answers to the requests of a batch."""
    if len(requests) == 1:
        return [Answer(score, posterior_variance)]
    sizes = [len(request.state) for request in requests]
    variances = [None] * len(sizes) if posterior_variance is None else posterior_variance.split(sizes)
    return [Answer(s, v) for s, v in zip(score.split(sizes), variances, strict=True)]


def _times(state: Tensor, time: Time) -> Tensor:
    """One time per item (B,), or per item and frame (B, T)."""
    count = state.shape[0]
    t = time if isinstance(time, Tensor) else torch.full((), time, dtype=torch.float32, device=state.device)
    return t.to(state.real).expand((count,) if t.ndim == 0 else (count, state.shape[-1]))

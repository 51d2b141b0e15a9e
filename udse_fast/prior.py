"""The prior as the samplers call it: score networks behind `udse_fast.sampling.diffusion.Score`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from udse_fast.networks.score_network import ScoreNetwork
from udse_fast.sampling.diffusion import ScoreAnswer, ScoreRequest
from udse_fast.sampling.sde import Time

SPEECH_LABEL, NOISE_LABEL = 1, 0


class Prior:
    """Scores of speech and noise, from one joint network or two."""

    def __init__(self, speech: ScoreNetwork, noise: ScoreNetwork | None = None) -> None:
        self.networks = {"speech": speech, "noise": noise or speech}
        if speech.has_posterior_variance:
            self.with_posterior_variance = self._with_posterior_variance

    @property
    def batch_key(self) -> int | None:
        """Equal for those that share a network for everything; not kept, as a copy has a network of its own."""
        speech, noise = self.networks.values()
        return id(speech) if speech is noise else None

    def __call__(self, state: Tensor, time: Time, source: str) -> Tensor:
        """S(s, t), (B, F, T) complex."""
        return self.networks[source].score(state, _times(state, time), _label(source))

    def _with_posterior_variance(self, state: Tensor, time: Time, source: str) -> tuple[Tensor, Tensor]:
        """S(s, t), and E|s_0 - E[s_0 | s_t]|^2 (B, F, T) real."""
        return self.networks[source].with_posterior_variance(state, _times(state, time), _label(source))

    def answer(self, requests: list[ScoreRequest]) -> list[ScoreAnswer]:
        """One batch of requests to this network, all with or all without posterior_variance."""
        network, inputs = self.networks["speech"], _batch(requests)
        if requests[0].wants_posterior_variance:
            return _split(requests, *network.with_posterior_variance(*inputs))
        return _split(requests, network.score(*inputs))


class CausalPrior:
    """The score of a causal network that goes on, block after block, from what it saw before.

    Every call of a block (step by step) sees the past at its own noise level: a memory for each. A prior is for one
    block: what it was made of stays as it was, and `next_block` makes the one that goes on from this.

    Args:
        network: a causal one.
        before: the memories that the block before left (`Past` or `Memory`), one per call; empty for the first block.
    """

    def __init__(self, network: ScoreNetwork, before: Sequence[Any] = ()) -> None:
        self.network = network
        self.batch_key = id(network)
        self.pasts: list[Any] = []
        """What this block leaves."""
        self._before = before

    def next_block(self) -> CausalPrior:
        """The prior of the block after this one."""
        return CausalPrior(self.network, self.pasts)

    @property
    def kind(self) -> str:
        """Of the memories: "torch", or "core" for those of the C++ core."""
        return self.network.new_past().kind

    def _next_past(self) -> Any:
        call = len(self.pasts)
        self.pasts.append(self._before[call].copy() if call < len(self._before) else self.network.new_past())
        return self.pasts[call]

    def __call__(self, state: Tensor, time: Time, source: str) -> Tensor:
        """S(s, t), (B, F, T) complex."""
        return self.with_posterior_variance(state, time, source)[0]

    def with_posterior_variance(self, state: Tensor, time: Time, source: str) -> tuple[Tensor, Tensor]:
        """S(s, t), and E|s_0 - E[s_0 | s_t]|^2 (B, F, T) real."""
        times = _times(state, time) if isinstance(time, Tensor) else time
        return self.network.with_posterior_variance(state, times, _label(source), self._next_past())

    def answer(self, requests: list[ScoreRequest]) -> list[ScoreAnswer]:
        """One batch of requests of streams that share this network."""
        pasts = [request.score._next_past() for request in requests]  # type: ignore[attr-defined]
        sizes = [len(request.state) for request in requests]
        together = type(pasts[0]).joined(pasts, sizes)
        answers = _split(requests, *self.network.with_posterior_variance(*_batch(requests), together))
        together.give_back(pasts, sizes)
        return answers

    def state(self) -> list[list[Tensor]]:
        """The memories, one list per call of a block."""
        return [past.kept for past in self.pasts]

    def restore(self, state: list[list[Tensor]]) -> None:
        """Go on from `state`."""
        make = type(self.network.new_past())
        self.pasts = [make(list(kept)) for kept in state]


def _label(source: str) -> int:
    return SPEECH_LABEL if source == "speech" else NOISE_LABEL


def _times(state: Tensor, time: Time) -> Tensor:
    """One time per item (B,), or per item and frame (B, T)."""
    batch = state.shape[0]
    t = time if isinstance(time, Tensor) else torch.full((), time, device=state.device)
    return t.to(state.real).expand((batch,) if t.ndim == 0 else (batch, state.shape[-1]))


def _batch(requests: list[ScoreRequest]) -> tuple[Tensor, Time, Tensor]:
    """States, times and labels of all; one time where it is the same."""
    labels = [torch.full((len(r.state),), _label(r.source), device=r.state.device) for r in requests]
    time: Time = requests[0].time
    if isinstance(time, Tensor) or any(r.time != time for r in requests):
        time = torch.cat([_times(r.state, r.time) for r in requests])
    return torch.cat([r.state for r in requests]), time, torch.cat(labels)


def _split(requests: list[ScoreRequest], score: Tensor, posterior_variance: Tensor | None = None) -> list[ScoreAnswer]:
    sizes = [len(request.state) for request in requests]
    variances = [None] * len(sizes) if posterior_variance is None else posterior_variance.split(sizes)
    return list(zip(score.split(sizes), variances, strict=True))

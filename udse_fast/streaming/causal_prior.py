"""`CausalPrior`: a causal network that goes on, block after block, from what it saw before."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

from torch import Tensor

from udse_fast.errors import UdseError
from udse_fast.networks.past import Past
from udse_fast.networks.score_network import ScoreNetwork
from udse_fast.prior import batch, estimates, split, unit_gain
from udse_fast.sampling.requests import Answer, Prior, Request


class CausalPrior(Prior):
    """The score of a causal network, and its memories.

    Every call of a block sees the past at its own noise level: there is a memory for each, known by the number of the
    call in its pass. A prior serves one block. The memories that it starts from stay as they were, so that a block
    which failed can be run again; `next_block` gives the prior that goes on from what this one leaves.

    Args:
        network: a causal one.
        before: what the block before left, by call; nothing before the first.
    """

    def __init__(self, network: ScoreNetwork, before: Mapping[int, Past] | None = None) -> None:
        self.network = network
        self.pasts: dict[int, Past] = {}
        """What this block leaves, by call."""
        self._before = {} if before is None else before

    def next_block(self) -> CausalPrior:
        """The prior of the block after this one."""
        return CausalPrior(self.network, self.pasts)

    @property
    def kind(self) -> str:
        """Of the memories, "torch" or "core"."""
        return self.network.new_past().kind

    def batch_key(self, source: str) -> Hashable:
        """The network: streams share its calls."""
        return id(self.network)

    def past(self, call: int) -> Past:
        """The memory of a call, to be updated."""
        self.pasts[call] = self._before[call].copy() if call in self._before else self.network.new_past()
        return self.pasts[call]

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """One call of the network, for one stream or several that share it.

        Raises:
            UdseError: a gradient is asked for, which does not go through the memory.
        """
        if requests[0].wants_vjp:
            raise UdseError("causal prior: expected a sampler that needs no gradient of the network, got one that does")
        pasts = [_of_stream(request).past(request.call) for request in requests]
        state, time, conditions = batch(requests, self.network)
        sizes = [len(request.state) for request in requests]
        past = pasts[0] if len(pasts) == 1 else type(pasts[0]).joined(pasts, sizes)
        if requests[0].wants_estimate:
            state, level = unit_gain(state, time, self.network)
            answers = estimates(requests, self.network.say(state, level, conditions, past))
        else:
            answers = split(requests, *self.network.evaluate(state, time, conditions, past=past))
        if past is not pasts[0]:
            past.give_back(pasts, sizes)
        return answers

    def state(self) -> list[list[Tensor]]:
        """The memories, one list per call of a block."""
        return [self.pasts[call].kept for call in sorted(self.pasts)]

    def restore(self, state: list[list[Tensor]]) -> None:
        """Go on from `state`."""
        kind = type(self.network.new_past())
        self.pasts = {call: kind(list(kept)) for call, kept in enumerate(state)}


def _of_stream(request: Request) -> CausalPrior:
    """The prior of the stream that asks."""
    assert isinstance(request.prior, CausalPrior)
    return request.prior

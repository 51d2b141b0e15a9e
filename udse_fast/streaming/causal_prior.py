"""`CausalPrior`: causal networks that go on, block after block, from what they saw before."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

from torch import Tensor

from udse_fast.errors import UdseError
from udse_fast.networks.past import Past
from udse_fast.networks.score_network import ScoreNetwork
from udse_fast.prior import batch, estimates, split, unit_gain
from udse_fast.sampling.requests import Answer, Prior, Request

Pasts = Mapping[str, Mapping[int, Past]]
"""Of the "prior" and of the "posterior" network, by call."""


class CausalPrior(Prior):
    """The score of a causal network, what a posterior network says about the recording, and their memories.

    Every call of a block sees the past at its own noise level: there is a memory for each, known by the number of the
    call in its pass. A prior serves one block. The memories that it starts from stay as they were, so that a block
    which failed can be run again; `next_block` gives the prior that goes on from what this one leaves.

    Args:
        network: a causal one.
        posterior: a causal posterior network, of the samplers that ask one beside the prior.
        before: what the block before left; nothing before the first.
    """

    def __init__(
        self,
        network: ScoreNetwork,
        posterior: ScoreNetwork | None = None,
        before: Pasts | None = None,
    ) -> None:
        self.network, self.posterior = network, posterior or network
        self.pasts: dict[str, dict[int, Past]] = {"prior": {}, "posterior": {}}
        """What this block leaves."""
        self._before = self.pasts if before is None else before

    def next_block(self) -> CausalPrior:
        """The prior of the block after this one."""
        return CausalPrior(self.network, self.posterior, self.pasts)

    @property
    def kind(self) -> str:
        """Of the memories of both networks, "torch" or "core"."""
        return ", ".join(dict.fromkeys(network.new_past().kind for network in (self.network, self.posterior)))

    def batch_key(self, source: str) -> Hashable:
        """The networks: streams share their calls."""
        return id(self.network), id(self.posterior)

    def _network(self, role: str) -> ScoreNetwork:
        return self.posterior if role == "posterior" else self.network

    def _past(self, role: str, call: int) -> Past:
        """The memory of a call, to be updated."""
        before = self._before[role]
        past = before[call].copy() if call in before else self._network(role).new_past()
        self.pasts[role][call] = past
        return past

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """One call of the network, for one stream or several that share it.

        Raises:
            UdseError: a gradient is asked for, which does not go through the memory.
        """
        if requests[0].wants_vjp:
            raise UdseError("causal prior: expected a sampler that needs no gradient of the network, got one that does")
        role = "posterior" if requests[0].wants_estimate else "prior"
        network = self._network(role)
        pasts = [_of_stream(request)._past(role, request.call) for request in requests]
        state, time, conditions = batch(requests, network)
        sizes = [len(request.state) for request in requests]
        past = pasts[0] if len(pasts) == 1 else type(pasts[0]).joined(pasts, sizes)
        if requests[0].wants_estimate:
            state, level = unit_gain(state, time, network)
            answers = estimates(requests, network.say(state, level, conditions, past))
        else:
            answers = split(requests, *network.evaluate(state, time, conditions, past=past))
        if past is not pasts[0]:
            past.give_back(pasts, sizes)
        return answers

    def state(self) -> dict[str, dict[int, list[Tensor]]]:
        """The memories by network and call, a list of tensors each."""
        return {role: {call: past.kept for call, past in pasts.items()} for role, pasts in self.pasts.items()}

    def restore(self, state: Mapping[str, Mapping[int, list[Tensor]]]) -> None:
        """Go on from `state`."""
        kinds = {role: type(self._network(role).new_past()) for role in state}
        self.pasts = {
            role: {call: kinds[role](list(kept)) for call, kept in pasts.items()} for role, pasts in state.items()
        }


def _of_stream(request: Request) -> CausalPrior:
    """The prior of the stream that asks."""
    assert isinstance(request.prior, CausalPrior)
    return request.prior

"""The causal posterior network of the C++ core against the network in torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from small_networks import SIZES, small_network
from udse_fast import _core
from udse_fast.errors import UdseError
from udse_fast.networks.compact import Compact
from udse_fast.networks.compact_core import CompactCore
from udse_fast.networks.compact_posterior import CompactPosterior
from udse_fast.networks.conditions import Conditions
from udse_fast.networks.estimate import Estimate
from udse_fast.networks.past import CorePast, LayerPast
from udse_fast.networks.score_network import ScoreNetwork

SDE = {"name": "ouve", "gamma": 1.5, "sigma_min": 0.05, "sigma_max": 0.5}


def network(size: str) -> CompactPosterior:
    return small_network(CompactPosterior, size, causal_block=2)


def blocks(
    module: Compact, batch: int, lengths: list[int], seed: int = 0, least: float = -5
) -> list[tuple[Tensor, Tensor]]:
    """Mixtures of all loudnesses, in noise of 10 to 10^least of full scale."""
    generator = torch.Generator().manual_seed(seed)
    bins = module.band.shape[2] * module.stem
    made = []
    for K in lengths:
        x = torch.randn(batch, bins, K, generator=generator, dtype=torch.complex64)
        x = x * 10 ** (-3 * torch.rand(batch, bins, K, generator=generator))
        made.append((x, 10 ** (1 - (1 - least) * torch.rand(batch, bins, K, generator=generator))))
    return made


def in_torch(module: CompactPosterior, x: Tensor, V: Tensor, past: LayerPast) -> Estimate:
    planes = torch.view_as_real(x).movedim(-1, 1)
    return Estimate.of(module.say(planes, V, planes, torch.full((len(x),), 2.0), past), x)


def assert_close(actual: Estimate, expected: Estimate, error: float = 1e-5) -> None:
    """The variances span many decades: each is right by itself."""
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours is not None
        assert theirs is not None
        assert ours.shape == theirs.shape
        if ours.is_complex():
            assert float((ours - theirs).abs().max()) < error * float(theirs.abs().max())
        else:
            torch.testing.assert_close(ours, theirs, rtol=10 * error, atol=0)


@pytest.mark.parametrize("name", SIZES)
def test_equals_the_network_in_torch(isa: str, name: str) -> None:
    """Blocks of all lengths one after the other, of several streams in one batch, every frame at its own blur."""
    module = network(name)
    core, past, memory = CompactCore(module), LayerPast(), CorePast()
    for x, V in blocks(module, 3, [1, 2, 3, 4, 2, 8, 1]):
        module.set_causal_block(x.shape[-1])
        assert_close(core.say(x, V, memory.rewind()), in_torch(module, x, V, past.rewind()))


def test_noise_below_the_least_that_is_told_apart(isa: str) -> None:
    """In single precision torch has 3 digits of the logit of what is nearly 1."""
    module = network("odd sizes")
    core, past, memory = CompactCore(module), LayerPast(), CorePast()
    for x, V in blocks(module, 2, [2, 2], least=-14):
        V[:, 3] = 0
        assert_close(core.say(x, V, memory), in_torch(module, x, V, past.rewind()), 1e-4)


@pytest.mark.parametrize("level", [0.2, 1.5])
def test_a_state_is_told_as_to_the_network_in_torch(level: float) -> None:
    """Below the highest level the state counts, above it does not."""
    module = network("whole panels")
    score_network = ScoreNetwork(module, {"sde": SDE, "architecture": {}})
    past, memory = LayerPast(), score_network.new_past()
    assert isinstance(memory, CorePast)
    generator = torch.Generator().manual_seed(3)
    for x, V in blocks(module, 2, [2, 2, 2]):
        state = x + level * torch.randn(x.shape, generator=generator, dtype=x.dtype)
        told = Conditions(noisy=x, noise_variance=V)
        ours = score_network.say(state, level, told, memory.rewind())
        assert_close(ours, score_network.say(state, level, told, past.rewind()))


def test_every_number_is_written(isa: str) -> None:
    core = CompactCore(network("odd sizes"))
    ((x, V),) = blocks(network("odd sizes"), 2, [3])
    memory = np.zeros((2, core.network.memory_size), np.float32)
    complexes = [np.full(x.shape, np.nan, np.complex64) for _ in range(2)]
    floats = [np.full(x.shape, np.nan, np.float32) for _ in range(2)]
    core.network.say(x.numpy(), V.numpy(), memory, complexes[0], floats[0], floats[1], complexes[1], 1)
    assert all(np.isfinite(written).all() for written in (*complexes, *floats, memory))


def test_not_a_number_stays_in_its_item(isa: str) -> None:
    module = network("whole panels")
    core = CompactCore(module)
    ((x, V),) = blocks(module, 3, [2])
    expected = core.say(x, V, CorePast())
    V[1, 5, 1] = torch.nan
    actual = core.say(x, V, CorePast())
    for ours, theirs in zip(actual, expected, strict=True):
        assert torch.equal(ours[::2], theirs[::2])
        assert ours[1].isnan().any()


def test_in_a_batch_as_alone(isa: str) -> None:
    """The same bits, shared among threads too."""
    module = network("odd sizes")
    alone, shared = CompactCore(module), CompactCore(module, threads=3)
    memories, together = [CorePast() for _ in range(3)], CorePast()
    for x, V in blocks(module, 3, [2, 2, 2]):
        expected = [alone.say(x[i : i + 1], V[i : i + 1], memories[i]) for i in range(3)]
        said = shared.say(x, V, together)
        for i, own in enumerate(expected):
            for ours, theirs in zip(said, own, strict=True):
                assert torch.equal(ours[i : i + 1], theirs)


def test_a_copy_goes_on_and_the_original_stays() -> None:
    module = network("whole panels")
    core, memory = CompactCore(module), CorePast()
    first, second = blocks(module, 2, [2, 2])
    core.say(*first, memory)
    before, taken = memory.kept[0].clone(), memory.copy()
    expected = core.say(*second, taken)
    assert torch.equal(memory.kept[0], before)
    again = core.say(*second, memory)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(again, expected, strict=True))


def test_errors() -> None:
    module = network("whole panels")
    core, score = CompactCore(module), CompactCore(small_network(Compact, "whole panels", causal_block=2))
    ((x, V),) = blocks(module, 2, [3])
    with pytest.raises(UdseError, match=r"noise_variance must have shape \(2, 32, 3\); got \(2, 31, 3\)"):
        core.say(x, V[:, 1:], CorePast())
    with pytest.raises(UdseError, match=r"memory must have shape \(2, \d+\); got \(1, 3\)"):
        core.say(x, V, CorePast([torch.zeros(1, 3)]))
    with pytest.raises(UdseError, match="expected a score network; a posterior network has say"):
        core.posterior(x, 0.3, None, CorePast())
    with pytest.raises(UdseError, match="expected a posterior network; a score network has step"):
        score.say(x, V, CorePast())
    weights = {name: tensor.numpy() for name, tensor in (*module.named_parameters(), *module.named_buffers())}
    with pytest.raises(UdseError, match=r"input\.weight must have shape \(any, 5, 3, any\); got \(16, 3, 3, 8\)"):
        _core.CompactNetwork({**weights, "input.weight": weights["input.weight"][:, :3]}, [1, 2])
    del weights["noise.bias"]
    with pytest.raises(UdseError, match=r"the weights have no noise\.bias"):
        _core.CompactNetwork(weights, [1, 2])

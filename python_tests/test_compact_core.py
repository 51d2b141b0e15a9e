"""The causal network of the C++ core against the network in torch."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from small_networks import SIZES, small_network
from udse_fast import _core
from udse_fast.checkpoints.checkpoint import load_network
from udse_fast.errors import UdseError
from udse_fast.networks.compact import Compact
from udse_fast.networks.compact_core import CompactCore
from udse_fast.networks.conditions import Conditions
from udse_fast.networks.past import CorePast, LayerPast

JOINT = {"joint": True, "sigma_data": (0.1, 0.04), "dilations": (1,)}
NAMES = [*SIZES, "joint"]


def network(name: str) -> Compact:
    """Of a size, or the joint one."""
    size, more = ("whole panels", JOINT) if name == "joint" else (name, {})
    return small_network(Compact, size, causal_block=4, **more)


def blocks(module: Compact, batch: int, lengths: list[int], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    bins = module.band.shape[2] * module.stem
    return [0.3 * torch.randn(batch, bins, K, generator=generator, dtype=torch.complex64) for K in lengths]


def in_torch(module: Compact, u: Tensor, level: Tensor, label: Tensor | None, past: LayerPast) -> tuple[Tensor, Tensor]:
    """As `CompactCore.posterior`, which takes complex numbers."""
    clean, variance = module.posterior(torch.view_as_real(u).movedim(-1, 1), level, Conditions(label=label), past)
    return torch.view_as_complex(clean.movedim(1, -1).contiguous()), variance


def assert_close(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape
    assert float((actual - expected).abs().max()) < 1e-5 * float(expected.abs().max())


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_network_in_torch(isa: str, name: str) -> None:
    """Blocks of all lengths one after the other, each item at its own noise level."""
    module = network(name)
    core, past, memory = CompactCore(module), LayerPast(), CorePast()
    noise_level = torch.tensor([0.02, 0.3, 4.0])
    label = torch.tensor([1, 0, 1]) if module.conditions else None
    for u in blocks(module, 3, [1, 2, 3, 4, 5, 6, 7, 8, 1, 8, 3, 13]):
        module.set_causal_block(u.shape[-1])
        expected = in_torch(module, u, noise_level, label, past.rewind())
        for ours, theirs in zip(core.posterior(u, noise_level, label, memory.rewind()), expected, strict=True):
            assert_close(ours, theirs)


def test_equals_the_built_in_network(isa: str) -> None:
    import udse_fast

    module = udse_fast.load_network("causal").module
    module.set_causal_block(4)
    core, past, memory = CompactCore(module), LayerPast(), CorePast()
    for u in blocks(module, 1, [4, 4, 4]):
        expected = in_torch(module, u, torch.tensor([0.3]), None, past.rewind())
        for ours, theirs in zip(core.posterior(u, 0.3, None, memory), expected, strict=True):
            assert_close(ours, theirs)


def test_without_a_label_it_is_speech(isa: str) -> None:
    core = CompactCore(network("joint"))
    u, level = blocks(network("joint"), 1, [4])[0], torch.tensor([0.2])
    unlabelled = core.posterior(u, level, None, CorePast())[0]
    torch.testing.assert_close(unlabelled, core.posterior(u, level, torch.tensor([1]), CorePast())[0], rtol=0, atol=0)
    assert not torch.equal(unlabelled, core.posterior(u, level, torch.tensor([0]), CorePast())[0])


def test_every_number_is_written(isa: str) -> None:
    core = CompactCore(network("odd sizes"))
    u = blocks(network("odd sizes"), 2, [3])[0].numpy()
    memory = np.zeros((2, core.network.memory_size), np.float32)
    clean, variance = np.full((2, 24, 3), np.nan, np.complex64), np.full((2, 24, 3), np.nan, np.float32)
    core.network.step(u, np.full(2, 0.3, np.float32), None, memory, clean, variance, 1)
    assert np.isfinite(clean).all()
    assert np.isfinite(memory).all()
    assert (variance > 0).all()


def test_not_a_number_stays_in_its_item(isa: str) -> None:
    module = network("whole panels")
    core = CompactCore(module)
    u = blocks(module, 3, [4])[0]
    expected = core.posterior(u, torch.full((3,), 0.3), None, CorePast())[0]
    u[1, 5, 2] = torch.nan
    actual = core.posterior(u, torch.full((3,), 0.3), None, CorePast())[0]
    torch.testing.assert_close(actual[::2], expected[::2], rtol=0, atol=0)
    assert actual[1].isnan().any()
    again = core.posterior(u[::2].contiguous(), torch.full((2,), 0.3), None, CorePast())[0]  # the same scratch
    torch.testing.assert_close(again, expected[::2], rtol=0, atol=0)


def streamed(core: CompactCore, inputs: list[Tensor], level: float) -> Tensor:
    memory = CorePast()
    levels = torch.full((inputs[0].shape[0],), level)
    return torch.cat([core.posterior(u, levels, None, memory)[0] for u in inputs], dim=-1)


def test_in_parallel_as_alone(isa: str) -> None:
    """Four callers at once, each with its own memory and noise level: the same bits; so for threads of the core."""
    module = network("whole panels")
    core, shared = CompactCore(module), CompactCore(module, threads=3)
    cases = [(blocks(module, 2, [4, 2] * 10, seed), 0.1 * (seed + 1)) for seed in range(4)]
    alone = [streamed(CompactCore(module), *case) for case in cases]
    for made in (core, shared):
        with ThreadPoolExecutor(4) as pool:
            together = [pool.submit(streamed, made, *case) for case in cases]
        for ours, expected in zip(together, alone, strict=True):
            torch.testing.assert_close(ours.result(), expected, rtol=0, atol=0)


def test_many_noise_levels() -> None:
    """More than are kept at once."""
    module = network("joint")
    u, core = blocks(module, 1, [2])[0], CompactCore(module)
    levels = torch.linspace(0.01, 3, 200).tolist()
    first = [core.posterior(u, torch.tensor([a]), None, CorePast())[0] for a in levels]
    for a, expected in zip(levels, first, strict=True):
        torch.testing.assert_close(core.posterior(u, torch.tensor([a]), None, CorePast())[0], expected, rtol=0, atol=0)


def test_memories_join_and_part() -> None:
    """A batch of streams, one of which starts later, equals each alone."""
    module = network("odd sizes")
    core = CompactCore(module)
    first, second = blocks(module, 2, [3, 3, 3]), blocks(module, 1, [3, 3], seed=1)
    expected = streamed(core, first, 0.3), streamed(core, second, 0.3)
    memories, sizes = [CorePast(), CorePast()], [2, 1]
    parts = [core.posterior(first[0], torch.full((2,), 0.3), None, memories[0])[0]], []
    for u, v in zip(first[1:], second, strict=True):
        together = CorePast.joined(memories, sizes)
        clean = core.posterior(torch.cat([u, v]), torch.full((3,), 0.3), None, together.rewind())[0]
        together.give_back(memories, sizes)
        for part, own in zip(parts, clean.split(sizes), strict=True):
            part.append(own)
    for part, whole in zip(parts, expected, strict=True):
        torch.testing.assert_close(torch.cat(part, dim=-1), whole, rtol=0, atol=0)
    assert CorePast.joined([CorePast(), CorePast()], sizes).kept == []


@pytest.mark.usefixtures("nan_filled_memory")
@pytest.mark.parametrize("name", NAMES)
def test_a_copy_goes_on_and_the_original_stays(name: str) -> None:
    """What makes a block repeatable: the same frames after the original give the same again."""
    module = network(name)
    core, memory, level = CompactCore(module), CorePast(), torch.tensor([0.3, 0.1])
    u, v = blocks(module, 2, [4, 3])
    core.posterior(u, level, None, memory)
    before, taken = memory.kept[0].clone(), memory.copy()
    expected = core.posterior(v, level, None, taken)
    assert torch.equal(memory.kept[0], before)
    again = core.posterior(v, level, None, memory)
    for ours, theirs in zip((*again, *memory.kept), (*expected, *taken.kept), strict=True):
        assert torch.equal(ours, theirs)


def test_goes_on_from_what_was_kept() -> None:
    module = network("odd sizes")
    core, memory, level = CompactCore(module), CorePast(), torch.tensor([0.3])
    u, v = blocks(module, 1, [3, 3])
    core.posterior(u, level, None, memory)
    restored = CorePast(memory.kept)
    expected = core.posterior(v, level, None, memory)[0]
    torch.testing.assert_close(core.posterior(v, level, None, restored)[0], expected, rtol=0, atol=0)


def test_errors() -> None:
    module = network("joint")
    core = CompactCore(module)
    u, level = blocks(module, 2, [3])[0], torch.tensor([0.1, 0.2])
    with pytest.raises(UdseError, match=r"noisy must have shape \(2, 32, 3\); got \(2, 31, 3\)"):
        core.posterior(u[:, 1:], level, None, CorePast())
    with pytest.raises(UdseError, match=r"noise_level must have shape \(2,\); got \(2, 3\)"):
        core.posterior(u, level[:, None].expand(2, 3), None, CorePast())
    with pytest.raises(UdseError, match=r"noise_level must be positive and finite; got -0\.1"):
        core.posterior(u, -level, None, CorePast())
    with pytest.raises(UdseError, match=r"label must be 0 \(noise\) or 1 \(speech\); got 2"):
        core.posterior(u, level, torch.tensor([0, 2]), CorePast())
    with pytest.raises(UdseError, match=r"memory must have shape \(2, \d+\); got \(1, 3\)"):
        core.posterior(u, level, None, CorePast([torch.zeros(1, 3)]))
    with pytest.raises(UdseError, match="expected a memory of a causal network, and none of a centred one"):
        core.posterior(u, level, None)
    weights = {name: tensor.numpy() for name, tensor in (*module.named_parameters(), *module.named_buffers())}
    with pytest.raises(UdseError, match="expected 1 dilations; got 2"):
        _core.CompactNetwork(weights, [1, 2])
    with pytest.raises(UdseError, match="dilations must be 1 or more; got 0"):
        _core.CompactNetwork(weights, [0])
    with pytest.raises(UdseError, match=r"embed\.0\.bias must have shape \(20\); got \(19\)"):
        _core.CompactNetwork({**weights, "embed.0.bias": weights["embed.0.bias"][1:]}, [1])
    del weights["to_frames.bias"]
    with pytest.raises(UdseError, match=r"the weights have no to_frames\.bias"):
        _core.CompactNetwork(weights, [1])


@pytest.mark.parametrize(
    ("backend", "memory"), [(None, CorePast), ("", CorePast), ("cpp", CorePast), ("reference", LayerPast)]
)
def test_an_empty_variable_leaves_streams_to_the_core(
    backend: str | None, memory: type, tiny_checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """UDSE_BACKEND= is not set: streams in torch would be slower, and nobody would be told."""
    monkeypatch.delenv("UDSE_BACKEND", raising=False)
    if backend is not None:
        monkeypatch.setenv("UDSE_BACKEND", backend)
    assert type(load_network(tiny_checkpoints["causal"]).new_past()) is memory

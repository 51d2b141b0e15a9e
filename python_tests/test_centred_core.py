"""Networks that see the future in the C++ core, whole or in pieces of their frames, against the networks in torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import udse_fast
from small_networks import SIZES, small_network
from udse_fast.networks.compact import Compact
from udse_fast.networks.compact_core import CompactCore
from udse_fast.networks.compact_posterior import CompactPosterior
from udse_fast.networks.conditions import Conditions
from udse_fast.networks.estimate import Estimate
from udse_fast.networks.score_network import ScoreNetwork

SDE = {"name": "ouve", "gamma": 1.5, "sigma_min": 0.05, "sigma_max": 0.5}
LENGTHS = [1, 2, 3, 9, 70, 131]
THREADS = [2, 4]


def states(module: Compact, batch: int, frames: int) -> Tensor:
    generator = torch.Generator().manual_seed(frames)
    bins = module.band.shape[2] * module.stem
    return 0.3 * torch.randn(batch, bins, frames, generator=generator, dtype=torch.complex64)


def variances(like: Tensor) -> Tensor:
    """Of all sizes."""
    return 10 ** (1 - 6 * torch.rand(like.shape, generator=torch.Generator().manual_seed(1)))


def planes(x: Tensor) -> Tensor:
    return torch.view_as_real(x).movedim(-1, 1)


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    """The variances span many decades, and are exponentials: each is right by itself."""
    assert ours.shape == theirs.shape
    if ours.is_complex():
        assert float((ours - theirs).abs().max()) < 1e-5 * float(theirs.abs().max())
    else:
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=0)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("joint", [False, True])
def test_equals_the_network_in_torch(isa: str, size: str, joint: bool) -> None:
    module = small_network(Compact, size, joint=joint)
    core, level = CompactCore(module), torch.tensor([0.02, 0.3, 4.0])
    label = torch.tensor([1, 0, 1]) if joint else None
    for frames in LENGTHS:
        u = states(module, 3, frames)
        clean, variance = module.posterior(planes(u), level, Conditions(label=label))
        ours = core.posterior(u, level, label)
        assert_close(ours[0], torch.view_as_complex(clean.movedim(1, -1).contiguous()))
        assert_close(ours[1], variance)


@pytest.mark.parametrize("size", SIZES)
def test_equals_the_posterior_network_in_torch(isa: str, size: str) -> None:
    module = small_network(CompactPosterior, size)
    core = CompactCore(module)
    for frames in LENGTHS:
        x = states(module, 2, frames)
        V = variances(x)
        for ours, theirs in zip(core.say(x, V), Estimate.of(module.say(planes(x), V), x), strict=True):
            assert ours is not None
            assert theirs is not None
            assert_close(ours, theirs)


@pytest.mark.parametrize("name", ["speech", "posterior"])
def test_a_piece_of_a_signal_is_as_the_whole_to_the_bit(isa: str, name: str) -> None:
    """Of the built-in networks, which look 59 frames around."""
    core = CompactCore(udse_fast.load_network(name).module)

    def said(x: Tensor) -> list[Tensor | None]:
        return list(core.say(x, variances(x)) if name == "posterior" else core.posterior(x, 0.2, None))

    for frames in (63, 150):
        x = states(core._module, 2, frames)
        core.threads = 1
        expected = said(x)
        for count in THREADS:
            core.threads = count
            assert all(torch.equal(ours, theirs) for ours, theirs in zip(said(x), expected, strict=True))
            alone = said(x[:1].contiguous())
            if name == "speech":  # variances of another shape are others
                assert all(torch.equal(ours, theirs[:1]) for ours, theirs in zip(alone, expected, strict=True))


def test_a_frame_depends_on_those_that_the_kernels_reach_and_no_others(isa: str) -> None:
    """Nor on what was computed before in the same memory."""
    module = small_network(Compact, "whole panels")
    core, u = CompactCore(module, threads=4), states(module, 1, 150)
    expected = core.posterior(u, 0.3, None)[0]
    u[0, 5, 75] = torch.nan
    reach = 1 + 4 + 2 * (1 + 2) + 4 + 1  # first convolution, two levels down, over time, up, the last convolution
    spoilt = core.posterior(u, 0.3, None)[0][0].isnan().any(0).nonzero().flatten().tolist()
    assert spoilt == list(range(75 - reach, 75 + reach + 1))
    u[0, 5, 75] = 0
    after = core.posterior(u, 0.3, None)[0]
    assert torch.equal(after[..., : 75 - reach], expected[..., : 75 - reach])
    assert not after.isnan().any()


def score_network(kind: type[Compact], **arguments: Any) -> ScoreNetwork:
    return ScoreNetwork(
        small_network(kind, "whole panels", **arguments), {"sde": SDE, "architecture": {}, "stft": {"n_fft": 62}}
    )


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_scores_come_from_the_core(threads: None, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same as from torch, which differs in its last bits."""
    net = score_network(Compact, joint=True)
    state = states(net.module, 2, 90).to(dtype)
    told, time = Conditions(label=torch.tensor([0, 1])), torch.tensor([0.1, 0.9])
    ours = net.evaluate(state, time, told, posterior_variance=True)
    monkeypatch.setenv("UDSE_BACKEND", "reference")
    theirs = net.evaluate(state, time, told, posterior_variance=True)
    for a, b in zip(ours, theirs, strict=True):
        assert a is not None
        assert b is not None
        assert a.dtype == b.dtype
        assert_close(a, b)
        assert not torch.equal(a, b)


def test_a_state_is_told_as_to_the_network_in_torch(threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    net = score_network(CompactPosterior)
    x = states(net.module, 2, 90)
    told = Conditions(noisy=x, noise_variance=variances(x))
    for level in (0.2, 1.5):  # below the highest level the state counts, above it does not
        state = x + level * states(net.module, 2, 91)[..., 1:]
        ours = net.say(state, level, told)
        with monkeypatch.context() as patched:
            patched.setenv("UDSE_BACKEND", "reference")
            theirs = net.say(state, level, told)
        for a, b in zip(ours, theirs, strict=True):
            assert a is not None
            assert b is not None
            assert_close(a, b)
        assert not torch.equal(ours.speech, theirs.speech)


def test_gradients_go_through_torch(threads: None) -> None:
    net = score_network(Compact)
    state = states(net.module, 1, 40).requires_grad_()
    net.evaluate(state, 0.4)[0].abs().sum().backward()
    assert state.grad is not None
    assert state.grad.abs().sum() > 0


def test_other_precisions_and_causal_networks_are_not_of_the_core() -> None:
    assert score_network(Compact).in_core
    assert not score_network(Compact).to(precision="bfloat16").in_core
    assert not score_network(Compact, causal_block=2).in_core

"""One call of the built-in networks, in the C++ core and in torch: on a block of K frames, and on a whole signal.

    pytest benchmarks/test_compact_network.py --benchmark-columns=min,median,rounds

Blocks on one thread, with every instruction set of this processor; signals of 4 and 8 s on one thread and on two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import udse_fast
from udse_fast import _core
from udse_fast.errors import UdseError
from udse_fast.networks.compact import Compact
from udse_fast.networks.compact_core import CompactCore
from udse_fast.networks.conditions import NOTHING
from udse_fast.networks.past import CorePast, LayerPast

LEVEL = torch.tensor([0.3])


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield
    torch.set_num_threads(before)


@pytest.fixture(params=Compact.causal_blocks)
def block(request: pytest.FixtureRequest, benchmark: Any) -> Tensor:
    """u (1, F, K) complex64."""
    benchmark.group = f"causal network, {request.param} frames"
    return 0.4 * torch.randn(1, 256, request.param, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def network() -> Compact:
    return udse_fast.load_network("causal").module


def real_pair(u: Tensor) -> Tensor:
    """(1, 2, F, K), as the network in torch takes it."""
    return torch.view_as_real(u).permute(0, 3, 1, 2).contiguous()


def expected(network: Compact, u: Tensor) -> Tensor:
    network.set_causal_block(u.shape[-1])
    clean = network.posterior(real_pair(u), LEVEL, NOTHING, LayerPast())[0]
    return torch.complex(clean[:, 0], clean[:, 1])


def measure(benchmark: Any, call: Callable[[], tuple[Tensor, Tensor]], rounds: int = 100) -> None:
    clean, variance = benchmark.pedantic(call, rounds=rounds, warmup_rounds=rounds // 10)
    assert clean.isfinite().all()
    assert (variance > 0).all()


@pytest.mark.parametrize("isa", ["scalar", "avx2", "avx512"])
def test_core(benchmark: Any, network: Compact, block: Tensor, isa: str) -> None:
    before = _core.isa()
    try:
        _core.set_isa(isa)
    except UdseError as error:
        pytest.skip(str(error))
    core, memory = CompactCore(network), CorePast()
    torch.testing.assert_close(
        core.posterior(block, LEVEL, None, CorePast())[0], expected(network, block), rtol=0, atol=1e-5
    )
    measure(benchmark, lambda: core.posterior(block, LEVEL, None, memory))
    _core.set_isa(before)


def test_torch(benchmark: Any, network: Compact, block: Tensor) -> None:
    past = LayerPast()
    network.set_causal_block(block.shape[-1])
    u = real_pair(block)
    measure(benchmark, lambda: network.posterior(u, LEVEL, NOTHING, past.rewind()))


@pytest.mark.parametrize("frames", [252, 504])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("where", ["core", "torch"])
def test_whole_signal(benchmark: Any, frames: int, threads: int, where: str) -> None:
    benchmark.group = f"speech prior, {frames} frames, {threads} threads"
    torch.set_num_threads(threads)
    network = udse_fast.load_network("speech").module
    u = 0.4 * torch.randn(1, 256, frames, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    pair, core = real_pair(u), CompactCore(network, threads)
    clean = network.posterior(pair, LEVEL, NOTHING)[0]
    torch.testing.assert_close(core.posterior(u, LEVEL, None)[0], torch.complex(clean[:, 0], clean[:, 1]))
    calls = {"core": lambda: core.posterior(u, LEVEL, None), "torch": lambda: network.posterior(pair, LEVEL, NOTHING)}
    measure(benchmark, calls[where], rounds=20)
    torch.set_num_threads(1)

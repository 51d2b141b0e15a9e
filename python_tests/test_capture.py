"""Whole passes on tensors without numbers: nothing waits for the device or crosses over to it; launches are counted.

CUDA graphs refuse what reads from the device, and copies from the host. On a CPU both look like any other operation; on
the meta device they cannot be made, or are seen.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from udse_fast.backends import cuda_library
from udse_fast.backends import dispatch as backends
from udse_fast.checkpoints.checkpoint import load_network
from udse_fast.kernels import fused_layers
from udse_fast.kernels import step as step_kernels
from udse_fast.networks.ncsnpp import PUBLISHED_SIZES, NCSNpp
from udse_fast.networks.optimised import fused_ncsnpp
from udse_fast.networks.score_network import ScoreGraph, ScoreNetwork
from udse_fast.prior import NetworkPrior
from udse_fast.sampling.noise_models import NMF
from udse_fast.sampling.passes import run
from udse_fast.sampling.posterior import ReversePass, SamplerSettings
from udse_fast.sampling.samplers import SAMPLERS
from udse_fast.sampling.sde import OUVE

META = torch.device("meta")
HAS_TRITON = importlib.util.find_spec("triton") is not None
SAMPLED = [name for name, row in SAMPLERS.items() if not row.told_recording]
VIEWS = (
    "view as_strided slice select unsqueeze squeeze permute transpose t expand split split_with_sizes chunk unbind "
    "detach alias view_as_real view_as_complex _unsafe_view empty empty_like new_empty empty_strided lift_fresh "
    "new_empty_strided _reshape_alias real imag"
)
"""What launches nothing."""


class Watched(TorchDispatchMode):
    """Counts what would be launched on a GPU, and refuses what a capture refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.launched = Counter[str]()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        result = function(*args, **kwargs or {})
        if name == "constant_pad_nd" and not any(args[1]):
            result = args[0].clone()  # as on a device: the layout stays
        if name == "convolution" and args[1].is_contiguous(memory_format=torch.channels_last):
            result = result.contiguous(memory_format=torch.channels_last)  # as cuDNN gives it
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        made = [x for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        # a number of the host is handed over by value, when it is one; all else is a copy
        assert not any(x.device != META and x.ndim for x in given + made), f"{name}: a tensor of the host"
        if name in ("_to_copy", "copy_"):
            assert all(x.device == META for x in given + made), f"{name}: from or to the host"
        if name not in VIEWS.split() and any(x.device == META for x in made):
            self.launched[name] += 1
        return result


class NumbersOfTheHost(TorchFunctionMode):
    """Refuses tensors on the device that are made of numbers, which are copied there: no operation of the above."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **kwargs or {})
        if function in (torch.tensor, torch.as_tensor) and not isinstance(args[0], torch.Tensor):
            assert result.device != META, f"{function.__name__}: numbers of the host"
        return result


def without_memory(monkeypatch: pytest.MonkeyPatch, name: str, watched: Watched) -> ModuleType:
    """The adapters of a backend with no kernels behind them; returns those of the layers."""

    def launch(operation: Any, *arguments: Any, **keywords: Any) -> None:
        watched.launched[operation if isinstance(operation, str) else operation.fn.__name__] += 1

    class Library:
        call = staticmethod(launch)

    package = "udse_fast.kernels"
    folders = ("complex_normal", "step", "nmf_is", "fused_layers")
    modules = [importlib.import_module(f"{package}.{folder}.{backends.MODULES[name]}") for folder in folders]
    for module in modules:
        if name == "triton":
            monkeypatch.setattr(module, "launch", launch)
        else:
            monkeypatch.setattr(module, "cuda_library", lambda: Library)
    for module in (backends, step_kernels):
        monkeypatch.setattr(module, "chosen_backend", lambda *_: name)
    monkeypatch.setattr(fused_layers, "_module", lambda x: modules[-1])
    monkeypatch.setattr(cuda_library.CudaLibrary, "call", launch)
    return modules[-1]


def published(joint: bool) -> ScoreNetwork:
    """NCSN++ as published, fused, without weights."""
    module = NCSNpp(**PUBLISHED_SIZES["ncsnpp-5m-joint" if joint else "ncsnpp-5m"])
    stft = {"n_fft": 510, "hop_length": 128, "window": "hann", "sample_rate": 16000}
    config = {"architecture": {"name": "ncsnpp"}, "sde": OUVE().config, "stft": stft}
    network = ScoreNetwork(module, config)
    network.graph = ScoreGraph(fused_ncsnpp(module), network.sde)
    return on_meta(network.to(precision="bfloat16"))


def on_meta(network: ScoreNetwork) -> ScoreNetwork:
    """The network without its numbers."""
    network.graph.to(META)
    network.plain.to(META)
    network.device = META
    return network


@pytest.mark.parametrize("name", ["cuda", pytest.param("triton", marks=pytest.mark.needs("triton"))])
@pytest.mark.parametrize("sampler", SAMPLED)
def test_nothing_in_a_pass_waits_or_crosses(
    name: str, sampler: str, tiny_checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    watched, row = Watched(), SAMPLERS[sampler]
    without_memory(monkeypatch, name, watched)
    if row.network == "posterior":
        network = on_meta(load_network("posterior"))
    elif "ddrm" in sampler:  # asks for the variance of a compact network
        network = on_meta(load_network(tiny_checkpoints["speech"]))
    else:
        network = published(joint=row.noise == "score")
    bins, frames = 256, 64
    mixture = torch.empty(bins, frames, dtype=torch.complex64, device=META)
    factors = torch.empty(bins, 4, device=META), torch.empty(4, frames, device=META)
    settings = SamplerSettings(sampler, steps=3, samples=2, em_rounds=2, sde=network.sde)
    model = NMF(*factors) if row.noise == "nmf" else None
    posterior = on_meta(load_network("posterior")) if row.likelihood.needs_posterior_network else None
    start = ReversePass(NetworkPrior(network, posterior=posterior), settings, noise_model=model)
    with torch.no_grad(), watched, NumbersOfTheHost():
        outcome = run(start(mixture, torch.empty((), dtype=torch.int64, device=META), *(factors if model else ())))
    assert all(state.device == META and state.shape == (2, bins, frames) for state in outcome.states)
    assert outcome.calls > 0


@pytest.mark.parametrize(
    ("name", "most"), [("cuda", 290), pytest.param("triton", 310, marks=pytest.mark.needs("triton"))]
)
def test_a_call_is_few_launches_and_copies_no_map(name: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 2 us each, and most maps of the deeper levels take a GPU less than that."""
    watched = Watched()
    without_memory(monkeypatch, name, watched)
    network = published(joint=False)
    with torch.no_grad(), watched:
        network.score(torch.empty(4, 256, 256, dtype=torch.complex64, device=META), torch.empty(4, device=META))
    assert watched.launched["convolution"] > 40
    assert watched.launched["clone"] <= 2, watched.launched
    assert watched.launched.total() <= most, watched.launched


def test_a_copy_from_the_host_is_seen() -> None:
    """That the tests above can fail."""
    x = torch.empty(3, device=META)
    for wrong in (
        lambda: x + torch.ones(3).to(META),
        lambda: x.copy_(torch.ones(3)),
        lambda: torch.as_tensor(math.pi, device=META) * x,
        lambda: x.sum().item(),
    ):
        with pytest.raises((AssertionError, RuntimeError)), Watched(), NumbersOfTheHost():
            wrong()

"""The optimised network is the plain one: within rounding in float32, and on recorded outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from udse_fast.backends import dispatch as backends
from udse_fast.checkpoints.checkpoint import load_network
from udse_fast.errors import UdseError
from udse_fast.kernels.convolution import reference as convolution_layers
from udse_fast.kernels.fused_layers import reference
from udse_fast.networks import optimised
from udse_fast.networks.ncsnpp import Downsample, NCSNpp, upsample
from udse_fast.networks.optimised import (
    CapturedGraph,
    FusedResidualBlock,
    FusedVideoFusion,
    fused_ncsnpp,
    optimise,
    optimised_or_plain,
)
from udse_fast.networks.score_network import ScoreNetwork
from udse_fast.sampling.sde import OUVE

GOLDEN = Path(__file__).parent / "golden" / "networks"
AUDIO_VISUAL = GOLDEN.with_name("networks_av")
TOLERANCE = 1e-4  # relative, float32: constants are folded into weights, sums are taken in another order
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def no_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU, too, float32 means float32: cuDNN's default for convolutions keeps 10 bits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(autouse=True)
def nothing_tried_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test found to work must not be believed in the next."""
    monkeypatch.setattr(optimised, "_worked", set())


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.cpu() - b.cpu()).norm() / b.cpu().norm())


def network_of(joint: bool, ch_mult: tuple[int, ...] = (1, 2)) -> ScoreNetwork:
    """Small, with weights that all matter (a fresh one starts its blocks at zero)."""
    torch.manual_seed(0)
    module = NCSNpp(nf=8, ch_mult=ch_mult, joint=joint)
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    config = {
        "architecture": {"name": "ncsnpp", "joint": joint},
        "sde": OUVE().config,
        "stft": {"n_fft": 63, "hop_length": 16, "window": "hann", "sample_rate": 16000},
    }
    return ScoreNetwork(module, config).to(DEVICE)


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("per_frame", [False, True])
def test_fused_ncsnpp_is_the_plain_one(joint: bool, per_frame: bool) -> None:
    network = network_of(joint)
    before = {name: value.clone() for name, value in network.module.state_dict().items()}
    fused = optimise(network)
    assert any(isinstance(module, FusedResidualBlock) for module in fused.graph.modules())
    state = torch.randn(2, 32, 50, dtype=torch.complex64)
    time, label = torch.tensor([0.8, 0.3]), torch.tensor([0, 1])
    if per_frame:
        time = time[:, None] * torch.linspace(0.5, 1, 50)
    expected = network.score(state, time, label)
    assert relative(fused.score(state, time, label), expected) < TOLERANCE
    assert relative(network.score(state, time, label), expected) == 0
    for name, value in network.module.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("name", ["speech", "joint"])
def test_recorded_outputs_hold(name: str) -> None:
    """The published code's own outputs, of published checkpoints' form."""
    data = np.load(GOLDEN / f"{name}_io.npz")
    network = optimise(load_network(GOLDEN / f"{name}.ckpt", DEVICE))
    state, time = torch.from_numpy(data["state"]), torch.from_numpy(data["t"])
    label = torch.from_numpy(data["label"]) if "label" in data else None
    assert relative(network.score(state, time, label), torch.from_numpy(data["score"])) < TOLERANCE


def test_the_audio_visual_network_holds_its_recorded_outputs() -> None:
    data = {name: torch.from_numpy(value) for name, value in np.load(AUDIO_VISUAL / "av_io.npz").items()}
    network = optimise(load_network(AUDIO_VISUAL / "av.ckpt", DEVICE))
    assert any(isinstance(module, FusedVideoFusion) for module in network.graph.modules())
    score = network.score(data["a_state"], data["a_t"], video=data["a_video"])
    assert relative(score, data["a_score"]) < TOLERANCE


def test_resampling_is_that_of_the_plain_network() -> None:
    x = torch.randn(2, 3, 6, 10)
    torch.testing.assert_close(reference.resample(x, True), upsample(x))
    torch.testing.assert_close(reference.resample(x, False), Downsample()(x))


def test_a_product_is_added_where_the_map_lies() -> None:
    """The map is as large as all that the layer reads: a copy of it would show in the time of a call."""
    generator = torch.Generator().manual_seed(1)
    x, onto = (torch.randn(2, channels, 5, 7, generator=generator) for channels in (6, 4))
    x, onto = x.to(memory_format=torch.channels_last), onto.to(memory_format=torch.channels_last)
    weight = torch.randn(4, 6, generator=generator)
    expected = onto + torch.nn.functional.conv2d(x, weight[:, :, None, None])
    result = convolution_layers.product(x, weight, onto)
    torch.testing.assert_close(result, expected)
    assert result.data_ptr() == onto.data_ptr()


def test_all_published_layers_are_fused() -> None:
    with torch.device("meta"):
        plain = NCSNpp(nf=8, ch_mult=(1, 1, 1, 1))
    convolutions = [m for m in fused_ncsnpp(plain).modules() if isinstance(m, torch.nn.Conv2d)]
    assert not any(isinstance(m, torch.nn.GroupNorm) for m in fused_ncsnpp(plain).modules())
    assert sum(m.bias is None for m in convolutions) >= 2 * 16


def test_a_torchscript_file_is_refused() -> None:
    network = network_of(False)
    network.scripted = True
    with pytest.raises(UdseError, match="TorchScript"):
        optimise(network)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_works_is_used(precision: str) -> None:
    network = network_of(False)
    state = torch.randn(1, 32, 20, dtype=torch.complex64)
    expected = network.score(state, 0.5)
    fast = optimised_or_plain(network, precision)
    assert any(isinstance(module, FusedResidualBlock) for module in fast.graph.modules())
    assert fast.precision == precision
    assert relative(fast.score(state, 0.5), expected) < {"float32": TOLERANCE, "bfloat16": 0.1}[precision]


def test_what_worked_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds of every start on a GPU; another architecture or precision has kernels of its own."""
    tried = list[str]()
    monkeypatch.setattr(optimised, "_try_out", lambda fast, plain, tolerance: tried.append(fast.precision))
    for _ in range(3):
        optimised_or_plain(network_of(False), "float32")
    assert tried == ["float32"]
    optimised_or_plain(network_of(False), "bfloat16")
    assert tried == ["float32", "bfloat16"]
    optimised_or_plain(network_of(True), "float32")
    assert tried == ["float32", "bfloat16", "float32"]


def test_lengths_that_are_padded_alike_share_a_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a folder of files is never replayed, and cuDNN measures its algorithms for each of them."""
    network = network_of(False, ch_mult=(1, 1, 2))
    fast = optimise(network)
    monkeypatch.setattr(CapturedGraph, "_replayed_on", lambda self, device: True)
    forms = set[Any]()

    def called(self: Any, function: Any, *inputs: Any, key: Any) -> Any:
        forms.add((key, *(x.shape for x in inputs)))
        return function(*inputs)

    monkeypatch.setattr(optimised.Replayed, "__call__", called)
    multiple = network.frame_multiple
    assert multiple > 2
    for frames in (1, multiple - 1, multiple):
        state, per_frame = torch.randn(2, 32, frames, dtype=torch.complex64), torch.rand(2, frames) * 0.5 + 0.3
        for time in (0.5, per_frame):
            assert relative(fast.score(state, time), network.score(state, time)) < TOLERANCE
    assert len(forms) == 2


def _no_compiler(*arguments: object, **keywords: object) -> torch.Tensor:
    raise RuntimeError("Failed to find C compiler\n(more lines)")


def _wrong(h: torch.Tensor, x: torch.Tensor, bias: torch.Tensor, factor: float) -> tuple[torch.Tensor, None]:
    return h, None


def _wrong_in_one_item(*arguments: Any) -> tuple[torch.Tensor, None]:
    h = reference.residual_sum(*arguments)
    h[1:, :, :2] = 0
    return h, None


def _wrong_far_on(*arguments: Any) -> tuple[torch.Tensor, None]:
    h = reference.residual_sum(*arguments)
    h[..., 240:] *= 0.9
    return h, None


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (_no_compiler, "Failed to find C compiler$"),
        (_wrong, "fused layers differ"),
        (_wrong_in_one_item, "fused layers differ"),
        (_wrong_far_on, "fused layers differ"),
    ],
)
def test_what_does_not_work_here_falls_back_with_one_warning(
    broken: Any, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convolution_layers, "measured_sum", broken)
    network = network_of(False)
    with pytest.warns(RuntimeWarning, match=reason) as warned:
        plain = optimised_or_plain(network, "float32")
    assert plain is network
    assert len(warned) == 1


def test_cuda_kernels_are_used_where_triton_does_not_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a warning, and by the updates of the samplers, too."""
    tried = list[str]()
    monkeypatch.setattr(backends, "_disabled", {})
    monkeypatch.delenv("UDSE_BACKEND", raising=False)
    monkeypatch.setattr(optimised, "backend_of", lambda device: "cuda" if backends._disabled else "triton")

    def measured_sum(*arguments: Any) -> tuple[torch.Tensor, None]:
        tried.append("cuda" if backends._disabled else "triton")
        return (_no_compiler() if tried[-1] == "triton" else reference.residual_sum(*arguments)), None

    monkeypatch.setattr(optimised, "measured_sum", measured_sum)
    try:
        fast = optimised_or_plain(network_of(False), "float32")
        assert any(isinstance(module, FusedResidualBlock) for module in fast.graph.modules())
        assert tried[:2] == ["triton", "cuda"]
        assert set(tried[1:]) == {"cuda"}
        assert backends._state("triton", 0) == (False, "its kernels do not work here: Failed to find C compiler")
    finally:
        backends._state.cache_clear()


def test_a_wrong_switch_is_an_error_not_a_slower_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UDSE_CONVOLUTION", "mine")
    with pytest.raises(UdseError, match="UDSE_CONVOLUTION must be one of own, cudnn, auto; got 'mine'"):
        optimised_or_plain(network_of(False), "float32")


def test_a_torchscript_file_stays_as_it_is() -> None:
    network = network_of(False)
    network.scripted = True
    assert optimised_or_plain(network, "float32") is network


@pytest.mark.parametrize("name", ["speech", "joint", "causal"])
def test_compact_networks_tell_the_same(tiny_checkpoints: dict[str, Path], name: str) -> None:
    """Calls of every form, the first and a later one, which a GPU replays."""
    plain = load_network(tiny_checkpoints[name], DEVICE)
    fast = optimise(plain)
    for call in range(3):
        generator = torch.Generator().manual_seed(call)
        state = torch.randn(2, 256, 12, dtype=torch.complex64, generator=generator)
        per_frame = torch.rand(2, 12, generator=generator) * 0.5 + 0.3
        for time in (torch.tensor([0.4, 0.7]), per_frame):
            assert relative(fast.score(state, time), plain.score(state, time)) < TOLERANCE
            for value, expected in zip(
                fast.evaluate(state, time, posterior_variance=True),
                plain.evaluate(state, time, posterior_variance=True),
                strict=True,
            ):
                assert relative(value, expected) < TOLERANCE

"""NCSN++ and the score network against published shapes, textbook forms of its parts, closed-form scores."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from udse_fast.errors import UdseError
from udse_fast.networks.base import Network
from udse_fast.networks.conditions import Conditions
from udse_fast.networks.ncsnpp import PUBLISHED_SIZES, Attention, Downsample, NCSNpp, upsample
from udse_fast.networks.score_network import ScoreNetwork
from udse_fast.sampling.sde import OUVE, SDE, VE

GOLDEN = Path(__file__).parent / "golden" / "networks"
PUBLISHED_NAMES = {
    "ncsnpp-5m": ("ncsnpp6M", 5.2),
    "ncsnpp-5m-joint": ("jointncsnpp6M", 5.9),
    "ncsnpp-28m": ("ncsnpp28M", 27.7),
}
ROUNDING = 1e-5  # float32, some 20 layers


def config_of(module: nn.Module, bins: int, **architecture: object) -> dict:
    return {
        "architecture": {"name": "test", **architecture},
        "sde": OUVE().config,
        "stft": {"n_fft": 2 * (bins - 1) + 1, "hop_length": 128, "window": "hann", "sample_rate": 16000},
    }


def tiny(joint: bool = False) -> ScoreNetwork:
    """NCSN++ of two levels with weights that all matter (a fresh one starts its blocks at zero)."""
    torch.manual_seed(0)
    module = NCSNpp(nf=8, ch_mult=(1, 2), joint=joint)
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return ScoreNetwork(module, config_of(module, bins=32, joint=joint))


def state_of(batch: int = 2, bins: int = 32, frames: int = 64) -> torch.Tensor:
    return torch.randn(batch, bins, frames, dtype=torch.complex64, generator=torch.Generator().manual_seed(1))


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("name", PUBLISHED_SIZES)
def test_keys_and_shapes_are_the_published_ones(name: str) -> None:
    published, millions = PUBLISHED_NAMES[name]
    with torch.device("meta"):
        network = NCSNpp(**PUBLISHED_SIZES[name])
    shapes = {f"dnn.{key}": list(value.shape) for key, value in network.state_dict().items()}
    expected = json.loads((GOLDEN / "state_dict_shapes.json").read_text())[published]
    assert shapes == expected
    assert list(shapes) == list(expected)  # the EMA weights of a checkpoint have no names, only this order
    assert sum(parameter.numel() for parameter in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize("shape", [(4, 4), (6, 10)])
def test_resampling_is_a_zero_padded_binomial_filter(shape: tuple[int, int]) -> None:
    x = np.random.default_rng(0).standard_normal(shape)
    taps = np.array([1, 3, 3, 1]) / 8

    def filtered(y: np.ndarray) -> np.ndarray:
        for axis in (0, 1):
            y = np.apply_along_axis(np.convolve, axis, y, taps)
        return y

    zeros_between = np.zeros((2 * shape[0], 2 * shape[1]))
    zeros_between[::2, ::2] = 4 * x
    doubled = filtered(zeros_between)[1:-2, 1:-2]
    halved = filtered(x)[2:-1:2, 2:-1:2]

    tensor = torch.tensor(x, dtype=torch.float32).expand(1, 3, *shape)
    np.testing.assert_allclose(upsample(tensor)[0, 1], doubled, atol=1e-6)
    np.testing.assert_allclose(Downsample()(tensor)[0, 1], halved, atol=1e-6)


def test_attention_is_softmax_attention() -> None:
    torch.manual_seed(0)
    attention = Attention(16)
    x = torch.randn(2, 16, 4, 6)
    with torch.no_grad():
        attention.NIN_3.W.normal_()
        h = attention.GroupNorm_0(x)
        query, key, value = (
            torch.einsum("bcft,cd->bdft", h, layer.W) + layer.b[:, None, None]
            for layer in (attention.NIN_0, attention.NIN_1, attention.NIN_2)
        )
        weights = torch.einsum("bcft,bcgu->bftgu", query, key) / 16**0.5
        weights = weights.flatten(3).softmax(-1).view_as(weights)
        attended = torch.einsum("bftgu,bcgu->bcft", weights, value)
        expected = (x + torch.einsum("bcft,cd->bdft", attended, attention.NIN_3.W)) / 2**0.5
        assert relative(attention(x), expected) < ROUNDING


def test_attention_does_not_store_the_quadratic_matrix() -> None:
    positions = 64 * 128
    attention, x = Attention(16), torch.randn(1, 16, 64, 128)
    with torch.no_grad(), torch.profiler.profile(profile_memory=True) as profile:
        attention(x)
    largest = max(abs(event.self_cpu_memory_usage) for event in profile.events())
    assert largest < positions**2 * 4 / 10


@pytest.mark.parametrize("joint", [False, True])
def test_one_time_for_all_frames_equals_that_time_per_frame(joint: bool) -> None:
    network, state = tiny(joint), state_of(frames=50)
    time, label = torch.tensor([0.8, 0.3]), torch.tensor([0, 1])
    common = network.score(state, time, label)
    assert relative(network.score(state, time[:, None].expand(2, 50), label), common) < ROUNDING
    assert relative(network.score(state[1:], 0.3, 1), common[1:]) < ROUNDING


def test_a_time_of_its_own_changes_what_a_frame_gets() -> None:
    network, state = tiny(), state_of()
    time = torch.full((2, 64), 0.5)
    before = network.score(state, time)
    time[:, 32:] = 0.9
    change = (network.score(state, time) - before).abs().mean((0, 1))
    assert change[48:].min() > 0
    sigma = OUVE().sigma
    assert float(sigma(0.9)) > float(sigma(0.5))
    assert change[48:].mean() > change[:16].mean()


@pytest.mark.parametrize("frames", [1, 63, 65])
def test_any_number_of_frames_is_padded_with_zeros_and_cut(frames: int) -> None:
    network, state = tiny(), state_of(frames=frames)
    padded = torch.zeros(2, 32, 64 if frames < 64 else 128, dtype=torch.complex64)
    padded[..., :frames] = state
    time = torch.tensor([0.5, 0.1])
    score = network.score(state, time)
    assert score.shape == state.shape
    assert score.dtype == torch.complex64
    # the items of a batch of so many frames are computed one by one, which rounds differently
    torch.testing.assert_close(score, network.score(padded, time)[..., :frames], rtol=1e-4, atol=5e-4)


def test_label_none_is_speech_and_labels_matter() -> None:
    network, state, time = tiny(joint=True), state_of(), torch.tensor([0.5, 0.5])
    speech = network.score(state, time, 1)
    torch.testing.assert_close(network.score(state, time), speech)
    assert relative(network.score(state, time, torch.tensor([1, 0]))[:1], speech[:1]) < ROUNDING
    assert relative(network.score(state, time, 0), speech) > 1e-3


class WienerDenoiser(Network):
    """Posterior mean under s_0 ~ N(0, v): D(u, a) = v u / (v + a^2)."""

    predicts = "clean"

    def __init__(self, variance: float) -> None:
        super().__init__()
        self.variance = variance

    def denoise(self, noisy: torch.Tensor, noise_level: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        level = noise_level[:, None, None, :] if noise_level.ndim == 2 else noise_level[:, None, None, None]
        return noisy * self.variance / (self.variance + level**2)


@pytest.mark.parametrize("sde", [OUVE(), VE()])
@pytest.mark.parametrize("per_frame", [False, True])
def test_a_denoiser_gives_the_score_of_its_prior(per_frame: bool, sde: SDE) -> None:
    module, state = WienerDenoiser(0.3), state_of(frames=40)
    network = ScoreNetwork(module, {**config_of(module, bins=32), "sde": sde.config})
    time = torch.rand(2, 40) * 0.9 + 0.05 if per_frame else torch.tensor([0.9, 0.05])
    variance = torch.as_tensor(sde.delta(time) ** 2 * 0.3 + sde.sigma(time) ** 2)
    expected = -state / variance.reshape(2, 1, -1)
    assert relative(network.score(state, time), expected) < 1e-4  # a difference of close numbers at small sigma


@pytest.mark.parametrize(("precision", "tolerance"), [("bfloat16", 0.1), ("float16", 0.01)])
def test_half_precision_is_close_and_keeps_the_phases_in_float32(precision: str, tolerance: float) -> None:
    network, state, time = tiny(), state_of(), torch.tensor([0.8, 0.2])
    exact = network.score(state, time)
    network.to(precision=precision)
    assert network.module.all_modules[0].W.dtype == torch.float32
    assert network.module.all_modules[3].weight.dtype == getattr(torch, precision)
    assert relative(network.score(state, time), exact) < tolerance


def test_a_double_precision_state_is_welcome() -> None:
    network, state, time = tiny(), state_of(), torch.tensor([0.8, 0.2])
    double = network.score(state.to(torch.complex128), time.double())
    assert double.dtype == torch.complex128
    torch.testing.assert_close(double.to(torch.complex64), network.score(state, time))


@pytest.mark.parametrize(
    ("state", "time", "label", "words"),
    [
        (torch.zeros(1, 32, 8), 0.5, None, "complex"),
        (torch.zeros(32, 8, dtype=torch.complex64), 0.5, None, r"\(B, 32, T\)"),
        (torch.zeros(1, 31, 8, dtype=torch.complex64), 0.5, None, r"\(B, 32, T\)"),
        (torch.zeros(2, 32, 8, dtype=torch.complex64), torch.ones(3), None, "one per item"),
        (torch.zeros(2, 32, 8, dtype=torch.complex64), torch.ones(2, 7), None, "one per frame"),
        (torch.zeros(2, 32, 8, dtype=torch.complex64), 0.5, torch.ones(3), "label"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    state: torch.Tensor, time: torch.Tensor | float, label: torch.Tensor | None, words: str
) -> None:
    with pytest.raises(UdseError, match=words) as caught:
        tiny(joint=True).score(state, time, label)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "arguments", [{"nf": 0}, {"nf": 30}, {"ch_mult": ()}, {"ch_mult": (1, 0)}, {"num_res_blocks": 10**9}]
)
def test_impossible_sizes_are_refused(arguments: dict) -> None:
    with pytest.raises(UdseError, match="expected an NCSN"):
        NCSNpp(**arguments)


@pytest.mark.parametrize("device", ["cuda:99", "abacus"])
def test_an_absent_device_is_refused(device: str) -> None:
    with pytest.raises(UdseError, match="device"):
        tiny().to(device)


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(UdseError, match="float32"):
        tiny().to(precision="float8")

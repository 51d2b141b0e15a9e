"""The EDM-preconditioned NCSN++: its preconditioning in closed form, and what it makes of a video."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from udse_fast.checkpoints.checkpoint import load_network, save_checkpoint
from udse_fast.errors import UdseError
from udse_fast.networks import build_network
from udse_fast.networks.base import Network
from udse_fast.networks.conditions import Conditions
from udse_fast.networks.edm_ncsnpp import EDM_SIZES

SMALL: dict[str, Any] = {"nf": 8, "ch_mult": (1, 1), "image_size": 32, "sigma_data": 0.05}
D = 0.05


def made(name: str = "ncsnpp-edm", shaken: float = 0.1, **arguments: Any) -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_network({"name": name, **SMALL, **arguments}).requires_grad_(False)
        for weight in network.parameters():
            weight += shaken * torch.randn_like(weight)
    return network


def states(frames: int = 20) -> Tensor:
    return 0.3 * torch.randn(2, 2, 32, frames, generator=torch.Generator().manual_seed(1))


def test_the_preconditioning_is_that_of_the_table() -> None:
    """With an output layer that gives the constant 1: D = c_skip u + c_out."""
    network = made()
    network.output_layer.weight.zero_()
    network.output_layer.bias.fill_(1.0)
    u, a = states(), torch.tensor([0.2, 1.1])[:, None, None, None]
    expected = D**2 / (a**2 + D**2) * u + a * D / (a**2 + D**2).sqrt()
    torch.testing.assert_close(network.denoise(u, a.flatten()), expected)


def test_its_input_is_scaled_and_its_level_is_a_quarter_of_the_logarithm(monkeypatch: pytest.MonkeyPatch) -> None:
    network, seen = made(), dict[str, Tensor]()

    def record(planes: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        seen.update(planes=planes, time=time)
        return planes

    monkeypatch.setattr(network, "_progressive", record)
    u = states(frames=64)
    network.denoise(u, torch.tensor([0.2, 1.1]))
    scale = (torch.tensor([0.2, 1.1]) ** 2 + D**2).rsqrt()[:, None, None, None]
    torch.testing.assert_close(seen["planes"], scale * u)
    torch.testing.assert_close(seen["time"].log()[:, 0], torch.tensor([0.2, 1.1]).log() / 4)


def test_levels_per_frame_are_those_of_the_item_where_they_are_equal() -> None:
    network, u = made(), states()
    per_frame = network.denoise(u, torch.tensor([[0.3], [0.7]]).expand(2, 20))
    torch.testing.assert_close(per_frame, network.denoise(u, torch.tensor([0.3, 0.7])), rtol=1e-4, atol=1e-5)


def test_a_fresh_network_does_not_look_at_the_video_and_a_trained_one_does() -> None:
    fresh, trained = (made("ncsnpp-edm-av", shaken, video=3) for shaken in (0.0, 0.1))
    u, level = states(), torch.tensor([0.3, 0.7])
    videos = [Conditions(video=torch.randn(1, 12, 3)) for _ in range(2)]
    first, second = (fresh.denoise(u, level, video) for video in videos)
    assert torch.equal(first, second)
    first, second = (trained.denoise(u, level, video) for video in videos)
    assert (first - second).norm() > 1e-3 * first.norm()


def test_padding_does_not_move_the_video(monkeypatch: pytest.MonkeyPatch) -> None:
    """30 frames are padded to 64 inside: frame t is still told what is seen at t."""
    network, told = made("ncsnpp-edm-av", video=1), list[Tensor]()

    def record(planes: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        assert conditions.video is not None
        told.append(conditions.video)
        return planes

    monkeypatch.setattr(network, "_progressive", record)
    network.denoise(states(30), torch.tensor([0.3, 0.7]), Conditions(video=torch.arange(30.0)[None, :, None]))
    assert told[0][0, :, 0].tolist() == [*range(30), *[29] * 34]


def test_it_is_kept_and_loaded(tmp_path: Path) -> None:
    network = made("ncsnpp-edm-av", video=3)
    architecture = {"name": "ncsnpp-edm-av", **SMALL, "video": 3}
    config = {"architecture": architecture, "sde": {"name": "ve"}, "stft": {"n_fft": 62, "hop_length": 16}}
    save_checkpoint(tmp_path / "edm.safetensors", network.state_dict(), config)
    loaded = load_network(tmp_path / "edm.safetensors")
    state, video = torch.randn(1, 32, 10, dtype=torch.complex64), torch.randn(1, 5, 3)
    score = loaded.score(state, 0.4, video=video)
    planes = torch.view_as_real(state).movedim(-1, 1)
    denoised = network.denoise(planes, torch.tensor([0.4]), Conditions(video=video))
    expected = (torch.view_as_complex(denoised.movedim(1, -1).contiguous()) - state) / 0.16
    torch.testing.assert_close(score, expected, rtol=1e-4, atol=1e-4)
    without = loaded.score(state, 0.4)  # zeros stand for no video
    torch.testing.assert_close(without, loaded.score(state, 0.4, video=torch.zeros(1, 5, 3)))


def test_what_does_not_fit_is_one_line() -> None:
    with pytest.raises(UdseError, match="joint=True"):
        build_network({"name": "ncsnpp-edm", **SMALL, "joint": True})
    with pytest.raises(UdseError, match="sigma_data: expected a number"):
        build_network({"name": "ncsnpp-edm", **SMALL, "sigma_data": 0})


@pytest.mark.parametrize("name", EDM_SIZES)
def test_the_published_sizes_can_be_made(name: str) -> None:
    with torch.device("meta"):
        network = build_network(EDM_SIZES[name])
    assert 27e6 < sum(weight.numel() for weight in network.parameters()) < 31e6

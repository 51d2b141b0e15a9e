"""The compact network: what each frame may see, per-frame noise levels, preconditioning, published limits of size."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from udse_fast.networks import build_network
from udse_fast.networks.compact import Compact
from udse_fast.networks.conditions import Conditions

SMALL = {"channels": (8, 12), "blocks": (1, 1), "frame_channels": 16, "dilations": (1, 2, 4)}


def randomised(**arguments: object) -> Compact:
    """Weights that start at zero would make every test of the output true."""
    torch.manual_seed(0)
    network = Compact(bins=64, **{**SMALL, **arguments})  # type: ignore[arg-type]
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return network.eval()


def changed_frames(network: Compact, frames: int, at: int) -> torch.Tensor:
    """Which output frames move when input frame `at` does."""
    u = torch.randn(1, 2, 64, frames)
    moved = u.clone()
    moved[..., at] += 1
    with torch.no_grad():
        difference = network.denoise(u, torch.tensor([0.3])) - network.denoise(moved, torch.tensor([0.3]))
    return difference.abs().amax((0, 1, 2)) > 0


@pytest.mark.parametrize("block", [1, 2, 3, 4])
def test_causal_block_sees_its_own_block_and_the_past(block: int) -> None:
    network = randomised(causal_block=block)
    at = 4 * block  # first frame of block 4
    moved = changed_frames(network, 8 * block, at + block - 1)
    assert not moved[:at].any()
    assert moved[at : at + block].any()
    assert moved[at + block :].any()
    assert not changed_frames(network, 8 * block, at)[:at].any()


def test_centred_network_sees_both_sides() -> None:
    moved = changed_frames(randomised(), 24, 12)
    assert moved[:12].any()
    assert moved[13:].any()


@pytest.mark.parametrize("causal_block", [0, 2])
def test_one_noise_level_per_frame_equals_one_for_all(causal_block: int) -> None:
    network = randomised(causal_block=causal_block)
    u, a = torch.randn(2, 2, 64, 11), torch.tensor([0.05, 1.2])
    with torch.no_grad():
        torch.testing.assert_close(
            network.denoise(u, a[:, None].expand(2, 11)), network.denoise(u, a), rtol=1e-4, atol=1e-5
        )


def test_a_fresh_network_is_the_edm_skip() -> None:
    """Gain sd^2/(sd^2 + a^2) and nothing else before the first step (Karras et al. 2022, Table 1)."""
    network = Compact(bins=64, sigma_data=0.1, **SMALL)  # type: ignore[arg-type]
    u, a = torch.randn(1, 2, 64, 9), torch.tensor([0.2])
    with torch.no_grad():
        torch.testing.assert_close(network.denoise(u, a), u * (0.01 / 0.05), rtol=1e-4, atol=1e-5)


def test_a_fresh_network_knows_the_posterior_variance_of_gaussian_data() -> None:
    network = Compact(bins=64, sigma_data=0.1, **SMALL)  # type: ignore[arg-type]
    u, a = torch.randn(2, 2, 64, 9), torch.tensor([0.2, 0.05])
    with torch.no_grad():
        variance = network.posterior(u, a)[1]
    expected = 0.01 * a**2 / (0.01 + a**2)
    torch.testing.assert_close(variance, expected[:, None, None].expand(2, 64, 9), rtol=1e-5, atol=0)


def test_weights_of_a_centred_network_start_a_causal_one() -> None:
    """Only what the long kernels read of the future is lost: where that is nothing, the stacks over time agree."""
    centred, causal = randomised(), randomised(causal_block=1)
    with torch.no_grad():
        for name, weight in centred.named_parameters():
            if name.startswith("over_time") and weight.ndim == 4 and weight.shape[2] > 1:
                weight[:, :, weight.shape[2] // 2 + 1 :] = 0
    causal.load_state_dict(Compact.made_causal(centred.state_dict()))
    h, embedding = torch.randn(2, 12, 30, 8), torch.randn(2, 1, 128)
    with torch.no_grad():
        torch.testing.assert_close(causal._over_time(h, embedding, None), centred._over_time(h, embedding, None))
    torch.testing.assert_close(causal.output.weight, centred.output.weight)


def test_statistics_do_not_depend_on_the_length() -> None:
    """Frames far from an edge are the same in a longer signal."""
    network = randomised()
    u, a = torch.randn(1, 2, 64, 80), torch.tensor([0.3])
    reach = 2 * (1 + 2 + 4) + 12  # frame stack, and the convolutions around it
    with torch.no_grad():
        whole, part = network.denoise(u, a), network.denoise(u[..., :60], a)
    torch.testing.assert_close(whole[..., : 60 - reach], part[..., : 60 - reach], rtol=1e-4, atol=1e-5)


def test_joint_network_tells_speech_from_noise() -> None:
    network = randomised(joint=True)
    torch.nn.init.normal_(network.label.weight)  # type: ignore[union-attr]
    u, a = torch.randn(1, 2, 64, 9), torch.tensor([0.3])
    with torch.no_grad():
        speech, noise = (network.denoise(u, a, Conditions(label=torch.tensor([label]))) for label in (1, 0))
        assert not torch.allclose(speech, noise)
        torch.testing.assert_close(network.denoise(u, a), speech)


def test_size_and_cost() -> None:
    network = build_network({"name": "compact"}).eval()
    assert 1e6 < sum(p.numel() for p in network.parameters()) < 3e6
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.denoise(torch.randn(1, 2, 256, 256), torch.tensor([0.3]))  # type: ignore[operator]
    assert counter.get_total_flops() < 10e9

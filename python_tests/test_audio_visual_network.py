"""The published audio-visual network: its scores, its names, its checkpoint with the encoder inside."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from udse_fast.checkpoints.checkpoint import load_network, load_visual_encoder, save_checkpoint
from udse_fast.checkpoints.export import export_network
from udse_fast.checkpoints.lightning import audio_visual_architecture
from udse_fast.errors import UdseError
from udse_fast.networks import build_network
from udse_fast.networks.av_hubert import UNUSED
from udse_fast.networks.conditions import Conditions
from udse_fast.networks.ncsnpp_av import VideoFusion
from udse_fast.networks.score_network import ScoreNetwork

GOLDEN = Path(__file__).parent / "golden"
CHECKPOINT = GOLDEN / "networks_av" / "av.ckpt"
ROUNDING = 1e-5


@pytest.fixture(scope="module")
def network() -> ScoreNetwork:
    return load_network(CHECKPOINT)


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with np.load(GOLDEN / "networks_av" / "av_io.npz") as archive:
        return {name: torch.from_numpy(archive[name]) for name in archive.files}


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("case", ["a", "b"])
def test_scores_are_the_published_ones(network: ScoreNetwork, golden: dict[str, Tensor], case: str) -> None:
    state, time, video = (golden[f"{case}_{name}"] for name in ("state", "t", "video"))
    assert relative(network.score(state, time, video=video), golden[f"{case}_score"]) < ROUNDING


@pytest.mark.parametrize(("case", "frames"), [("short", 6), ("one", 1), ("long", 31)])
def test_the_video_may_have_any_length(
    network: ScoreNetwork, golden: dict[str, Tensor], case: str, frames: int
) -> None:
    video = golden["long_video"] if case == "long" else golden["a_video"][:1, :frames]
    score = network.score(golden["a_state"][:1], golden["a_t"][:1], video=video)
    assert video.shape[1] == frames
    assert relative(score[..., ::4], golden[f"{case}_score_every_4th_frame"]) < ROUNDING


def test_one_video_for_all_items_is_that_video_for_each(network: ScoreNetwork, golden: dict[str, Tensor]) -> None:
    state, time, video = golden["a_state"], golden["a_t"], golden["a_video"][:1]
    both = network.score(state, time, video=video.expand(2, -1, -1))
    torch.testing.assert_close(network.score(state, time, video=video), both)


def test_without_a_video_it_sees_zeros(network: ScoreNetwork, golden: dict[str, Tensor]) -> None:
    state, time = golden["a_state"], golden["a_t"]
    without = network.score(state, time)
    torch.testing.assert_close(without, network.score(state, time, video=torch.zeros(1, 7, 24)))
    assert relative(without, golden["a_score"]) > 0.01


def test_features_of_another_width_are_refused_in_a_line(network: ScoreNetwork, golden: dict[str, Tensor]) -> None:
    with pytest.raises(UdseError, match=r"video: expected .* \(2, Tv, 24\), got"):
        network.score(golden["a_state"], golden["a_t"], video=torch.zeros(2, 5, 768))


@pytest.mark.parametrize(("size", "parameters"), [("av28M", 29_353_198), ("av6M", 6_822_030), ("av65M", 67_219_824)])
def test_names_and_shapes_are_the_published_ones(size: str, parameters: int) -> None:
    described = json.loads((GOLDEN / "networks_av" / "av_state_dict_shapes.json").read_text())[size]
    published = {name.removeprefix("dnn."): tuple(shape) for name, shape in described.items()}
    architecture = audio_visual_architecture(published)
    assert architecture["video"] == 768
    with torch.device("meta"):
        module = build_network(architecture)
    assert {name: tuple(weight.shape) for name, weight in module.state_dict().items()} == published
    assert list(module.state_dict()) == list(published)  # the EMA is paired by order
    assert sum(parameter.numel() for parameter in module.parameters()) == parameters


def test_fusion_is_a_softmax_without_a_scale() -> None:
    torch.manual_seed(0)
    fusion = VideoFusion(channels=8, bins=6, features=5, width=16)
    for parameter in fusion.parameters():
        nn.init.normal_(parameter)
    h, video = torch.randn(2, 8, 6, 3, dtype=torch.float64), torch.randn(2, 4, 5, dtype=torch.float64)
    fusion.double()
    attention = fusion.cross_attention
    q = torch.einsum("bcft,df->bctd", h, attention.to_q.weight)
    k, w = (torch.einsum("bup,dp->bud", video, layer.weight) for layer in (attention.to_k, attention.to_v))
    alpha = torch.einsum("bctd,bud->bctu", q, k).softmax(-1)
    out = attention.to_out[0]
    e = torch.einsum("bctu,bud,fd->bcft", alpha, w, out.weight) + out.bias[:, None]
    grouped = e.reshape(2, 2, -1)
    normed = (grouped - grouped.mean(2, keepdim=True)) / (grouped.var(2, correction=0, keepdim=True) + 1e-6).sqrt()
    normed = normed.reshape(e.shape) * fusion.groupnorm.weight[:, None, None] + fusion.groupnorm.bias[:, None, None]
    torch.testing.assert_close(fusion(h, Conditions(video=video)), h + normed)


# -- the encoder inside the checkpoint -----------------------------------------------------------------------------


def lightning_file(path: Path, *, ema: bool, frozen_in_ema: bool = True) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A Lightning checkpoint of a small audio-visual network with an encoder; returns its weights and the EMA's."""
    encoder = load_file(GOLDEN / "visual_encoder.safetensors")
    order = json.loads((GOLDEN / "visual_encoder_state_dict_shapes.json").read_text())["entries"]
    small = {name: encoder[name] for name, *_ in order if name in encoder}
    torch.manual_seed(0)
    module = build_network({"name": "ncsnpp-av", "nf": 8, "ch_mult": [1, 1], "video": 32})
    own = {f"dnn.{name}": torch.randn_like(weight) for name, weight in module.state_dict().items()}
    weights = {**small, **own}
    trainable = {f"dnn.{name}" for name, p in module.named_parameters() if p.requires_grad}
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    averaged = {
        name: weight + 1
        for name, weight in weights.items()
        if not name.endswith(buffers) and (frozen_in_ema or name in trainable)
    }
    checkpoint = {"state_dict": weights, "hyper_parameters": {"backbone": "ncsnpp"}}
    if ema:
        checkpoint["ema"] = {"shadow_params": list(averaged.values())}
    torch.save(checkpoint, path)
    return weights, averaged if ema else {}


@pytest.mark.parametrize(("ema", "frozen_in_ema"), [(False, True), (True, True), (True, False)])
def test_a_checkpoint_loads_whole_average_of_the_parameters_and_buffers_of_the_file(
    tmp_path: Path, ema: bool, frozen_in_ema: bool
) -> None:
    weights, averaged = lightning_file(tmp_path / "av.ckpt", ema=ema, frozen_in_ema=frozen_in_ema)
    network = load_network(tmp_path / "av.ckpt")
    loaded = {f"dnn.{name}": weight for name, weight in network.module.state_dict().items()}
    expected = {name: weight for name, weight in {**weights, **averaged}.items() if not name[22:].startswith(UNUSED)}
    assert loaded.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(loaded[name].float(), weight.float()), name
    assert network.visual_encoder is not None
    assert network.visual_encoder.features == 32


def test_the_encoder_survives_our_own_format_and_stays_in_float32(tmp_path: Path) -> None:
    lightning_file(tmp_path / "av.ckpt", ema=False)
    network = load_network(tmp_path / "av.ckpt")
    save_checkpoint(tmp_path / "av.safetensors", network.module.state_dict(), network.config)
    again = load_network(tmp_path / "av.safetensors", precision="bfloat16")
    video = torch.randint(0, 256, (1, 1, 3, 88, 88), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert network.visual_encoder is not None
    assert again.visual_encoder is not None
    torch.testing.assert_close(again.visual_encoder(video), network.visual_encoder(video))


def test_an_encoder_is_taken_out_of_its_checkpoint(tmp_path: Path) -> None:
    lightning_file(tmp_path / "av.ckpt", ema=False)
    network, encoder = load_network(tmp_path / "av.ckpt"), load_visual_encoder(tmp_path / "av.ckpt")
    video = torch.randint(0, 256, (1, 1, 3, 88, 88), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert network.visual_encoder is not None
    torch.testing.assert_close(encoder(video), network.visual_encoder(video))
    with pytest.raises(UdseError, match="visual encoder that is known, got one without"):
        load_visual_encoder(CHECKPOINT)
    with pytest.raises(UdseError, match="visual encoder that is known, got one without"):
        load_visual_encoder("speech")


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_exports_are_told_the_features(tmp_path: Path, golden: dict[str, Tensor], suffix: str) -> None:
    """The network with its encoder, and TorchScript, which is the network alone."""
    lightning_file(tmp_path / "av.ckpt", ema=False)
    network = load_network(tmp_path / "av.ckpt")
    assert export_network(network, tmp_path / f"av.{suffix}") < 1e-4
    exported = load_network(tmp_path / f"av.{suffix}")
    video = golden["a_video"].new_zeros(2, 9, 32).normal_(generator=torch.Generator().manual_seed(0))
    expected = network.score(golden["a_state"], golden["a_t"], video=video)
    assert relative(exported.score(golden["a_state"], golden["a_t"], video=video), expected) < 1e-4
    assert (exported.visual_encoder is None) == (suffix == "pt")


def test_a_graph_takes_a_video_of_any_length(audio_visual_checkpoint: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = load_network(audio_visual_checkpoint)
    export_network(network, tmp_path / "av.pt2")
    program = torch.export.load(tmp_path / "av.pt2").module()
    state, time, video = torch.randn(2, 2, 256, 70), torch.tensor([0.8, 0.3]), torch.randn(2, 31, 6)
    torch.testing.assert_close(program(state, time, video), network.plain(state, time, video), atol=1e-3, rtol=1e-3)


def test_an_encoder_that_is_not_known_leaves_the_network_to_given_features(network: ScoreNetwork) -> None:
    assert network.visual_encoder is None
    assert network.conditions == ("video",)


def test_an_inconsistent_average_is_refused_in_a_line(tmp_path: Path) -> None:
    lightning_file(tmp_path / "av.ckpt", ema=True)
    checkpoint = torch.load(tmp_path / "av.ckpt", weights_only=True)
    checkpoint["ema"]["shadow_params"] = checkpoint["ema"]["shadow_params"][:-3]
    torch.save(checkpoint, tmp_path / "short.ckpt")
    with pytest.raises(UdseError, match=r"EMA weights, got .* not consistent"):
        load_network(tmp_path / "short.ckpt")


def test_another_fusion_is_refused_in_a_line(tmp_path: Path) -> None:
    lightning_file(tmp_path / "av.ckpt", ema=False)
    checkpoint = torch.load(tmp_path / "av.ckpt", weights_only=True)
    checkpoint["hyper_parameters"]["fusion"] = "concat_attn_masking"
    torch.save(checkpoint, tmp_path / "other.ckpt")
    with pytest.raises(UdseError, match="with the fusion concat_attn_masking_light, got concat_attn_masking"):
        load_network(tmp_path / "other.ckpt")


def test_a_truncated_checkpoint_is_refused_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "half.ckpt").write_bytes(CHECKPOINT.read_bytes()[:100_000])
    with pytest.raises(UdseError, match="incomplete one") as error:
        load_network(tmp_path / "half.ckpt")
    assert "\n" not in str(error.value)
    assert zipfile.is_zipfile(CHECKPOINT)

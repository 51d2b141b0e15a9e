"""The visual encoder, stage by stage, against numbers of the published model in small."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from udse_fast import load_visual_encoder
from udse_fast.errors import UdseError
from udse_fast.networks.av_hubert import UNUSED, AVHubert, av_hubert_arguments

GOLDEN = Path(__file__).parent / "golden"
PREFIX = "dnn.feature_extractor."
ROUNDING = 1e-5


@pytest.fixture(scope="module")
def encoder() -> AVHubert:
    with safe_open(GOLDEN / "visual_encoder.safetensors", "pt") as file:
        weights = {name.removeprefix(PREFIX): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        sizes = json.loads(file.metadata()["config"])
    weights = {name: weight for name, weight in weights.items() if not name.startswith(UNUSED)}
    arguments = av_hubert_arguments({name: weight.shape for name, weight in weights.items()})
    arguments.pop("name")
    module = AVHubert(**{**arguments, "heads": sizes["heads"]})
    module.load_state_dict(weights)
    return module.eval().requires_grad_(False)


def test_an_encoder_alone_loads_with_the_heads_that_its_file_says(encoder: AVHubert) -> None:
    loaded = load_visual_encoder(GOLDEN / "visual_encoder.safetensors")
    video = torch.randint(0, 256, (1, 1, 4, 88, 88), dtype=torch.uint8)
    torch.testing.assert_close(loaded(video), encoder(video), rtol=0, atol=0)


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "visual_encoder.npz") as archive:
        return dict(archive)


def stages(encoder: AVHubert, video: np.ndarray) -> dict[str, Tensor]:
    """What every stage of the encoder gives for a video (B, Tv, 88, 88), named and shaped as in the file."""
    resnet, B = encoder.feature_extractor_video.resnet, len(video)
    found: dict[str, Tensor] = {}
    modules = {
        "conv3d": resnet.frontend3D[0],
        "conv3d_bn_prelu": resnet.frontend3D[2],
        "frontend": resnet.frontend3D,
        **{f"layer{n}": resnet.trunk.get_submodule(f"layer{n}") for n in range(1, 5)},
        "trunk": resnet,
        "visual": encoder.feature_extractor_video,
        "fused_norm": encoder.layer_norm,
        "projected": encoder.post_extract_proj,
        "pos": encoder.encoder.pos_conv,
        **{f"block{n}": layer for n, layer in enumerate(encoder.encoder.layers)},
    }

    def keep(name: str):
        def hook(module, inputs, output) -> None:
            found[name] = output.transpose(1, 2) if name == "pos" else output

        return hook

    hooks = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    found["output"] = encoder(torch.from_numpy(video).float()[:, None])
    for hook in hooks:
        hook.remove()
    assert len(found["output"]) == B
    return found


@pytest.mark.parametrize("case", ["lips", "one", "long", "pair"])
def test_every_stage_is_that_of_the_published_model(
    encoder: AVHubert, golden: dict[str, np.ndarray], case: str
) -> None:
    found = stages(encoder, golden[f"{case}.video"])
    names = [name.split(".")[1] for name in golden if name.startswith(f"{case}.") and not name.endswith(".video")]
    assert "output" in names
    for name in names:
        expected = torch.from_numpy(golden[f"{case}.{name}"])
        assert found[name].shape == expected.shape, name
        assert float((found[name] - expected).abs().max() / expected.abs().max()) < ROUNDING, name


def test_the_full_size_has_the_published_weights() -> None:
    described = json.loads((GOLDEN / "visual_encoder_state_dict_shapes.json").read_text())
    published = {name.removeprefix(PREFIX): tuple(shape) for name, shape, _, _ in described["entries"]}
    read = {name: shape for name, shape in published.items() if not name.startswith(UNUSED)}
    arguments = av_hubert_arguments(read)
    assert arguments.pop("heads") == 12
    assert arguments.pop("name") == "av-hubert"
    with torch.device("meta"):
        module = AVHubert(**arguments)
    assert {name: tuple(weight.shape) for name, weight in module.state_dict().items()} == read
    assert sum(p.numel() for p in module.parameters()) == described["parameters_in_the_visual_path"]


def test_pixels_may_be_whole_numbers_and_clips_in_a_batch_do_not_see_each_other(
    encoder: AVHubert, golden: dict[str, np.ndarray]
) -> None:
    video = torch.from_numpy(golden["pair.video"])[:, None]
    alone = torch.cat([encoder(video[:1]), encoder(video[1:])])
    torch.testing.assert_close(encoder(video), alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(1, 1, 3, 96, 96), (1, 3, 88, 88), (1, 3, 2, 88, 88), (1, 1, 0, 88, 88)])
def test_other_sizes_are_refused_in_a_line(encoder: AVHubert, shape: tuple[int, ...]) -> None:
    with pytest.raises(UdseError, match=r"expected mouth crops \(B, 1, Tv, 88, 88\)"):
        encoder(torch.zeros(shape))

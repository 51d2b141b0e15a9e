"""Exported networks, read back by the programs that they are for, against the network they were made from."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from udse_fast.checkpoints import export
from udse_fast.checkpoints.checkpoint import complete_config, load_network
from udse_fast.checkpoints.export import export_network
from udse_fast.errors import UdseError
from udse_fast.networks import build_network
from udse_fast.networks.conditions import Conditions
from udse_fast.networks.score_network import ScoreNetwork

COMPACT = {
    "name": "compact",
    "bins": 32,
    "channels": [8],
    "blocks": [1],
    "frame_channels": 16,
    "dilations": [2],
}
ARCHITECTURES = {
    "ncsnpp": {"name": "ncsnpp", "nf": 8, "ch_mult": [1, 1]},
    "ncsnpp-joint": {"name": "ncsnpp", "nf": 8, "ch_mult": [1, 1], "joint": True},
    "compact": COMPACT,
    "compact-joint": {**COMPACT, "joint": True},
    "compact-causal": {**COMPACT, "causal_block": 2},
}
BINS = 32
ROUNDING = 1e-5  # float32: other kernels, the same sums in another order


def network_of(name: str) -> ScoreNetwork:
    """A small network with weights that all matter (a fresh one starts its blocks at zero)."""
    torch.manual_seed(0)
    module = build_network(ARCHITECTURES[name])
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    stft = {"n_fft": 2 * BINS - 1, "hop_length": 32}
    return ScoreNetwork(module, complete_config({"architecture": ARCHITECTURES[name], "stft": stft}))


def inputs_of(network: ScoreNetwork, batch: int, frames: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(7)
    state = 0.5 * torch.randn(batch, BINS, frames, dtype=torch.complex64, generator=generator)
    time = torch.linspace(0.15, 0.95, batch)
    return (state, time, torch.arange(batch) % 2) if network.joint else (state, time)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def graph_inputs(state: torch.Tensor, *rest: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.view_as_real(state).permute(0, 3, 1, 2).contiguous(), *rest


def score_of(real: torch.Tensor) -> torch.Tensor:
    return torch.complex(real[:, 0], real[:, 1])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_torchscript_is_loaded_back_as_the_same_network(name: str, tmp_path: Path) -> None:
    network = network_of(name)
    assert export_network(network, tmp_path / "a.pt") < ROUNDING
    assert os.listdir(tmp_path) == ["a.pt"]
    loaded = load_network(tmp_path / "a.pt")
    assert loaded.joint == network.joint
    for section in ("architecture", "sde", "stft", "compression"):
        assert loaded.config[section] == network.config[section]
    for batch, frames in ((1, 64), (3, 101)):
        state, time, *label = inputs_of(network, batch, frames)
        told = Conditions(*label)
        assert relative(loaded.score(state, time, *label), network.score(state, time, *label)) < ROUNDING
        per_frame = time[:, None] * torch.linspace(0.5, 1, frames)
        expected = network.score(state, per_frame, *label)
        assert relative(loaded.score(state, per_frame, *label), expected) < ROUNDING
        assert loaded.has_posterior_variance == network.has_posterior_variance
        for times in (time, per_frame) if network.has_posterior_variance else ():
            answers = (
                loaded.evaluate(state, times, told, posterior_variance=True),
                network.evaluate(state, times, told, posterior_variance=True),
            )
            assert all(relative(a, b) < ROUNDING for a, b in zip(*answers, strict=True))


@pytest.mark.parametrize(("name", "frames"), [("compact", None), ("compact-causal", 50)])
def test_torch_export_runs_without_this_package(name: str, frames: int | None, tmp_path: Path) -> None:
    network = network_of(name)
    assert export_network(network, tmp_path / "a.pt2", frames=frames) < ROUNDING
    files = {"udse_fast.json": ""}
    graph = torch.export.load(tmp_path / "a.pt2", extra_files=files).module()
    assert json.loads(files["udse_fast.json"])["architecture"] == ARCHITECTURES[name]
    inputs = inputs_of(network, 3, frames or 192)
    assert relative(score_of(graph(*graph_inputs(*inputs))), network.score(*inputs)) < ROUNDING


@pytest.mark.needs("onnxruntime", "onnxscript")
def test_onnx_runs_in_onnxruntime(tmp_path: Path) -> None:
    import onnxruntime

    network = network_of("ncsnpp-joint")
    assert export_network(network, tmp_path / "a.onnx") < ROUNDING
    assert os.listdir(tmp_path) == ["a.onnx"]  # one file, the weights inside
    assert str(Path(__file__).parents[1]).encode() not in (tmp_path / "a.onnx").read_bytes()
    session = onnxruntime.InferenceSession(str(tmp_path / "a.onnx"), providers=["CPUExecutionProvider"])
    config = json.loads(session.get_modelmeta().custom_metadata_map["udse_fast"])
    assert config["architecture"] == ARCHITECTURES["ncsnpp-joint"]
    inputs = inputs_of(network, 3, 192)
    names = [argument.name for argument in session.get_inputs()]
    assert names == ["state", "time", "label"]
    feeds = {key: value.numpy() for key, value in zip(names, graph_inputs(*inputs), strict=True)}
    (score,) = session.run(["score"], feeds)
    assert relative(score_of(torch.from_numpy(score)), network.score(*inputs)) < ROUNDING


def test_safetensors_is_exact_or_rounded_as_asked(tmp_path: Path) -> None:
    network = network_of("ncsnpp")
    assert export_network(network, tmp_path / "a.safetensors") == 0
    assert 0 < export_network(network, tmp_path / "b.safetensors", dtype="float16") < 1e-2
    assert (tmp_path / "b.safetensors").stat().st_size < 0.8 * (tmp_path / "a.safetensors").stat().st_size


def test_half_precision_torchscript_stays_so(tmp_path: Path) -> None:
    network = network_of("ncsnpp").to(precision="bfloat16")
    export_network(network, tmp_path / "a.pt")
    loaded = load_network(tmp_path / "a.pt")
    assert loaded.precision == "bfloat16"
    inputs = inputs_of(network, 2, 64)
    torch.testing.assert_close(loaded.score(*inputs), network.score(*inputs), rtol=0.02, atol=0.02)
    with pytest.raises(UdseError, match="bfloat16"):
        loaded.to(precision="float32")


def test_an_export_that_differs_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"what was there")
    monkeypatch.setitem(export.TOLERANCES, "float16", 1e-12)
    with pytest.raises(UdseError, match="the file was removed"):
        export_network(network_of("ncsnpp"), tmp_path / "a.safetensors", dtype="float16")
    assert os.listdir(tmp_path) == ["a.safetensors"]
    assert (tmp_path / "a.safetensors").read_bytes() == b"what was there"


@pytest.mark.parametrize(
    ("path", "options", "words"),
    [
        ("a.tflite", {}, "torchscript"),
        ("a.pt", {"kind": "tflite"}, "tflite"),
        ("a.safetensors", {"dtype": "int8"}, "int8"),
        ("none/a.pt", {}, "cannot write"),
        ("a.pt2", {"frames": 0}, "frames"),
    ],
)
def test_what_cannot_be_exported_is_refused(path: str, options: dict, words: str, tmp_path: Path) -> None:
    with pytest.raises(UdseError, match=words) as caught:
        export_network(network_of("ncsnpp"), tmp_path / path, **options)
    assert "\n" not in str(caught.value)
    assert not os.listdir(tmp_path)


def test_torchscript_is_not_exported_again(tmp_path: Path) -> None:
    export_network(network_of("ncsnpp"), tmp_path / "a.pt")
    with pytest.raises(UdseError, match="TorchScript"):
        export_network(load_network(tmp_path / "a.pt"), tmp_path / "a.onnx")


def test_torchscript_of_another_program_is_refused(tmp_path: Path) -> None:
    with pytest.warns(DeprecationWarning, match="deprecated"):
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), str(tmp_path / "a.pt"))
    with pytest.raises(UdseError, match="another program") as caught:
        load_network(tmp_path / "a.pt")
    assert "\n" not in str(caught.value)


def test_a_torch_export_file_is_refused_as_a_checkpoint(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),)), tmp_path / "a.pt2")
    with pytest.raises(UdseError, match=r"\.pt2"):
        load_network(tmp_path / "a.pt2")

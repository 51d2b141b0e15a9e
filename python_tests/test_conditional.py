"""Networks that are told the recording, against the public code's numbers and closed forms."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import udse_fast
from udse_fast.audio.spectral import PeakSpectral
from udse_fast.block_enhancer import Analysed, OverlapBlockEnhancer, enhance_blocks
from udse_fast.checkpoints.checkpoint import save_checkpoint
from udse_fast.checkpoints.export import export_network
from udse_fast.checkpoints.lightning import architecture_of
from udse_fast.cli import main
from udse_fast.errors import UdseError
from udse_fast.networks import build_network
from udse_fast.networks.base import Network
from udse_fast.networks.compact import Compact
from udse_fast.networks.compact_conditional import CompactConditional
from udse_fast.networks.conditional_ncsnpp import CONDITIONAL_SIZES
from udse_fast.networks.conditions import NOTHING, Conditions
from udse_fast.networks.score_network import ScoreNetwork
from udse_fast.sampling.posterior import Posterior, posterior_pass
from udse_fast.sampling.requests import Pass
from udse_fast.sampling.sde import OUVE
from udse_fast.streaming.blocks import Block

GOLDEN = Path(__file__).parent / "golden" / "networks_sgmse"
TOLERANCE = 1e-5  # float32 in another order of sums
EDM = {"c_in": "edm", "c_out": "edm", "c_skip": "edm"}
SMALL: dict[str, Any] = {"channels": (8, 8, 8), "blocks": (1, 1, 1), "frame_channels": 16, "dilations": (1, 2)}


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def recorded(name: str) -> dict[str, Tensor]:
    return {key: torch.from_numpy(value) for key, value in np.load(GOLDEN / f"{name}.npz").items()}


@pytest.fixture(scope="module")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compact conditional network with random weights."""
    torch.manual_seed(0)
    architecture = {"name": "compact-conditional", **SMALL}
    network = build_network(architecture)
    for parameter in network.parameters():
        parameter.data += 0.003 * torch.randn_like(parameter)
    path = tmp_path_factory.mktemp("conditional") / "small.safetensors"
    stft = {"n_fft": 510, "hop_length": 255, "window": "sqrt_hann", "sample_rate": 16000}
    save_checkpoint(path, network.state_dict(), {"architecture": architecture, "stft": stft})
    return path


# The public networks


@pytest.mark.parametrize("name", ["ncsnpp", "ncsnpp_v2"])
def test_scores_of_public_checkpoints(name: str) -> None:
    network, io = udse_fast.load_network(GOLDEN / f"{name}.ckpt"), recorded(f"{name}_io")
    assert relative(network.score(io["state"], io["t"], noisy=io["noisy"]), io["score"]) < TOLERANCE
    frames = io["state"].shape[-1]
    per_frame = network.score(io["state"], io["t"][:, None].expand(-1, frames), noisy=io["noisy"])
    assert relative(per_frame, io["score"]) < TOLERANCE


@pytest.mark.parametrize(
    ("output", "settings"),
    [
        ("score_over_sigma", {"network_scaling": "1/sigma"}),
        ("score_over_t", {"network_scaling": "1/t"}),
        ("denoiser", {"loss_type": "denoiser"}),
        ("denoiser_over_sigma", {"loss_type": "denoiser", "network_scaling": "1/sigma"}),
        ("edm_score", EDM),
        ("edm_data_prediction", {**EDM, "loss_type": "data_prediction"}),
    ],
)
def test_every_objective_of_the_second_generation(output: str, settings: dict[str, str]) -> None:
    public, io = udse_fast.load_network(GOLDEN / "ncsnpp_v2.ckpt"), recorded("ncsnpp_v2_io")
    config = {**public.config, "architecture": {**public.config["architecture"], **settings}}
    module = build_network(config["architecture"])
    module.load_state_dict(public.module.state_dict())
    x, y, t = io["state"][:1], io["noisy"][:1], io["t"][:1]
    found = ScoreNetwork(module, config).score(x, t, noisy=y)
    if "data_prediction" in output:  # the network says x_0, the score is that of x_0 with the drift
        delta, sigma = OUVE().delta(t), OUVE().sigma(t)
        found = (sigma**2 * found + x - (1 - delta) * y) / delta
    assert relative(found[..., ::2], io[f"out_{output}"]) < TOLERANCE


def test_all_keys_and_shapes_of_the_published_sizes() -> None:
    published = json.loads((GOLDEN / "sgmse_state_dict_shapes.json").read_text())
    sizes = {"ncsnpp65M": "65m", "ncsnpp28M": "28m", "ncsnpp6M": "5m"}
    assert published.keys() == sizes.keys()
    for name, size in sizes.items():
        shapes = {key.removeprefix("dnn."): tuple(shape) for key, shape in published[name].items()}
        with torch.device("meta"):
            ours = build_network({"name": "ncsnpp-conditional", **CONDITIONAL_SIZES[f"ncsnpp-conditional-{size}"]})
            derived = build_network(architecture_of(shapes))
        for network in (ours, derived):
            assert [(key, tuple(w.shape)) for key, w in network.state_dict().items()] == list(shapes.items())


def public_draws(seed: int, count: int, frames: int) -> Tensor:
    planes = np.random.RandomState(seed).standard_normal((count, 2, 256, frames))
    return torch.from_numpy(((planes[:, 0] + 1j * planes[:, 1]) / np.sqrt(2)).astype(np.complex64))


def test_waveform_to_waveform_as_the_public_code() -> None:
    golden = recorded("sgmse_prepost")
    steps, frames = int(golden["steps"]), int(golden["frames_padded"])
    draws = public_draws(int(golden["draw_seed"]), 1 + 2 * steps, frames)
    first = {"init_speech": 0, "corrector_speech": 1, "predictor_speech": 2}

    class WithTheirNoise(OverlapBlockEnhancer):
        def sample(self, analysed: Analysed[Any]) -> Pass[Posterior]:
            def draw(name: str, index: int) -> Tensor:
                return draws[first[name] + 2 * index][None]

            return posterior_pass(analysed.mixture, analysed.prior, self.sampler_settings, randomness=draw)

    enhancer = udse_fast.Enhancer(GOLDEN / "ncsnpp.ckpt", steps=steps, precision="float32", device="cpu")
    assert enhancer.sampler == "sgmse"
    blocks = WithTheirNoise(enhancer.model, enhancer.settings, seed=0)
    ((enhanced,),) = enhance_blocks([(blocks, [Block(golden["waveform"], 0, None)])])
    assert relative(enhanced.signals[0], golden["enhanced"]) < 2e-5
    assert enhanced.network_calls == 2 * steps


def test_the_way_there_and_back_is_that_of_the_public_code() -> None:
    golden = recorded("sgmse_prepost")
    spectral = udse_fast.Enhancer(GOLDEN / "ncsnpp.ckpt", device="cpu").spectral
    waveform, inside = golden["waveform"], golden["spectrogram"].shape[-1]
    y, level = spectral.analyse(waveform)
    assert y.shape[-1] == int(golden["frames_padded"])
    assert relative(y[:, :inside], golden["spectrogram"]) < TOLERANCE
    assert not y[:, inside:].any()
    assert isinstance(spectral, PeakSpectral)
    reflected = replace(spectral, padding="reflection").padded(y[:, :inside])
    assert relative(reflected[:6], golden["reflected_low_bins"]) < TOLERANCE
    back = spectral.synthesise(0.5 * public_draws(int(golden["back_seed"]), 1, y.shape[-1])[0], level, len(waveform))
    assert relative(back, golden["back_waveform"]) < 2e-5


def test_frames_are_reflected_where_there_are_enough() -> None:
    spectral = PeakSpectral(frame_multiple=4, padding="reflection")
    assert spectral.padded(torch.arange(6)[None] + 0j).real.tolist() == [[0, 1, 2, 3, 4, 5, 4, 3]]
    assert spectral.padded(torch.arange(2)[None] + 0j).real.tolist() == [[0, 1, 0, 0]]


def test_second_generation_is_reflected_first_is_not() -> None:
    kinds = {"ncsnpp": "zeros", "ncsnpp_v2": "reflection"}
    for name, padding in kinds.items():
        spectral = udse_fast.Enhancer(GOLDEN / f"{name}.ckpt", device="cpu").spectral
        assert isinstance(spectral, PeakSpectral)
        assert (spectral.padding, spectral.frame_multiple) == (padding, 64)


# What every conditional network has in common


class Gaussian(Network):
    """Denoiser of x_0 ~ N(w y, v)."""

    predicts, drifts, conditions = "clean", True, ("noisy",)
    w, v = 0.6, 0.02

    def denoise(self, noisy: Tensor, noise_level: Tensor, conditions: Conditions = NOTHING) -> Tensor:
        assert conditions.noisy is not None
        a2 = noise_level.reshape(len(noisy), 1, 1, -1) ** 2
        return (self.v * noisy + a2 * self.w * conditions.noisy) / (self.v + a2)


@pytest.mark.parametrize("per_frame", [False, True])
def test_a_denoiser_knows_the_drift(per_frame: bool) -> None:
    config = {"sde": OUVE().config, "stft": {"n_fft": 14}, "compression": {}, "architecture": {}}
    x, y = torch.randn(2, 2, 8, 5, dtype=torch.complex64)
    t = torch.rand(2, 5) * 0.9 + 0.05 if per_frame else torch.tensor([0.9, 0.1])
    over = t[:, None] if per_frame else t[:, None, None]
    delta, sigma = OUVE().delta(over), OUVE().sigma(over)
    w, v = Gaussian.w, Gaussian.v
    expected = -(x - delta * w * y - (1 - delta) * y) / (delta**2 * v + sigma**2)
    assert relative(ScoreNetwork(Gaussian(), config).score(x, t, noisy=y), expected) < TOLERANCE


def test_a_compact_one_starts_as_the_prior_that_it_is_made_of() -> None:
    torch.manual_seed(0)
    prior = build_network({"name": "compact", **SMALL})
    for parameter in prior.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    conditional = build_network({"name": "compact-conditional", **SMALL})
    assert isinstance(prior, Compact)
    assert isinstance(conditional, CompactConditional)
    missing, unexpected = conditional.load_state_dict(conditional.from_prior(prior.state_dict()), strict=False)
    assert {name.split(".")[0] for name in missing} == {"on_recording"}
    assert not unexpected
    u, level = torch.randn(2, 2, 256, 7), torch.tensor([0.8, 0.1])
    told = Conditions(noisy=torch.randn(2, 2, 256, 7))
    for ours, theirs in zip(conditional.posterior(u, level, told), prior.posterior(u, level), strict=True):
        torch.testing.assert_close(ours, theirs)
    conditional.on_recording.weight.data += 0.1
    assert not torch.equal(conditional.posterior(u, level, told)[0], prior.posterior(u, level)[0])


def test_no_conditional_network_is_joint_or_causal() -> None:
    for arguments in ({"causal_block": 4}, {"joint": True}):
        with pytest.raises(UdseError, match="compact-conditional: expected a network of speech that sees the future"):
            build_network({"name": "compact-conditional", **SMALL, **arguments})


def test_what_the_recording_says_is_needed_and_has_the_shape_of_the_state(small_checkpoint: Path) -> None:
    network = udse_fast.load_network(small_checkpoint)
    state = torch.zeros(1, 256, 5, dtype=torch.complex64)
    with pytest.raises(UdseError, match="expected the condition noisy, which it was trained with, got none"):
        network.score(state, 0.5)
    with pytest.raises(UdseError, match=r"noisy: expected complex numbers of the shape \(1, 256, 5\)"):
        network.score(state, 0.5, noisy=state[..., :4])


# Enhancer


@pytest.mark.parametrize("length", [1, 200, 5000, 40_000])
def test_any_length_is_enhanced(small_checkpoint: Path, length: int) -> None:
    audio = np.random.default_rng(0).standard_normal(length).astype(np.float32)
    enhancer = udse_fast.Enhancer(small_checkpoint, steps=2)
    speech, noise = enhancer.separate(audio, 16000)
    assert speech.shape == audio.shape
    np.testing.assert_allclose(speech + noise, audio, atol=1e-6 * max(1, np.abs(speech).max()))
    louder = udse_fast.Enhancer(small_checkpoint, steps=2).enhance(8 * audio, 16000)
    np.testing.assert_allclose(louder, 8 * speech, atol=2e-4 * np.abs(louder).max())  # the level is the input's


def test_a_stream_is_cut_as_one_likes(small_checkpoint: Path) -> None:
    audio = np.random.default_rng(0).standard_normal(40_000).astype(np.float32)
    enhancer = udse_fast.Enhancer(small_checkpoint, steps=2, device="cpu")
    outputs = []
    for size in (40_000, 7001):
        stream = enhancer.open_stream(16000, block_seconds=1.0)
        chunks = [stream.process(audio[start : start + size]) for start in range(0, len(audio), size)]
        outputs.append(np.concatenate([*chunks, stream.flush()]))
    assert outputs[0].shape == audio.shape
    np.testing.assert_array_equal(outputs[0], outputs[1])


def test_silence_stays_silence(small_checkpoint: Path) -> None:
    assert not udse_fast.Enhancer(small_checkpoint, steps=2).enhance(np.zeros(3000, np.float32), 16000).any()


def test_samplers_of_other_networks_are_refused_in_a_line(small_checkpoint: Path) -> None:
    for path in (small_checkpoint, GOLDEN / "ncsnpp.ckpt"):
        for sampler in ("ddrm", "diffuseen", "paradiffuse_en"):
            with pytest.raises(UdseError, match=r"expected a prior, got a conditional network, .* there are sgmse$"):
                udse_fast.Enhancer(path, sampler=sampler)
        with pytest.raises(UdseError, match=r"expected a posterior network .*, got a conditional network"):
            udse_fast.Enhancer(path, sampler="amortised")
    for checkpoint in ("posterior", "joint"):
        with pytest.raises(UdseError, match="sampler 'sgmse': expected a conditional network, trained on pairs, got a"):
            udse_fast.Enhancer(checkpoint, sampler="sgmse")


def test_a_causal_stream_is_refused_in_a_line(small_checkpoint: Path) -> None:
    enhancer = udse_fast.Enhancer(small_checkpoint, steps=2)
    with pytest.raises(UdseError, match=r"causal: expected a causal prior .* got compact-conditional and 'sgmse'"):
        enhancer.open_stream(causal=True)


def test_a_read_out_that_needs_a_noise_estimate_is_refused_in_a_line(small_checkpoint: Path) -> None:
    enhancer = udse_fast.Enhancer(small_checkpoint, steps=2, readout="wiener")
    with pytest.raises(UdseError, match="readout: expected auto, mean or mean_compressed with the sampler 'sgmse'"):
        enhancer.enhance(np.ones(3000, np.float32), 16000)
    with pytest.raises(UdseError, match="readout: expected auto, mean or mean_compressed with the sampler 'sgmse'"):
        udse_fast.Enhancer(small_checkpoint, steps=2).open_stream(readout="blend")


def test_published_step_sizes_go_by_the_grid(small_checkpoint: Path) -> None:
    enhancer = udse_fast.Enhancer(small_checkpoint, steps=5)
    settings = OverlapBlockEnhancer(enhancer.model, enhancer.settings, seed=0).sampler_settings
    assert settings.dt == pytest.approx([0.2425] * 4 + [0.03])
    assert (settings.samples, enhancer.settings.hum) == (1, "keep")


# Files


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_exports_know_the_kind(small_checkpoint: Path, tmp_path: Path, kind: str) -> None:
    exported = tmp_path / f"exported.{kind}"
    export_network(udse_fast.load_network(small_checkpoint), exported)
    audio = np.random.default_rng(0).standard_normal(3000).astype(np.float32)
    theirs = udse_fast.Enhancer(exported, steps=2, precision="float32")
    assert (theirs.sampler, theirs.network.kind) == ("sgmse", "conditional")
    expected = udse_fast.Enhancer(small_checkpoint, steps=2, precision="float32").enhance(audio, 16000)
    np.testing.assert_allclose(theirs.enhance(audio, 16000), expected, atol=1e-3 * np.abs(expected).max())


def test_a_public_checkpoint_becomes_safetensors(tmp_path: Path) -> None:
    public, io = udse_fast.load_network(GOLDEN / "ncsnpp_v2.ckpt"), recorded("ncsnpp_v2_io")
    export_network(public, tmp_path / "a.safetensors")
    again = udse_fast.load_network(tmp_path / "a.safetensors")
    assert relative(again.score(io["state"], io["t"], noisy=io["noisy"]), io["score"]) < TOLERANCE


def lightning_file(path: Path, **settings: Any) -> Path:
    network = build_network({"name": "ncsnpp-conditional", "nf": 8, "ch_mult": [1, 2]})
    weights = {f"dnn.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": weights, "hyper_parameters": settings}, path)
    return path


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"backbone": "ncsnpp_48k"}, "expected the backbone ncsnpp or ncsnpp_v2, got 'ncsnpp_48k'"),
        ({"backbone": "ncsnpp_v2", "sde": "sbve"}, "expected a model with sde ouve, got 'sbve'"),
        (
            {"backbone": "ncsnpp_v2", "loss_type": "mae"},
            "loss_type: expected score_matching or denoiser or data_predict",
        ),
        ({"backbone": "ncsnpp_v2", "c_in": "2"}, "c_in: expected 1 or edm, got '2'"),
        ({"backbone": "ncsnpp_v2", "network_scaling": 3}, "network_scaling: expected None or 1/sigma or 1/t, got 3"),
        ({"backbone": "ncsnpp_v2", "sigma_data": -1.0}, "sigma_data: expected a number"),
    ],
)
def test_other_forward_passes_are_refused_in_a_line(tmp_path: Path, settings: dict[str, Any], line: str) -> None:
    with pytest.raises(UdseError) as caught:
        udse_fast.load_network(lightning_file(tmp_path / "a.ckpt", **settings))
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_older_files_say_less(tmp_path: Path) -> None:
    old = udse_fast.load_network(lightning_file(tmp_path / "a.ckpt", loss_type="mse", sde_n=1000))
    assert old.config["architecture"]["backbone"] == "ncsnpp"
    assert old.config["stft"]["sample_rate"] == 16000


def test_info_says_what_a_checkpoint_is(small_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(GOLDEN / "ncsnpp_v2.ckpt"), str(small_checkpoint), "joint"]) == 0
    public, small, joint = capsys.readouterr().out.split("kind: ")[1:]
    assert public.startswith(
        "a conditional network, trained on pairs\n  is told: noisy\n  sampler: sgmse; there are sgmse\n"
    )
    assert "16000 Hz, 126 samples, hop 32, hann window, 0.15 |z|^0.5" in public
    assert "510 samples, hop 255, sqrt_hann" in small
    assert joint.startswith("a prior\n  is told: label\n  sampler: ddrm; there are udiffse, ")
    assert main(["info", "nothing.ckpt"]) == 2
    assert capsys.readouterr().err.count("\n") == 1

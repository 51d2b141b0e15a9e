"""Networks that are told the latent of an audio tagger, the tagger, and its files."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import udse_fast
from udse_fast.checkpoints.checkpoint import save_checkpoint
from udse_fast.checkpoints.export import export_network
from udse_fast.errors import UdseError
from udse_fast.networks import build_network
from udse_fast.networks.cnn14 import Cnn14, LogMel, Spectrogram, mel_filters
from udse_fast.networks.conditions import Conditions
from udse_fast.networks.latent_attention import LatentAttention
from udse_fast.networks.optimised import fused_ncsnpp
from udse_fast.networks.score_network import ScoreGraph
from udse_fast.sampling.sde import OUVE
from udse_fast.streaming.blocks import Block
from udse_fast.tagger import GivenLatent, Tagger
from udse_fast.training.batches import Batch
from udse_fast.training.trainer import score_matching_loss

RATE = 16000
WIDTH = 2  # of the first block of the taggers here
SIZE = 32 * WIDTH
SMALL: dict[str, Any] = {"channels": (8, 8, 8), "blocks": (1, 1, 1), "frame_channels": 16, "dilations": (1, 2)}


def random_weights(network: torch.nn.Module, share: float) -> None:
    torch.manual_seed(0)
    for parameter in network.parameters():
        parameter.data += share * torch.randn_like(parameter)


@pytest.fixture(scope="module")
def tagger_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tagger of random weights in the container of the public one."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("tagger") / "cnn14.pth"
    torch.save({"iteration": 1, "model": Cnn14(WIDTH).state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    architecture = {"name": "compact-conditional", "latent_size": SIZE, **SMALL}
    network = build_network(architecture)
    random_weights(network, 0.003)
    network.get_submodule("latent").output.weight.data += 0.5  # type: ignore[union-attr,operator]
    path = tmp_path_factory.mktemp("tagged") / "small.safetensors"
    stft = {"n_fft": 510, "hop_length": 255, "window": "sqrt_hann", "sample_rate": RATE}
    save_checkpoint(path, network.state_dict(), {"architecture": architecture, "stft": stft})
    return path


def noise(length: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal(length).astype(np.float32) * np.float32(0.1)


# The tagger


def test_the_published_size() -> None:
    with torch.device("meta"):
        network = Cnn14()
    parameters = {name: tuple(w.shape) for name, w in network.named_parameters()}
    learnt = [w for name, w in network.named_parameters() if "extractor" not in name]
    assert sum(w.numel() for w in learnt) == 80_753_615  # as its authors count it
    assert parameters["spectrogram_extractor.stft.conv_imag.weight"] == (513, 1, 1024)
    assert parameters["logmel_extractor.melW"] == (513, 64)
    assert parameters["conv_block6.conv2.weight"] == (2048, 2048, 3, 3)
    assert parameters["fc_audioset.weight"] == (527, 2048)
    buffers = {name.split(".")[-1] for name, _ in network.named_buffers()}
    assert buffers == {"running_mean", "running_var", "num_batches_tracked"}


def test_the_front_end_is_a_mel_spectrogram() -> None:
    audio = torch.from_numpy(noise(32000))[None]
    power = Spectrogram()(audio)
    expected = torch.stft(audio, 1024, 320, window=torch.hann_window(1024), return_complex=True).abs() ** 2
    torch.testing.assert_close(power[:, 0].transpose(1, 2), expected, rtol=1e-4, atol=1e-4)
    filters = mel_filters()
    np.testing.assert_allclose(filters.sum(0) * 31.25, 1, atol=0.06)  # unit area in Hz, sampled at the bins
    tone = torch.sin(2 * torch.pi * 1000 / 32000 * torch.arange(32000))[None]
    band = int(LogMel()(Spectrogram()(tone)).mean(2).argmax())
    assert filters[32, band] == filters[32].max()  # the bin of 1 kHz
    assert LogMel()(torch.zeros(1, 1, 2, 513)).unique().tolist() == [-100]


@pytest.mark.parametrize(("seconds", "frames"), [(0.01, 1), (0.5, 1), (1.0, 3), (2.04, 6)])
def test_a_frame_of_the_latent_is_0_32_s(tagger_file: Path, seconds: float, frames: int) -> None:
    latent = Tagger(tagger_file).latent(torch.from_numpy(noise(round(seconds * RATE)))[None], RATE)
    assert latent.shape == (1, frames, SIZE)
    assert bool((latent >= 0).all())


def test_probabilities_of_classes(tagger_file: Path) -> None:
    network = Tagger(tagger_file).network
    probabilities = network.class_probabilities(torch.zeros(1, 2, SIZE))
    assert probabilities.shape == (1, 2, 527)
    assert bool(((probabilities > 0) & (probabilities < 1)).all())


# Its files


def older_format(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def test_files_of_every_kind_hold_the_same(tagger_file: Path, tmp_path: Path) -> None:
    weights = Tagger(tagger_file).network.state_dict()
    sampler = {"indexes": np.arange(5), "more": [torch.zeros(3, dtype=torch.float64)]}
    kinds: dict[str, Callable[[Path], Any]] = {
        "older": lambda p: p.write_bytes(older_format({"iteration": 1, "model": weights, "sampler": sampler})),
        "parallel": lambda p: torch.save({f"module.{name}": w for name, w in weights.items()}, p),
        "safetensors": lambda p: save_file({name: w.contiguous() for name, w in weights.items()}, p),
    }
    for kind, write in kinds.items():
        write(tmp_path / kind)
        found = Tagger(tmp_path / kind).network.state_dict()
        assert all(torch.equal(found[name], w) for name, w in weights.items()), kind


class Attack:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.target),)


def test_nothing_in_a_file_runs(tagger_file: Path, tmp_path: Path) -> None:
    weights = Tagger(tagger_file).network.state_dict()
    path = tmp_path / "evil.pth"
    path.write_bytes(older_format({"model": weights, "more": Attack(tmp_path / "made")}))
    assert Tagger(path).latent_size == SIZE
    assert not (tmp_path / "made").exists()
    (tmp_path / "bare.pkl").write_bytes(pickle.dumps(Attack(tmp_path / "made")))
    with pytest.raises(UdseError, match="expected a PyTorch file"):
        Tagger(tmp_path / "bare.pkl")
    assert not (tmp_path / "made").exists()


def test_other_files_are_refused_in_a_line(tagger_file: Path, tmp_path: Path) -> None:
    weights = dict(Tagger(tagger_file).network.state_dict())
    good, old = tagger_file.read_bytes(), older_format({"model": weights})
    nan = {**weights, "fc1.bias": torch.full((SIZE,), torch.nan)}
    lacking = {name: w for name, w in weights.items() if name != "fc1.bias"}
    contents = {
        "none": (None, "No such file"),
        "empty": (b"", "expected a PyTorch file"),
        "text": (b"hello, this is no tagger", "expected a PyTorch file"),
        "half": (good[: len(good) // 2], "expected a PyTorch file"),
        "half of an older one": (old[: len(old) // 2], "expected a PyTorch file"),
        "another network": (older_format({"model": {"a": torch.zeros(2)}}), "expected the weight"),
        "a weight is missing": (
            older_format({"model": lacking}),
            "expected the weight fc1.bias of the shape (64,), got",
        ),
        "not finite": (older_format({"model": nan}), "expected finite weights"),
    }
    for name, (content, line) in contents.items():
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UdseError) as caught:
            Tagger(path)
        assert line in str(caught.value), name
        assert "\n" not in str(caught.value)


# The network


def test_one_frame_says_the_same_to_every_position() -> None:
    torch.manual_seed(0)
    h, latents = torch.randn(1, 16, 4, 6), torch.randn(1, 5, 12)
    for pooling, latent in (("frames", latents[:, :1]), ("mean", latents)):
        attention = LatentAttention(16, 12, pooling)
        assert not attention.attended(h, latent).any()  # at the start
        attention.output.weight.data.normal_()
        said = attention.attended(h, latent)
        torch.testing.assert_close(said, said[..., :1, :1].expand_as(said))
        attention.query.weight.data.normal_()
        torch.testing.assert_close(attention.attended(h, latent), said)
    several = attention = LatentAttention(16, 12)
    attention.output.weight.data.normal_()
    said = several.attended(h, latents)
    attention.query.weight.data.normal_()
    assert not torch.allclose(several.attended(h, latents), said)


def test_frames_are_told_apart_by_their_position() -> None:
    torch.manual_seed(0)
    attention = LatentAttention(16, 12)
    attention.output.weight.data.normal_()
    h, latent = torch.randn(1, 16, 4, 6), torch.randn(1, 5, 12)
    assert not torch.allclose(attention.attended(h, latent), attention.attended(h, latent.flip(1)), atol=1e-4)


def test_the_published_network_with_a_latent() -> None:
    """One module more, after the attention of the bottleneck; the names before it stay."""
    torch.manual_seed(0)
    arguments = {"name": "ncsnpp-conditional", "nf": 8, "ch_mult": (1, 2)}
    plain, told = build_network(arguments), build_network({**arguments, "latent_size": 12})
    names = {name.split(".")[1] for name in told.state_dict() if ".latent." in name}
    (place,) = names
    before = f"all_modules.{int(place) - 1}.NIN_0.W"
    assert plain.state_dict()[before].shape == told.state_dict()[before].shape
    random_weights(told, 0.05)
    inputs = told.example(2, 64, 64)
    graph = ScoreGraph(told, OUVE())
    score = graph(*inputs).detach()
    assert not torch.allclose(graph(*inputs[:3], inputs[3] + 1), score)
    fused = ScoreGraph(fused_ncsnpp(told), OUVE())  # type: ignore[arg-type]
    assert float((fused(*inputs) - score).norm() / score.norm()) < 1e-4


def either_half(generator: torch.Generator, count: int, told: bool) -> Batch:
    """Two sounds, one in each half of the band, and the one that is wanted, which only the latent says."""
    sounds = 0.1 * torch.randn(2, count, 32, 8, dtype=torch.complex64, generator=generator)
    sounds[0, :, 16:] *= 0.05
    sounds[1, :, :16] *= 0.05
    wanted = torch.randint(2, (count,), generator=generator)
    clean = torch.where(wanted[:, None, None] == 0, *sounds)
    latent = torch.nn.functional.one_hot(wanted, 2)[:, None].float().expand(-1, 2, -1)
    return Batch(clean, Conditions(noisy=sounds.sum(0), latent=latent if told else None))


def learnt_error(told: bool) -> float:
    """Relative error of the estimate at t = 1, after a short training."""
    torch.manual_seed(0)
    sizes = {"channels": (8, 8), "blocks": (1, 1), "frame_channels": 16, "dilations": (1,)}
    architecture = {"name": "compact-conditional", "bins": 32, "sigma_data": 0.07, "latent_size": 2 * told, **sizes}
    network = build_network(architecture)
    graph, optimizer = ScoreGraph(network, OUVE()), torch.optim.AdamW(network.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(1)

    def errors(count: int, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        batch = either_half(generator, count, told)
        z = torch.randn(batch.spectrograms.shape, dtype=torch.complex64, generator=generator)
        return score_matching_loss(graph, batch, t, z)

    for _ in range(200):
        optimizer.zero_grad()
        errors(8, 0.03 + 0.97 * torch.rand(8, generator=generator))[0].mean().backward()
        optimizer.step()
    with torch.no_grad():
        return float(errors(64, torch.ones(64))[1].mean())


def test_what_the_latent_says_is_learnt() -> None:
    assert learnt_error(told=True) < 0.35
    assert learnt_error(told=False) > 0.45  # half of the power is a guess


def test_an_export_is_told_the_latent(checkpoint: Path, tmp_path: Path) -> None:
    network = udse_fast.load_network(checkpoint)
    assert export_network(network, tmp_path / "a.pt") < 1e-5
    assert udse_fast.load_network(tmp_path / "a.pt").kind == "tagged"


# Enhancer


def test_a_tagged_checkpoint_asks_for_its_tagger(checkpoint: Path, tagger_file: Path) -> None:
    enhancer = udse_fast.Enhancer(checkpoint, tagger=tagger_file, device="cpu", steps=2)
    assert enhancer.sampler == "ex_diff"
    assert udse_fast.Enhancer(checkpoint).settings.steps == 40
    audio = noise(12_000)
    speech = enhancer.enhance(audio, RATE)
    own = enhancer.tagger.latent(torch.from_numpy(audio)[None], RATE)[0]  # type: ignore[union-attr]
    bare = udse_fast.Enhancer(checkpoint, device="cpu", steps=2)
    np.testing.assert_array_equal(bare.enhance(audio, RATE, latent=own), speech)
    np.testing.assert_array_equal(bare.enhance(audio, RATE, latent=own.numpy()), speech)
    assert np.abs(bare.enhance(audio, RATE, latent=own + 1) - speech).max() > 1e-3
    for call in (lambda: bare.enhance(audio, RATE), bare.open_stream):
        with pytest.raises(UdseError, match=r"sampler 'ex_diff': expected tagger=FILE .* or a latent, got neither"):
            call()


def test_a_stream_is_tagged_block_by_block(checkpoint: Path, tagger_file: Path) -> None:
    enhancer = udse_fast.Enhancer(checkpoint, tagger=tagger_file, device="cpu", steps=2)
    audio, outputs = noise(30_000), []
    for size in (30_000, 999):
        stream = enhancer.open_stream(RATE, block_seconds=0.8)
        chunks = [stream.process(audio[start : start + size]) for start in range(0, len(audio), size)]
        outputs.append(np.concatenate([*chunks, stream.flush()]))
    assert outputs[0].shape == audio.shape
    np.testing.assert_array_equal(outputs[0], outputs[1])


def test_a_given_latent_belongs_to_its_time() -> None:
    spectral = udse_fast.Enhancer().spectral
    latent = torch.arange(10.0)[:, None]
    tell = GivenLatent(latent, 5.0, spectral, size=1)

    def told(start: float, seconds: float) -> list[float]:
        frame = round(start * RATE / spectral.hop_length)
        told = tell(Block(torch.zeros(round(seconds * RATE)), frame, None)).latent
        assert told is not None
        return told.flatten().tolist()

    assert told(0, 5) == list(range(10))
    assert told(0, 1) == [0, 1]
    assert told(2, 1.5) == [4, 5, 6]
    assert told(4.9, 0.1) == [9]
    once = GivenLatent(latent[:1], 5.0, spectral, size=1)
    assert once(Block(torch.zeros(RATE), 200, None)).latent == latent[:1][None]


def test_what_does_not_fit_is_one_line(checkpoint: Path, tagger_file: Path, tmp_path: Path) -> None:
    enhancer, audio = udse_fast.Enhancer(checkpoint), noise(3000)
    shape = rf"latent: expected finite real numbers \(frames, {SIZE}\)"
    for latent in (torch.zeros(3, SIZE + 1), torch.zeros(SIZE), torch.full((2, SIZE), torch.nan), "loud", [[1.0]]):
        with pytest.raises(UdseError, match=shape):
            enhancer.enhance(audio, RATE, latent=latent)
    with pytest.raises(UdseError, match=r"latent: expected a network that is told one \(sampler 'ex_diff'\)"):
        udse_fast.Enhancer().enhance(audio, RATE, latent=torch.zeros(3, SIZE))
    with pytest.raises(UdseError, match="tagger: expected no tagger, which this network is not told of"):
        udse_fast.Enhancer(tagger=tagger_file)
    torch.save(Cnn14(1).state_dict(), tmp_path / "smaller.pth")
    with pytest.raises(UdseError, match="tagger: expected one with a latent of 64, got one with a latent of 32"):
        udse_fast.Enhancer(checkpoint, tagger=tmp_path / "smaller.pth")
    with pytest.raises(
        UdseError, match=r"'sgmse': expected a conditional network, trained on pairs, got a cond.* ex_diff"
    ):
        udse_fast.Enhancer(checkpoint, sampler="sgmse")
    with pytest.raises(UdseError, match="latent_pooling: expected frames or mean, got 'max'"):
        build_network({"name": "compact-conditional", **SMALL, "latent_size": 4, "latent_pooling": "max"})


def test_presets_are_published_settings(checkpoint: Path) -> None:
    assert udse_fast.Enhancer(checkpoint, preset="vocals").settings.steps == 90
    assert udse_fast.Enhancer(checkpoint, preset="vocals", steps=3).settings.steps == 3
    settings = udse_fast.Enhancer(checkpoint, preset="dereverberation").settings
    assert (settings.steps, settings.corrector_snr) == (50, 0.33)
    with pytest.raises(UdseError, match="preset: expected vocals or dereverberation, got 'opera'"):
        udse_fast.Enhancer(checkpoint, preset="opera")

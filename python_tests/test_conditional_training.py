"""Training on pairs: what is mixed, what is read, the loss's closed form, the command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

import udse_fast
from udse_fast.audio.spectral import PeakSpectral
from udse_fast.cli import main
from udse_fast.commands import train as command
from udse_fast.errors import UdseError
from udse_fast.networks import network_class
from udse_fast.networks.base import Network
from udse_fast.networks.cnn14 import Cnn14
from udse_fast.networks.conditions import NOTHING, Conditions
from udse_fast.networks.score_network import ScoreGraph
from udse_fast.sampling.sde import OUVE, SDE
from udse_fast.tagger import Tagger
from udse_fast.training.batches import Augmentation, Batch
from udse_fast.training.conditional_batches import ConditionalBatches, MixedPairs, RecordedPairs
from udse_fast.training.corpus import Corpus, recordings_in
from udse_fast.training.trainer import Settings, Trainer, score_matching_loss

RATE = 16000
SPECTRAL = PeakSpectral(hop_length=255, window="sqrt_hann")
TINY: dict[str, Any] = {"channels": [8, 8], "blocks": [1, 1], "frame_channels": 16, "dilations": [1]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """speech/, noise/, and clean/ beside noisy/, where noisy is -1/2 clean."""
    root = tmp_path_factory.mktemp("recordings")
    rng = np.random.default_rng(0)
    n = np.arange(RATE) / RATE
    for folder in ("speech", "noise", "clean", "noisy"):
        (root / folder).mkdir()
    for number in range(4):
        tone = 0.5 * np.sin(2 * np.pi * (150 + 40 * number) * n) * np.sin(2 * np.pi * 3 * n + 1) ** 2
        soundfile.write(root / "speech" / f"s{number}_a.wav", tone, RATE, subtype="FLOAT")
        soundfile.write(root / "noise" / f"n{number}_a.wav", 0.1 * rng.standard_normal(RATE), RATE, subtype="FLOAT")
        soundfile.write(root / "clean" / f"s{number}_a.wav", tone, RATE, subtype="FLOAT")
        soundfile.write(root / "noisy" / f"s{number}_a.flac", -tone / 2, RATE)
    return root


def corpus(folder: Path) -> Corpus:
    return Corpus(recordings_in(folder), RATE)


def test_speech_and_noise_are_mixed_at_the_asked_ratio(folders: Path) -> None:
    speech, noise = corpus(folders / "speech"), corpus(folders / "noise")
    pairs = MixedPairs(speech, noise, Augmentation(0.1, 3.0), snr_range=(3.0, 3.0))
    clean, noisy = pairs.crops(np.random.default_rng(0), 6, 8001)
    ratios = 10 * np.log10((clean**2).sum(1) / ((noisy - clean) ** 2).sum(1))
    np.testing.assert_allclose(ratios, 3, atol=0.01)
    spread = MixedPairs(speech, noise).crops(np.random.default_rng(0), 64, 4000)
    ratios = 10 * np.log10((spread.clean**2).sum(1) / ((spread.noisy - spread.clean) ** 2).sum(1))
    assert ratios.min() > -8.01
    assert ratios.max() < 15.01
    assert ratios.std() > 3


def test_pairs_are_cut_at_the_same_places(folders: Path) -> None:
    pairs = RecordedPairs(recordings_in(folders / "clean"), recordings_in(folders / "noisy"), RATE)
    clean, noisy = pairs.crops(np.random.default_rng(0), 8, 12_000)
    np.testing.assert_allclose(noisy, -clean / 2, atol=1e-4)
    assert np.abs(noisy).max() > 0.1


def test_batches_are_functions_of_their_number_at_the_level_of_inference(folders: Path) -> None:
    pairs = MixedPairs(corpus(folders / "speech"), corpus(folders / "noise"))
    batches = ConditionalBatches(pairs, SPECTRAL, size=3, frames=16, seed=5)
    again = ConditionalBatches(pairs, SPECTRAL, size=3, frames=16, seed=5)
    batch = batches[7]
    assert batch.conditions.given == ("noisy",)
    assert batch.conditions.noisy is not None
    assert batch.spectrograms.shape == batch.conditions.noisy.shape == (3, 256, 16)
    assert torch.equal(batch.spectrograms, again[7].spectrograms)
    assert not torch.equal(batch.spectrograms, batches[8].spectrograms)
    fixed = ConditionalBatches(pairs, SPECTRAL, size=3, frames=16, gain_range=(1.0, 1.0), seed=5)
    _, noisy = fixed.waveforms(7)
    for audio, spectrogram in zip(noisy, fixed[7].conditions.noisy, strict=True):  # type: ignore[arg-type]
        y, level = SPECTRAL.analyse(torch.from_numpy(audio))
        assert float(level) == pytest.approx(1)
        torch.testing.assert_close(y, spectrogram)


class KnowsBoth(Network):
    """The score of x_t where x_0 is known, too."""

    predicts, drifts, conditions = "score", True, ("noisy",)
    clean: Tensor

    def predict_score(self, state: Tensor, time: Tensor, sde: SDE, conditions: Conditions = NOTHING) -> Tensor:
        assert conditions.noisy is not None
        delta, sigma = (torch.as_tensor(f(time))[:, None, None, None] for f in (sde.delta, sde.sigma))
        return -(state - delta * self.clean - (1 - delta) * conditions.noisy) / sigma**2


def test_the_loss_is_that_of_a_diffusion_that_drifts() -> None:
    torch.manual_seed(0)
    s0, y, z = torch.randn(3, 2, 8, 5, dtype=torch.complex64)
    network, t = KnowsBoth(), torch.tensor([0.9, 0.1])
    network.clean = torch.view_as_real(s0).movedim(-1, 1)
    batch = Batch(s0, Conditions(noisy=y))
    loss, relative = score_matching_loss(ScoreGraph(network, OUVE()), batch, t, z)
    torch.testing.assert_close(loss, torch.zeros(2), atol=1e-9, rtol=0)
    network.clean = network.clean * 1.1  # an error of 10 %
    loss, relative = score_matching_loss(ScoreGraph(network, OUVE()), batch, t, z)
    torch.testing.assert_close(relative, torch.full((2,), 0.01), rtol=1e-3, atol=0)
    ratio = (OUVE().delta(t) / OUVE().sigma(t)) ** 2 * 0.01 * s0.abs().square().mean((1, 2))
    torch.testing.assert_close(loss, ratio, rtol=1e-3, atol=0)


def test_pairs_of_unequal_length_are_refused(folders: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.ones(9000), RATE)
    clean = [*recordings_in(folders / "clean")[:1], tmp_path / "a.wav"]
    with pytest.raises(
        UdseError, match=r"a\.wav: expected as many samples as the noisy recording has, 16000, got 9000"
    ):
        RecordedPairs(clean, recordings_in(folders / "noisy")[:2], RATE)


# The command


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A conditional network of a size for tests."""
    monkeypatch.setitem(command.NETWORKS, "compact-conditional", {"name": "compact-conditional", **TINY})


def trained(out: Path, *arguments: object, steps: int = 2) -> int:
    settings = [
        "--network",
        "compact-conditional",
        "--batch-size",
        2,
        "--crop-seconds",
        0.5,
        "--threads",
        1,
        "--steps",
        steps,
    ]
    return main(["train", *map(str, [*settings, "--out", out, *arguments])])


@pytest.mark.usefixtures("tiny")
def test_training_on_pairs_makes_a_checkpoint_that_enhances(folders: Path, tmp_path: Path) -> None:
    out = tmp_path / "pairs.safetensors"
    assert trained(out, "--pairs", folders / "clean", folders / "noisy") == 0
    enhancer = udse_fast.Enhancer(out, steps=1)
    assert enhancer.sampler == "sgmse"
    assert enhancer.network.config["training"]["recordings"] == 3  # one speaker of four is held out
    audio = np.random.default_rng(0).standard_normal(3000).astype(np.float32)
    assert enhancer.enhance(audio, RATE).shape == audio.shape


def test_the_published_network_is_trained(folders: Path, tmp_path: Path) -> None:
    pairs = RecordedPairs(recordings_in(folders / "clean"), recordings_in(folders / "noisy"), RATE)
    architecture = {"name": "ncsnpp-conditional", "nf": 8, "ch_mult": [1, 2]}
    spectral = network_class("ncsnpp-conditional").spectral
    assert isinstance(spectral, PeakSpectral)
    batches = ConditionalBatches(pairs, spectral, size=1, frames=64)
    settings = Settings(architecture, spectral, steps=1, batch_size=1)
    facts = {"network": "ncsnpp-conditional-5m"}
    trainer = Trainer(
        settings, batches, batches, tmp_path / "a.safetensors", device=torch.device("cpu"), precision=torch.float32,
        facts=facts, licence="none",
    )  # fmt: skip
    before = trainer.module.get_submodule("output_layer").weight.clone()  # type: ignore[operator]
    assert float(trainer.train_step(batches[0])) > 0
    assert not torch.equal(trainer.module.get_submodule("output_layer").weight, before)  # type: ignore[arg-type]
    trainer.save()
    assert udse_fast.Enhancer(tmp_path / "a.safetensors").sampler == "sgmse"


@pytest.mark.usefixtures("tiny")
def test_training_on_a_mixture_resumes_exactly(folders: Path, tmp_path: Path) -> None:
    sources = ["--speech", folders / "speech", "--noise", folders / "noise"]
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    assert trained(whole, *sources, "--decay-share", 0, steps=4) == 0
    for steps in (2, 4):
        assert trained(parts, *sources, "--decay-share", 0, steps=steps) == 0
    ours, theirs = (udse_fast.load_network(path).module.state_dict() for path in (whole, parts))
    for name, weight in ours.items():
        assert torch.equal(weight, theirs[name]), name


@pytest.mark.usefixtures("tiny")
def test_folders_of_both_are_found(folders: Path, tmp_path: Path) -> None:
    assert trained(tmp_path / "a.safetensors", "--pairs", folders, "--valid-pairs", folders, steps=1) == 0
    assert udse_fast.load_network(tmp_path / "a.safetensors").config["training"]["recordings"] == 4


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("pooling", ["frames", "mean"])
def test_a_tagger_stays_what_it_is(folders: Path, tmp_path: Path, pooling: str) -> None:
    torch.manual_seed(0)
    torch.save(Cnn14(1).state_dict(), tmp_path / "tagger.pth")
    sources = ["--speech", folders / "speech", "--noise", folders / "noise", "--tagger", tmp_path / "tagger.pth"]
    out = tmp_path / "tagged.safetensors"
    assert trained(out, *sources, "--latent-pooling", pooling, steps=4) == 0  # heads and bottleneck start at zero, too
    network = udse_fast.load_network(out)
    assert network.kind == "tagged"
    assert network.config["architecture"]["latent_pooling"] == pooling
    assert not any("conv_block" in name for name in network.module.state_dict())
    moved = network.module.get_submodule("latent.output").weight
    assert bool(moved.any())  # which started at zero
    pairs = MixedPairs(corpus(folders / "speech"), corpus(folders / "noise"))
    batch = ConditionalBatches(pairs, SPECTRAL, size=2, frames=80, tagger=Tagger(tmp_path / "tagger.pth"))[0]
    assert batch.conditions.given == ("noisy", "latent")
    assert batch.conditions.latent is not None
    assert batch.conditions.latent.shape == (2, 3, 32)
    assert not batch.conditions.latent.requires_grad


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--speech", "{}/speech"], "expected --pairs CLEAN NOISY, or --speech DIR and --noise DIR to be mixed"),
        (["--pairs", "{}/clean", "{}/noisy", "--noise", "{}/noise"], "--pairs: expected one folder or two, a condit"),
        (["--pairs", "{}/clean", "{}/noisy", "{}/noise"], "--pairs: expected one folder or two, a conditional network"),
        (["--pairs", "{}/clean", "{}/noisy", "--network", "compact"], "--pairs: expected one folder or two, a cond"),
        (["--pairs", "{}/clean", "{}/noise"], "expected a clean file for all of the 4 noisy ones, 4 missing"),
        (["--speech", "{}/speech", "--network", "compact", "--tagger", "x"], "--tagger: expected a conditional net"),
        (["--pairs", "{}", "--tagger", "{}/none.pth"], "expected the file of a tagger"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], line: str
) -> None:
    assert trained(tmp_path / "a.safetensors", *(text.format(folders) for text in arguments)) == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1
    assert not (tmp_path / "a.safetensors").exists()

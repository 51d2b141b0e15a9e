"""Training with videos: the mouths belong to the crops, the encoder learns to read them, the prior stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from udse_fast.audio.spectral import Spectral
from udse_fast.checkpoints.checkpoint import load_network, save_checkpoint
from udse_fast.cli import main
from udse_fast.commands import train
from udse_fast.errors import UdseError
from udse_fast.evaluation.synthetic_lips import draw_mouths, write_clip
from udse_fast.networks import build_network
from udse_fast.networks.conditions import Conditions
from udse_fast.training.batches import Batch
from udse_fast.training.corpus import Place
from udse_fast.training.lip_reading import band_levels, warm_up
from udse_fast.training.trainer import ENCODER_RATE, Optimizers
from udse_fast.training.video_batches import VideoBatches, VideoCorpus, videos_in

RATE = 16000
SMALL = {"channels": [8, 8, 8], "blocks": [1, 1, 1], "frame_channels": 16, "dilations": [1], "embedding": 16}
EYES = {"name": "compact", "features": 12, "channels": [4, 6, 8]}
SPECTRAL = Spectral(hop_length=255, window="sqrt_hann")


def syllables(seconds: float, seed: int) -> np.ndarray:
    """Noise and tones that come and go."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * RATE)) / RATE
    loudness = np.clip(np.sin(2 * np.pi * rng.uniform(1.5, 3) * time + rng.uniform(0, 6)), 0, 1) ** 2
    pitch = rng.uniform(120, 220)
    voice = sum(np.sin(2 * np.pi * k * pitch * time) / k for k in range(1, 12))
    return (0.1 * loudness * (voice + 0.2 * rng.normal(size=len(time)))).astype(np.float32)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos of four talkers."""
    folder = tmp_path_factory.mktemp("clips")
    for number in range(4):
        speech = syllables(3.0, number)
        (folder / f"talker{number}").mkdir()
        write_clip(folder / f"talker{number}" / "a.mkv", draw_mouths(speech, RATE, number), speech, RATE)
    return folder


@pytest.fixture(scope="module")
def corpus(clips: Path) -> VideoCorpus:
    return VideoCorpus(videos_in(clips), RATE)


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_network({"name": "compact-av", "encoder": EYES, **SMALL})


def test_the_mouths_are_those_of_the_crop(corpus: VideoCorpus) -> None:
    whole = corpus.mouths(1)
    at_start = corpus.frames([Place(1, 0, RATE)], 25)[0]
    np.testing.assert_array_equal(at_start, whole[:25])
    later = corpus.frames([Place(1, RATE, RATE)], 25)[0]
    np.testing.assert_array_equal(later, whole[25:50])
    slower = corpus.frames([Place(1, 0, 2 * RATE)], 25)[0]  # played twice as fast
    np.testing.assert_array_equal(slower, whole[1:50:2])
    beyond = corpus.frames([Place(1, -RATE, 2 * RATE)], 50)[0]
    np.testing.assert_array_equal(beyond, np.concatenate([np.repeat(whole[:1], 25, 0), whole[:25]]))


def test_batches_follow_from_their_number_and_some_are_blind(corpus: VideoCorpus) -> None:
    batches = VideoBatches(corpus, SPECTRAL, size=16, frames=63, dropout=0.5, seed=3)
    one, again, other = batches[7], batches[7], batches[8]
    assert one.frames is not None
    assert one.sees is not None
    assert one.frames.shape == (16, 25, 88, 88)
    assert torch.equal(one.frames, again.frames)
    assert torch.equal(one.spectrograms, again.spectrograms)
    assert not torch.equal(one.spectrograms, other.spectrograms)
    assert 2 <= one.sees.sum() <= 14
    moved = one.to(torch.device("cpu"))
    assert torch.equal(moved.sees, one.sees)


def test_blind_items_are_told_zeros(corpus: VideoCorpus) -> None:
    module = network()
    frames = torch.from_numpy(corpus.frames([Place(0, 0, RATE)] * 2, 25))
    batch = Batch(torch.zeros(2, 256, 64, dtype=torch.complex64), frames=frames, sees=torch.tensor([1.0, 0.0]))
    video = batch.told(module).video
    assert video is not None
    assert not video[1].any()
    assert video[0].abs().mean() > 0.3


def test_the_encoder_learns_to_read_lips(corpus: VideoCorpus) -> None:
    module = network()
    batches = VideoBatches(corpus, SPECTRAL, size=4, frames=63, dropout=0)
    untold = warm_up(module, batches, 80, torch.device("cpu"))
    assert untold < 0.7  # 1: nothing is told


def test_levels_of_bands_are_standardised() -> None:
    spectrograms = torch.randn(3, 256, 64, dtype=torch.complex64) * torch.linspace(0.1, 1, 64)
    levels = band_levels(spectrograms, 25)
    assert levels.shape == (3, 25, 16)
    torch.testing.assert_close(levels.mean((0, 1)), torch.zeros(16), atol=1e-5, rtol=0)
    assert float(levels[:, -5:].mean()) > 0.5


def test_a_network_that_sees_starts_as_the_prior_it_is_made_of() -> None:
    torch.manual_seed(1)
    prior, seeing = build_network({"name": "compact", **SMALL}), network()
    for parameter in prior.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    seeing.load_state_dict(prior.state_dict(), strict=False)
    u, level = torch.randn(2, 2, 256, 20), torch.tensor([0.5, 0.1])
    expected = prior.posterior(u, level)
    told = Batch(torch.zeros(2, 256, 20, dtype=torch.complex64)).conditions
    for video in (None, torch.randn(2, 8, 12)):
        conditions = told if video is None else type(told)(video=video)
        for got, wanted in zip(seeing.posterior(u, level, conditions), expected, strict=True):
            torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_where_a_network_does_not_count_what_it_sees_it_sees_nothing() -> None:
    """How much is made of a video goes by the noise level; no blind spot may be a shift of its own."""
    seeing = network()
    for parameter in seeing.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    u, video = torch.randn(2, 2, 256, 20), torch.randn(2, 8, 12)
    blind, seen = Conditions(video=torch.zeros(1, 1, 12)), Conditions(video=video)
    told = [seeing.posterior(u, torch.tensor([0.5, 0.05]), conditions)[0] for conditions in (seen, blind)]
    assert float((told[0] - told[1]).abs().amax((1, 2, 3)).min()) > 1e-3
    embedded = seeing._embedded(torch.tensor([[0.5], [0.05]]))[:, 0]
    direction = embedded[0] - embedded[1] * (embedded[0] @ embedded[1]) / (embedded[1] @ embedded[1])
    seeing.counts.weight.data = (direction / (direction @ embedded[0])).expand(12, -1).clone()
    seeing.counts.bias.data.zero_()  # all at the high level, nothing at the low one
    told = [seeing.posterior(u, torch.tensor([0.5, 0.05]), conditions)[0] for conditions in (seen, blind)]
    assert float((told[0][0] - told[1][0]).abs().max()) > 1e-3
    torch.testing.assert_close(told[0][1], told[1][1], atol=1e-4, rtol=1e-3)


def test_an_encoder_that_has_learnt_to_read_does_not_forget_it() -> None:
    """Adam's first step is as long as the learning rate, in every weight that has a gradient."""
    seeing = network()
    before = {name: weight.detach().clone() for name, weight in seeing.named_parameters()}
    optimizers = Optimizers(seeing, 1e-2)
    for parameter in seeing.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizers.step(0.5)
    moved = {name: float((weight.detach() - before[name]).abs().max()) for name, weight in seeing.named_parameters()}
    assert moved["counts.bias"] == pytest.approx(5e-3, rel=1e-2)
    assert moved["encoder.project.weight"] == pytest.approx(5e-3 * ENCODER_RATE, rel=1e-2)


def test_train_with_videos_and_a_frozen_prior(
    tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command, stopped and resumed: only what sees is trained, and without a video nothing has changed."""
    monkeypatch.setitem(train.NETWORKS, "compact-av", {"name": "compact-av", "encoder": EYES, **SMALL})
    torch.manual_seed(1)
    prior = build_network({"name": "compact", **SMALL})
    for parameter in prior.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    stft = {"n_fft": 510, "hop_length": 255, "window": "sqrt_hann", "sample_rate": RATE}
    config = {"architecture": {"name": "compact", "sigma_data": 0.06, **SMALL}, "stft": stft}
    save_checkpoint(tmp_path / "prior.safetensors", prior.state_dict(), config)
    command = [
        "train", "--network", "compact-av", "--video", str(clips), "--init", str(tmp_path / "prior.safetensors"),
        "--freeze", "--warm-up-steps", "2", "--out", str(tmp_path / "av.safetensors"), "--batch-size", "2",
        "--crop-seconds", "0.5", "--precision", "float32", "--device", "cpu", "--threads", "1", "--ema", "0",
    ]  # fmt: skip
    assert main([*command, "--steps", "2"]) == 0
    assert "read from the lips" in capsys.readouterr().out
    assert main([*command, "--steps", "3"]) == 0
    said = capsys.readouterr().out
    assert "resuming" in said
    assert "read from the lips" not in said
    before, after = prior.state_dict(), load_network(tmp_path / "av.safetensors").module.state_dict()
    fresh = network().state_dict()
    for name, weight in after.items():
        if name in before:
            torch.testing.assert_close(weight, before[name], atol=2e-3, rtol=1e-3)  # kept in 16 bits
        elif name.endswith("sees.weight") and "output" not in name:
            assert weight.shape == fresh[name].shape
    assert any(float(weight.abs().max()) > 0 for name, weight in after.items() if name.endswith("sees.weight"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--network", "compact-av"], "expected --video DIR alone"),
        (["--network", "compact-av", "--video", "CLIPS", "--speech", "CLIPS"], "expected --video DIR alone"),
        (["--network", "compact", "--video", "CLIPS"], "expected no --video"),
        (["--network", "compact-av", "--video", "missing"], "expected a folder of videos"),
        (["--network", "compact-av", "--video", "EMPTY"], "expected videos with sound"),
        (["--network", "compact-av", "--video", "CLIPS", "--freeze"], "--freeze: expected --init"),
    ],
)
def test_folders_that_do_not_fit_are_told_in_a_line(
    tmp_path: Path, clips: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"CLIPS": str(clips), "EMPTY": str(tmp_path / "empty")}
    words = [places.get(word, word) for word in arguments]
    assert main(["train", *words, "--out", str(tmp_path / "av.safetensors"), "--steps", "1"]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1


def test_a_corpus_without_a_video_is_told(tmp_path: Path) -> None:
    with pytest.raises(UdseError, match="expected a folder of videos"):
        videos_in(tmp_path / "missing")

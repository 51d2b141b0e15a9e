"""Training: exact resume, the loss's closed form, crops and levels, stopping by a signal, bad input."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from udse_fast.audio.spectral import Spectral
from udse_fast.checkpoints.checkpoint import complete_config, load_network
from udse_fast.cli import main
from udse_fast.commands import train as command
from udse_fast.errors import UdseError
from udse_fast.networks.base import Network
from udse_fast.networks.compact import Compact
from udse_fast.networks.conditions import Conditions
from udse_fast.networks.ncsnpp import NCSNpp
from udse_fast.networks.score_network import ScoreGraph, ScoreNetwork
from udse_fast.sampling.sde import OUVE
from udse_fast.training.batches import Augmentation, Batch, Batches, normalised
from udse_fast.training.corpus import Corpus, Crops, recordings_in, split_speakers
from udse_fast.training.trainer import Optimizers, Settings, Trainer, score_matching_loss

RATE = 16000
ARCHITECTURE = {
    "name": "compact", "channels": [8, 8], "blocks": [1, 1], "frame_channels": 16, "dilations": [1], "sigma_data": 0.1
}  # fmt: skip


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Amplitude-modulated tones of six 'speakers'."""
    folder = tmp_path_factory.mktemp("speech")
    n = np.arange(2 * RATE) / RATE
    for speaker in range(6):
        tone = 0.5 * np.sin(2 * np.pi * (150 + 40 * speaker) * n) * np.sin(2 * np.pi * 3 * n) ** 2
        soundfile.write(folder / f"s{speaker}_a.wav", tone, RATE)
    return folder


def trainer(recordings: Path, out: Path, steps: int, **changes: object) -> Trainer:
    spectral = Spectral(hop_length=255, window="sqrt_hann")
    corpus = Corpus(recordings_in(recordings), RATE)
    settings = Settings(ARCHITECTURE, spectral, steps=steps, batch_size=2, crop_seconds=0.5, **changes)  # type: ignore[arg-type]
    batches = Batches(corpus, None, spectral, size=2, frames=32, seed=settings.seed)
    return Trainer(
        settings,
        batches,
        batches,
        out,
        device=torch.device("cpu"),
        precision=torch.float32,
        facts={"network": "compact"},
        licence="none",
    )


def test_resumed_run_equals_the_uninterrupted_one(recordings: Path, tmp_path: Path) -> None:
    whole = trainer(recordings, tmp_path / "whole.safetensors", 6)
    whole.run(save_minutes=60, validate_minutes=60, progress=False)
    first = trainer(recordings, tmp_path / "parts.safetensors", 6)
    for number in range(3):
        first.train_step(first.training[number])
    first.save()
    second = trainer(recordings, tmp_path / "parts.safetensors", 6)
    second.resume()
    assert second.step == 3
    second.run(save_minutes=60, validate_minutes=60, progress=False)
    for name, weight in whole.module.state_dict().items():
        assert torch.equal(weight, second.module.state_dict()[name]), name
        assert torch.equal(whole.ema[name], second.ema[name]), name


def test_losses_that_are_read_later_are_the_same(recordings: Path, tmp_path: Path) -> None:
    runs = []
    for read_steps in (1, 4):  # every step, and as on a GPU
        run = trainer(recordings, tmp_path / f"{read_steps}.safetensors", 6)
        run.read_steps = read_steps
        run.run(save_minutes=60, validate_minutes=60, progress=False)
        runs.append(run)
    assert runs[0].history[-1]["loss"] == runs[1].history[-1]["loss"]
    assert all(torch.equal(w, runs[1].ema[name]) for name, w in runs[0].ema.items())


def test_what_is_not_finite_is_said_and_not_saved(recordings: Path, tmp_path: Path) -> None:
    run = trainer(recordings, tmp_path / "p.safetensors", 6)
    run.save()
    before = [file.read_bytes() for file in (run.out, run.state_file)]
    run.step = 8
    with pytest.raises(UdseError, match="became nan at step 7;"):
        run._read([torch.tensor(1.0), torch.tensor(torch.nan)])
    next(iter(run.weights.values())).view(-1)[0] = torch.inf
    with pytest.raises(UdseError, match="weights are not finite after step 8"):
        run.save()
    assert [file.read_bytes() for file in (run.out, run.state_file)] == before


@pytest.mark.parametrize(
    ("more", "rate"),
    [
        ([], 2e-3),
        (["--network", "ncsnpp-5m"], 1e-4),
        (["--network", "ncsnpp-28m", "--learning-rate", "3e-4"], 3e-4),
    ],
)
def test_each_network_has_its_learning_rate(
    recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str], rate: float
) -> None:
    rates = list[float]()

    def noted(settings: Settings, *_: object, **__: object) -> None:
        rates.append(settings.learning_rate)
        raise UdseError("seen")

    monkeypatch.setattr(command, "Trainer", noted)
    assert main(arguments(recordings, tmp_path / "p.safetensors", *more)) == 2
    assert rates == [rate]


def test_published_networks_are_trained_with_adam() -> None:
    adam = Optimizers(NCSNpp(nf=8, ch_mult=(1,)), 1e-4).all
    assert [type(optimizer) for optimizer in adam] == [torch.optim.AdamW]
    assert adam[0].defaults["betas"] == (0.9, 0.999)
    assert adam[0].defaults["weight_decay"] == 0
    compact = Optimizers(Compact(**{k: v for k, v in ARCHITECTURE.items() if k != "name"}), 1e-3).all
    assert compact[0].defaults["betas"] == (0.9, 0.98)


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), torch.float32), ((8, 0), torch.bfloat16)])
def test_bfloat16_where_the_hardware_has_it(
    capability: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)  # by emulation
    assert command._precision("auto", torch.device("cuda")) == dtype
    assert command._precision("float32", torch.device("cuda")) == torch.float32


def test_training_lowers_the_loss_and_the_checkpoint_denoises(recordings: Path, tmp_path: Path) -> None:
    run = trainer(recordings, tmp_path / "p.safetensors", 40, ema=0.9, learning_rate=5e-3)
    before = run.validate()
    run.run(save_minutes=60, validate_minutes=60, progress=False)
    after = run.history[-1]["validation"]
    assert all(after[t] < 0.8 * before[t] for t in ("0.4", "0.2"))
    network = load_network(tmp_path / "p.safetensors")
    assert network.config["training"]["steps"] == 40
    run.module.load_state_dict(run.ema)
    trained = ScoreNetwork(run.module, complete_config(run.config()))
    noisy = run.training[123].spectrograms + 0.3
    t = torch.full((2,), 0.4)
    expected = trained.score(noisy, t)
    difference = float((network.score(noisy, t) - expected).norm() / expected.norm())
    assert difference < 4 * 2**-11  # some roundings of the weights to 16 bits


def test_the_true_score_has_the_least_loss() -> None:
    """Gaussian data of variance v: E||sigma S + z||^2 of the true score is v / (v + a^2)."""
    sde, v = OUVE(), 0.04

    class Gaussian(Network):
        predicts = "clean"

        def denoise(self, noisy: torch.Tensor, noise_level: torch.Tensor, conditions: Conditions) -> torch.Tensor:
            return noisy * (v / (v + noise_level[:, None, None, None] ** 2))

    torch.manual_seed(0)
    batch = Batch(torch.randn(4, 256, 200, dtype=torch.complex64) * v**0.5)
    t = torch.tensor([0.1, 0.3, 0.6, 1.0])
    z = torch.randn(4, 256, 200, dtype=torch.complex64)
    loss, relative = score_matching_loss(ScoreGraph(Gaussian(), sde), batch, t, z)
    a2 = sde.noise_level(t) ** 2
    torch.testing.assert_close(loss, v / (v + a2), rtol=0.02, atol=0)
    torch.testing.assert_close(relative, a2 / (v + a2), rtol=0.02, atol=0)


def test_batches_are_functions_of_their_number(recordings: Path) -> None:
    spectral = Spectral(hop_length=255, window="sqrt_hann")
    first, second = (
        Batches(Corpus(recordings_in(recordings), RATE), None, spectral, size=3, frames=20, seed=4) for _ in range(2)
    )
    second[7]
    assert torch.equal(first[3].spectrograms, second[3].spectrograms)
    assert not torch.equal(first[3].spectrograms, first[4].spectrograms)
    assert first[3].spectrograms.shape == (3, 256, 20)


def test_crops_at_other_speeds_are_other_voices(tmp_path: Path) -> None:
    """A tone of 1 kHz comes at 1 kHz times the speed, with the length, the peak and the level of the others."""
    soundfile.write(tmp_path / "a.wav", 0.5 * np.sin(2 * np.pi * 1000 * np.arange(4 * RATE) / RATE), RATE)
    crops = Corpus([tmp_path / "a.wav"], RATE).crops(np.random.default_rng(0), 40, RATE, speed_range=0.1)
    heard = np.abs(np.fft.rfft(crops.audio * np.hanning(RATE), axis=1)).argmax(1)  # Hz
    assert heard.min() < 930
    assert heard.max() > 1070
    assert ((heard >= 899) & (heard <= 1101)).all()
    np.testing.assert_allclose(crops.peak, 0.5, atol=1e-3)
    np.testing.assert_allclose(np.abs(crops.audio).max(1), 0.5, atol=0.1)  # an onset rings in a resampler


def test_random_responses_are_smooth_and_as_strong_as_asked() -> None:
    decibels = 20 * np.log10(Augmentation(equalisation_db=3.0).response(np.random.default_rng(0), 2000, 256))
    assert np.sqrt(np.mean(decibels**2)) == pytest.approx(3.0, rel=0.05)
    assert np.abs(np.diff(decibels, axis=1)).max() < 1.0


def test_a_response_multiplies_the_amplitudes_and_leaves_the_level() -> None:
    spectral = Spectral()
    rng = np.random.default_rng(0)
    audio = rng.standard_normal((2, RATE // 2)).astype(np.float32)
    crops, gain = Crops(audio, np.abs(audio).max(1)), torch.tensor([0.5, 0.9])
    response = torch.from_numpy(Augmentation(equalisation_db=6.0).response(rng, 2, 256))
    plain, coloured = normalised(crops, gain, spectral), normalised(crops, gain, spectral, response)
    torch.testing.assert_close(coloured.abs().amax((1, 2)), gain)
    ratio = (spectral.decompress(coloured) / spectral.decompress(plain)).abs() / response[:, :, None]
    scale = ratio[:, :1, :1]  # one number per crop: the level
    torch.testing.assert_close(ratio / scale, torch.ones_like(ratio), rtol=1e-3, atol=0)


def test_joint_batches_hold_both_sources(recordings: Path) -> None:
    corpus = Corpus(recordings_in(recordings), RATE)
    batches = Batches(corpus, corpus, Spectral(), size=4, frames=20)
    label = batches[0].conditions.label
    assert label is not None
    assert label.tolist() == [1, 1, 0, 0]


def test_no_speaker_is_in_both_sets(recordings: Path) -> None:
    training, validation = split_speakers(recordings_in(recordings), recordings, 0.2)
    assert training
    assert validation
    assert not {f.name.split("_")[0] for f in training} & {f.name.split("_")[0] for f in validation}


def arguments(recordings: Path, out: Path, *more: str) -> list[str]:
    return [
        "train", "--speech", str(recordings), "--out", str(out), "--network", "compact", "--batch-size", "1",
        "--crop-seconds", "0.3", "--device", "cpu", "--threads", "1", *more,
    ]  # fmt: skip


def test_a_signal_ends_training_with_a_saved_checkpoint(recordings: Path, tmp_path: Path) -> None:
    out = tmp_path / "prior.safetensors"
    command_line = arguments(
        recordings, out, "--steps", "100000", "--save-minutes", "1e-6", "--validate-minutes", "1e-6"
    )
    command = [sys.executable, "-m", "udse_fast", *command_line]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path)  # not the sources: the package
    give_up = time.monotonic() + 120
    while not out.is_file():  # the first checkpoint: training is under way
        assert run.poll() is None, run.communicate()[1]
        assert time.monotonic() < give_up
        time.sleep(0.05)
    run.send_signal(signal.SIGTERM)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 0, said
    assert load_network(out).config["training"]["steps"] > 0
    assert out.with_suffix(".png").stat().st_size > 1000
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "prior.png", "prior.safetensors", "prior.safetensors.state",
    ]  # fmt: skip


def test_a_lost_checkpoint_is_written_again(recordings: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.safetensors"
    assert main(arguments(recordings, out, "--steps", "2")) == 0
    written = load_network(out).module.state_dict()
    out.unlink()
    assert main(arguments(recordings, out, "--steps", "2")) == 0
    for name, weight in load_network(out).module.state_dict().items():
        assert torch.equal(weight, written[name]), name


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--speech", "/nowhere"], "folder"),
        (["--steps", "0"], "--steps"),
        (["--learning-rate", "-1"], "--learning-rate"),
        (["--speech-list", "/nowhere.txt"], "list"),
        (["--init", "/nowhere.ckpt"], "checkpoint"),
        (["--seed", "-1"], "--seed: expected a whole number"),
        (["--out", "/proc/p.safetensors"], "can be written"),
        (["--network", "compact-joint"], "--speech DIR and --noise DIR"),
        (["--noise", ".", "--batch-size", "1"], "--batch-size: expected at least 2"),
    ],
)
def test_bad_input_is_one_line(
    recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: list[str], said: str
) -> None:
    assert main(arguments(recordings, tmp_path / "p.safetensors", *change)) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert "\n" not in error
    assert not list(tmp_path.iterdir())

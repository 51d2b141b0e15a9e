"""The posterior network: what it must be whatever its weights say, its batches, losses and training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from udse_fast.audio.spectral import Spectral
from udse_fast.networks import build_network
from udse_fast.networks.compact_posterior import CompactPosterior, compressed_variance, fused, linear_variance
from udse_fast.networks.past import LayerPast as Past
from udse_fast.sampling.noise_guesses import factorised, predicted, steady_guess
from udse_fast.training.batches import Augmentation
from udse_fast.training.corpus import Corpus
from udse_fast.training.noise_variances import SOURCES, draw_noise_variance, draw_source
from udse_fast.training.posterior_batches import PosteriorBatches
from udse_fast.training.posterior_loss import first_guess, intelligibility, next_guess, posterior_losses

SMALL = {"bins": 32, "channels": (8, 8), "blocks": (1, 1), "frame_channels": 16, "dilations": (1, 2), "embedding": 16}


def small(**arguments: object) -> CompactPosterior:
    """With every weight drawn at random, those that start at zero too."""
    torch.manual_seed(0)
    network = build_network({"name": "compact-posterior", **SMALL, **arguments})
    assert isinstance(network, CompactPosterior)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


def observed(frames: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    mixture = 0.3 * torch.randn(2, 2, 32, frames, generator=generator)
    return mixture, torch.rand(2, 32, frames, generator=generator) * 0.1


@torch.no_grad()
@pytest.mark.parametrize("block", [1, 2, 3])
def test_a_compact_network_says_block_by_block_what_it_says_of_the_whole(block: int) -> None:
    network = small(causal_block=2)
    network.set_causal_block(block)
    mixture, variance = observed()
    whole = network.say(mixture, variance)
    past, parts = Past(), []
    for start in range(0, 24, block):
        now = slice(start, start + block)
        parts.append(network.say(mixture[..., now], variance[..., now], past=past.rewind()))
    for name in ("clean", "variance", "log_noise", "gain"):
        torch.testing.assert_close(
            torch.cat([getattr(part, name) for part in parts], -1), getattr(whole, name), rtol=1e-4, atol=1e-5
        )


@torch.no_grad()
def test_a_compact_network_does_not_see_the_next_block() -> None:
    network = small(causal_block=2)
    mixture, variance = observed()
    before = network.say(mixture, variance)
    mixture[..., 12:], variance[..., 12:] = 1.0, 1.0
    after = network.say(mixture, variance)
    torch.testing.assert_close(after.clean[..., :12], before.clean[..., :12])
    assert not torch.allclose(after.clean[..., 12:], before.clean[..., 12:])


@torch.no_grad()
def test_a_state_without_information_changes_nothing_and_one_without_noise_is_no_trouble() -> None:
    network = small()
    mixture, variance = observed()
    alone = network.say(mixture, variance)
    state = torch.randn_like(mixture)
    useless = network.say(mixture, variance, state, torch.full((2,), torch.inf))
    torch.testing.assert_close(useless.clean, alone.clean, rtol=1e-3, atol=1e-4)
    exact = network.say(mixture, variance, state, torch.full((2,), 1e-6))
    assert bool(exact.clean.isfinite().all())


def test_fusing_is_the_product_of_two_gaussians() -> None:
    u, blur = fused(torch.tensor([[1.0, 0.0]]), torch.tensor([0.2]), torch.tensor([[0.0, 3.0]]), torch.tensor([0.6]))
    precision = 1 / 0.2 + 1 / 0.6
    torch.testing.assert_close(u, torch.tensor([[1 / 0.2 / precision, 3 / 0.6 / precision]]))
    assert float(blur) == pytest.approx(1 / precision)


def test_the_variance_of_the_compressed_mixture_is_that_of_samples() -> None:
    """c(S + nu) about c(S) by Monte Carlo, where speech is far above and far below the noise."""
    generator = torch.Generator().manual_seed(0)
    nu = torch.randn(200_000, dtype=torch.complex64, generator=generator)
    for speech, tolerance in ((30.0, 0.45), (0.0, 0.15)):
        noisy = speech + nu
        moved = noisy / noisy.abs().sqrt() - speech**0.5
        power = noisy.abs().mean() if speech else torch.tensor(0.0)
        expected = compressed_variance(torch.tensor(1.0), power)
        assert float(moved.abs().square().mean()) == pytest.approx(float(expected), rel=tolerance)


def test_the_linear_variance_is_the_inverse_of_the_compressed_one() -> None:
    variance = torch.logspace(-6, 1, 50)
    for power in (0.0, 1e-3, 1.0):
        blur = compressed_variance(variance, torch.full_like(variance, power))
        well_above_the_floor = blur > 1e-6
        back = linear_variance(blur, torch.full_like(variance, power))
        torch.testing.assert_close(back[well_above_the_floor], variance[well_above_the_floor], rtol=1e-3, atol=0)


@pytest.mark.parametrize("source", [made for _, made in SOURCES])
def test_every_kind_of_source_is_finite_and_not_empty(source: object) -> None:
    for seed in range(20):
        drawn = source(np.random.default_rng(seed), 256, 100)  # type: ignore[operator]
        assert drawn.shape == (256, 100)
        assert np.isfinite(drawn).all()


def test_variances_differ_and_have_mean_one() -> None:
    drawn = [draw_noise_variance(np.random.default_rng(seed), 256, 120) for seed in range(30)]
    assert all(v.dtype == np.float32 and v.min() > 0 and abs(v.mean() - 1) < 1e-3 for v in drawn)
    steadiness = [float(np.log(v).std(1).mean()) for v in drawn]
    assert min(steadiness) < 0.3 < 1.0 < max(steadiness)  # some stand, some move by more than 4 dB
    assert draw_source(np.random.default_rng(0), 256, 3).shape == (256, 3)


@pytest.fixture(scope="module")
def batches(tmp_path_factory: pytest.TempPathFactory) -> PosteriorBatches:
    folder = tmp_path_factory.mktemp("speech")
    rng = np.random.default_rng(0)
    for speaker in range(2):
        voiced = np.repeat(rng.random(40) < 0.6, 800) * np.sin(
            np.arange(32000) * 2 * np.pi * (120 + 40 * speaker) / 16000
        )
        soundfile.write(folder / f"s{speaker}_a.wav", 0.5 * voiced, 16000)
    corpus = Corpus(sorted(folder.glob("*.wav")), 16000)
    return PosteriorBatches(corpus, Spectral(hop_length=255, window="sqrt_hann"), size=12, frames=60)


def test_a_batch_is_what_the_network_meets(batches: PosteriorBatches) -> None:
    loudest = []
    for number in range(4):
        batch = batches[number]
        assert batch.mixture.shape == batch.clean.shape == batch.noise_variance.shape == (12, 256, 60)
        loudest += batch.mixture.abs().amax((1, 2)).tolist()
        assert float(batch.noise_variance.min()) > 0
        linear = batch.mixture * batch.mixture.abs() - batch.clean * batch.clean.abs()  # the noise
        ratio = linear.abs().square().mean((1, 2)) / batch.noise_variance.mean((1, 2))
        noisy = batch.noise_variance.mean((1, 2)) > 1e-6
        assert bool(((ratio[noisy] > 0.4) & (ratio[noisy] < 2.5)).all())
    assert max(loudest) <= 1.0001
    assert min(loudest) < 0.9


def test_bright_voices_have_more_above_a_few_kilohertz(batches: PosteriorBatches) -> None:
    """By 2 to 18 dB of amplitude, in as many of the crops as is said; levels are those of the loudest bin."""

    def tilts(share: float) -> torch.Tensor:
        changed = PosteriorBatches(
            batches.speech, batches.spectral, size=1, frames=60, augmentation=Augmentation(bright_share=share)
        )
        power = torch.cat([changed[number].clean.abs() ** 4 for number in range(40)])
        return 10 * torch.log10(power[:, 200:].sum((1, 2)) / power[:, 1:30].sum((1, 2)))

    plain = tilts(0.0)
    spoken = plain.isfinite()  # some are noise alone
    assert float((tilts(1.0) - plain)[spoken].mean()) > 5
    rare = tilts(0.3)[spoken]
    assert 0 < float((rare - plain[spoken]).gt(1).float().mean()) < 0.6


def test_the_same_number_is_the_same_batch(batches: PosteriorBatches) -> None:
    torch.testing.assert_close(batches[3].mixture, batches[3].mixture, rtol=0, atol=0)
    assert not torch.equal(batches[3].mixture, batches[4].mixture)


@torch.no_grad()
def test_the_truth_has_the_lowest_loss(batches: PosteriorBatches) -> None:
    batch = batches[0]
    network = small(bins=256)
    said = network.say(torch.view_as_real(batch.mixture).movedim(-1, 1), steady_guess(batch.mixture))
    losses = posterior_losses(said, batch)
    truth = type(said)(
        torch.view_as_real(batch.clean).movedim(-1, 1),
        said.variance,
        batch.noise_variance.log(),
        torch.zeros_like(said.gain),
    )
    best = posterior_losses(truth, batch)
    for name in ("mean", "waveform", "ear", "intelligibility", "noise", "log_noise"):
        assert float(best[name]) < float(losses[name]), name


def test_intelligibility_is_one_for_the_truth_and_does_not_hear_the_level() -> None:
    power = torch.rand(2, 256, 60, generator=torch.Generator().manual_seed(0)) ** 4
    other = torch.rand(2, 256, 60, generator=torch.Generator().manual_seed(1)) ** 4
    assert float(intelligibility(power, power).min()) > 0.99
    assert float(intelligibility(power * 0.1, power).min()) > 0.98
    assert float(intelligibility(other, power).max()) < 0.5


def test_guesses_of_a_stream_know_the_past_only(batches: PosteriorBatches) -> None:
    variance = torch.rand(2, 8, 30, generator=torch.Generator().manual_seed(0))
    before = predicted(variance, 5.0, 3)
    changed = variance.clone()
    changed[..., 12:] = 100.0
    torch.testing.assert_close(predicted(changed, 5.0, 3)[..., :15], before[..., :15])
    for first in range(0, 30, 3):  # told the same for a whole block
        assert float(before[..., first : first + 3].std(-1).max()) == pytest.approx(0, abs=1e-7)


def test_guesses_are_of_the_order_of_steady_noise() -> None:
    noise = 0.1 * torch.randn(256, 200, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    mixture = noise / noise.abs().sqrt()
    for quantile in (None, 0.2, 0.5):
        guess = steady_guess(mixture, 1.0, quantile)
        assert float(guess.mean()) == pytest.approx(0.01, rel=0.15)
    assert float(factorised(steady_guess(mixture, 1.0), 4).mean()) == pytest.approx(0.01, rel=0.15)


@pytest.mark.parametrize("block", [0, 2])
def test_a_step_lowers_the_loss_of_its_own_batch(batches: PosteriorBatches, block: int) -> None:
    network = small(bins=256, causal_block=block).train()
    batch = batches[0].mapped(lambda tensor: tensor[:4])
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)

    def loss() -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        mixture = torch.view_as_real(batch.mixture).movedim(-1, 1)
        first = network.say(mixture, first_guess(batch.mixture, generator, block))
        second = network.say(mixture, next_guess(first, batch, generator, block))
        return posterior_losses(first, batch)["mean"] + posterior_losses(second, batch)["mean"]

    start = loss().item()
    for _ in range(5):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
    assert loss().item() < start


def test_training_stops_and_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    from udse_fast.training.posterior_trainer import PosteriorTrainer
    from udse_fast.training.trainer import Settings

    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "a_1.wav", 0.3 * rng.standard_normal(16000), 16000)
    spectral = Spectral(hop_length=255, window="sqrt_hann")
    corpus = Corpus([tmp_path / "a_1.wav"], 16000)

    def trainer(out: str, steps: int) -> PosteriorTrainer:
        architecture = {"name": "compact-posterior", **SMALL, "bins": 256}
        return PosteriorTrainer(
            Settings(architecture=architecture, spectral=spectral, steps=steps, batch_size=2, decay_share=0.0),
            PosteriorBatches(corpus, spectral, size=2, frames=30),
            PosteriorBatches(corpus, spectral, size=2, frames=30, seed=1),
            tmp_path / out,
            device=torch.device("cpu"),
            precision=torch.float32,
            facts={"network": "small"},
            licence="not stated",
        )

    at_once = trainer("whole.safetensors", 4)
    at_once.run(save_minutes=1e9, validate_minutes=1e9, progress=False)
    first = trainer("parts.safetensors", 2)
    first.run(save_minutes=1e9, validate_minutes=1e9, progress=False)
    second = trainer("parts.safetensors", 4)
    second.resume()
    second.run(save_minutes=1e9, validate_minutes=1e9, progress=False)
    for name, weight in at_once.weights.items():
        torch.testing.assert_close(second.weights[name], weight, rtol=0, atol=0, msg=name)
    assert {"1 call", "2 calls", "true V"} <= second.history[-1]["validation"].keys()


def test_a_posterior_network_starts_from_a_prior(tmp_path: Path) -> None:
    from udse_fast.training.posterior_trainer import PosteriorTrainer
    from udse_fast.training.trainer import Settings

    soundfile.write(tmp_path / "a_1.wav", 0.3 * np.random.default_rng(0).standard_normal(16000), 16000)
    spectral = Spectral(hop_length=255, window="sqrt_hann")
    batches = PosteriorBatches(Corpus([tmp_path / "a_1.wav"], 16000), spectral, size=1, frames=30)
    prior = build_network({"name": "compact", **SMALL, "bins": 256})
    settings = Settings(architecture={"name": "compact-posterior", **SMALL, "bins": 256}, spectral=spectral)
    trainer = PosteriorTrainer(
        settings, batches, batches, tmp_path / "out.safetensors",
        device=torch.device("cpu"), precision=torch.float32, facts={}, licence="",
    )  # fmt: skip
    trainer.start_from(prior.state_dict())
    kernel = trainer.weights["input.weight"]
    torch.testing.assert_close(kernel[:, :3], prior.state_dict()["input.weight"])
    assert not kernel[:, 3:].any()


def test_noise_recordings_are_refused_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from udse_fast.cli import main

    command = ["train", "--network", "compact-posterior", "--out", str(tmp_path / "a.safetensors")]
    for more in (["--speech", str(tmp_path), "--noise", str(tmp_path)], ["--noise", str(tmp_path)]):
        assert main([*command, *more]) == 2
        assert "drawn at random" in capfd.readouterr().err

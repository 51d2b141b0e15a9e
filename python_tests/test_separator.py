"""Talkers and noise out of recordings: priors with known answers, blocks, forms of audio, files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor, nn

import udse_fast
from udse_fast.audio.spectral import Spectral
from udse_fast.checkpoints.checkpoint import complete_config, load_network, save_checkpoint
from udse_fast.cli import main
from udse_fast.errors import UdseError
from udse_fast.evaluation.synthetic_lips import draw_mouths, write_clip
from udse_fast.networks import build_network
from udse_fast.networks.base import Network
from udse_fast.networks.conditions import NOTHING, Conditions
from udse_fast.networks.past import Past
from udse_fast.networks.score_network import ScoreNetwork
from udse_fast.sampling.denoisers import NetworkDenoiser, NetworkPower
from udse_fast.sampling.sde import OUVE, VE, noise_levels
from udse_fast.sampling.sharing import share_mixture
from udse_fast.separation.block import BlockSeparator
from udse_fast.separation.order import best_order
from udse_fast.separation.source import Source
from udse_fast.separation.stream import SeparationStream
from udse_fast.settings import OverlapSettings, SeparationSettings
from udse_fast.streaming.blocks import Block
from udse_fast.streaming.overlap import OverlapBlocks

SPECTRAL = Spectral(hop_length=255, window="sqrt_hann")
RATE = 16000


def of_gaussian(noisy: Tensor, noise_level: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of s of a variance (..., F, T or 1), given u = s + a z (B, 2, F, T)."""
    total = variance + noise_level[:, None, None, None] ** 2
    uncertain = (variance * (1 - variance / total)).expand(noisy[:, :1].shape)[:, 0]
    return noisy * variance / total, uncertain


class Bands(Network):
    """A Gaussian prior by bins, D(u, a) = v u / (v + a^2). With a video: v times 1 + its mean."""

    predicts = "clean"
    has_posterior_variance = True

    def __init__(self, variance: Tensor, video: bool = False) -> None:
        super().__init__()
        self.variance = nn.Parameter(variance[:, None])
        self.conditions = ("video",) if video else ()

    def posterior(
        self, noisy: Tensor, noise_level: Tensor, conditions: Conditions = NOTHING, past: Past | None = None
    ) -> tuple[Tensor, Tensor]:
        v: Tensor = self.variance
        if conditions.video is not None:
            v = v * (1 + conditions.video.mean((1, 2)))[:, None, None, None]
        return of_gaussian(noisy, noise_level, v)


def gaussian(variance: Tensor, sde: str = "ouve", video: bool = False) -> ScoreNetwork:
    stft = {"n_fft": 2 * len(variance) - 2, "hop_length": len(variance) - 1, "window": "sqrt_hann"}
    config = complete_config({"architecture": {"name": "bands"}, "stft": stft, "sde": {"name": sde}})
    return ScoreNetwork(Bands(variance.float(), video), config)


def band(first: float, last: float) -> Tensor:
    """A prior with its power between two frequencies in Hz."""
    hertz = torch.arange(SPECTRAL.bins) * RATE / SPECTRAL.n_fft
    return torch.where((hertz >= first) & (hertz < last), 0.05, 1e-5)


def in_band(first: float, last: float, seed: int, length: int = RATE) -> np.ndarray:
    """Noise in a band, float32."""
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(length))
    hertz = np.fft.rfftfreq(length, 1 / RATE)
    spectrum[(hertz < first) | (hertz >= last)] = 0
    return (0.1 * np.fft.irfft(spectrum, length)).astype(np.float32)


def si_sdr(reference: np.ndarray, estimate: np.ndarray) -> float:
    target = (estimate @ reference) / (reference @ reference) * reference
    return float(10 * np.log10((target @ target) / ((estimate - target) @ (estimate - target))))


@pytest.fixture
def tiny(tiny_checkpoints: dict[str, Path]) -> Callable[..., udse_fast.Separator]:
    def make(*arguments: Any, **settings: Any) -> udse_fast.Separator:
        priors = {"checkpoint": tiny_checkpoints["speech"], "noise_checkpoint": tiny_checkpoints["joint"]}
        blocks = {"steps": 3, "block_seconds": 0.6, "overlap_seconds": 0.2}
        return udse_fast.Separator(*arguments, **{**priors, **blocks, **settings})

    return make


# -- levels and denoisers ----------------------------------------------------------------------------------------------


def test_the_grid_of_noise_levels() -> None:
    i = np.arange(6) / 5
    expected = (2.0 ** (1 / 10) + i * (0.02 ** (1 / 10) - 2.0 ** (1 / 10))) ** 10
    np.testing.assert_allclose(noise_levels(6, 2.0, 0.02, rho=10), [*expected, 0], rtol=1e-12)


@pytest.mark.parametrize("sde", [OUVE(), OUVE(2.0, 0.01, 0.7), VE()])
@pytest.mark.parametrize("t", [0.03, 0.4, 1.0])
def test_the_time_of_a_noise_level(sde: OUVE | VE, t: float) -> None:
    assert sde.time(float(sde.noise_level(t))) == pytest.approx(t, rel=1e-12)


def test_the_levels_that_a_published_prior_knows() -> None:
    assert (OUVE().time(0.0197), OUVE().time(1.743)) == pytest.approx((0.03, 1.0), abs=2e-4)


@pytest.mark.parametrize("sde", ["ouve", "ve"])
def test_a_score_network_is_the_denoiser_of_its_prior(sde: str) -> None:
    v, u = torch.rand(9) + 0.1, torch.randn(9, 4, dtype=torch.complex128)
    denoised = NetworkDenoiser(gaussian(v, sde), NOTHING)(u, 0.3)
    torch.testing.assert_close(denoised, (v / (v + 0.09))[:, None] * u, rtol=1e-4, atol=1e-5)
    assert denoised.dtype == u.dtype


def test_guidance_goes_beyond_what_the_video_says() -> None:
    v, u = torch.rand(9) + 0.1, torch.randn(9, 4, dtype=torch.complex64)
    network, video = gaussian(v, video=True), torch.full((1, 3, 2), 0.5)
    told, untold = (Conditions(video=x) for x in (video, torch.zeros_like(video)))
    with_video, without = (NetworkDenoiser(network, told)(u, 0.3) for told in (told, untold))
    guided = NetworkDenoiser(network, told, untold, guidance=0.7)(u, 0.3)
    torch.testing.assert_close(guided, 1.7 * with_video - 0.7 * without)
    assert not torch.allclose(guided, with_video)


def test_gradients_go_through_the_plain_network() -> None:
    v, u = torch.rand(9) + 0.1, torch.randn(9, 4, dtype=torch.complex64)
    network = gaussian(v)
    network.graph = None  # whoever asks it fails
    state = u.requires_grad_()
    (gradient,) = torch.autograd.grad(NetworkDenoiser(network)(state, 0.3).abs().square().sum(), state)
    expected = 2 * (v / (v + 0.09))[:, None] ** 2 * u
    torch.testing.assert_close(gradient, expected.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("a", [0.1, 0.8])
def test_the_power_that_a_prior_expects(a: float) -> None:
    """E|s|^2 given u is |D|^2 and the posterior variance; of u drawn from the prior its mean is the variance."""
    v = torch.tensor([0.5, 0.2, 1.3])
    u = (v + a**2).sqrt()[:, None] * torch.randn(3, 20000, dtype=torch.complex64)
    power = NetworkPower(gaussian(v))(u, a)
    torch.testing.assert_close(power.mean(1), v, rtol=0.05, atol=0)


def test_guidance_of_powers_is_a_ratio() -> None:
    v, u = torch.rand(9) + 0.1, torch.randn(9, 4, dtype=torch.complex64)
    network, video = gaussian(v, video=True), torch.full((1, 3, 2), 0.5)
    told, untold = (Conditions(video=x) for x in (video, torch.zeros_like(video)))
    with_video, without = (NetworkPower(network, x)(u, 0.3) for x in (told, untold))
    guided = NetworkPower(network, told, untold, guidance=2.0)(u, 0.3)
    torch.testing.assert_close(guided, with_video**3 / without**2)


def test_shares_of_known_powers() -> None:
    """Priors that expect the same at every level share the mixture out in proportion."""
    mixture = torch.randn(4, 5, dtype=torch.complex128)
    powers = {"a": lambda u, level: torch.full((4, 5), 3.0), "b": lambda u, level: torch.ones(4, 5)}
    masks = share_mixture(mixture, powers, [1.5, 0.1], lambda step, source: torch.zeros_like(mixture))
    torch.testing.assert_close(masks, torch.tensor([0.75, 0.25])[:, None, None].expand(2, 4, 5))
    silent = dict.fromkeys("ab", lambda u, level: torch.zeros(4, 5))
    masks = share_mixture(mixture, silent, [1.5], lambda step, source: torch.zeros_like(mixture))
    assert (masks == 0.5).all()


def test_each_step_sees_the_shares_of_the_one_before() -> None:
    mixture, states = torch.full((1, 1), 2.0, dtype=torch.complex128), list[complex]()

    def power(u: Tensor, level: float) -> Tensor:
        states.append(u.item())
        return torch.full((1, 1), 4.0 if len(states) % 2 else 1.0)

    share_mixture(mixture, {"a": power, "b": power}, [1.5, 0.1], lambda step, k: torch.full((1, 1), 1j * (k + 1)))
    assert states == pytest.approx([1.5j, 3j, 2 * 0.8**0.5 + 0.1j, 2 * 0.2**0.5 + 0.2j])


@pytest.mark.parametrize(
    ("powers", "levels", "line"),
    [
        ({"a": lambda u, level: u.real * float("nan")}, [1.0], "separation diverged at the noise level 1"),
        ({"a": lambda u, level: u.real}, [], "levels: expected at least one"),
    ],
)
def test_shares_that_cannot_be_are_one_line(powers: Any, levels: list[float], line: str) -> None:
    mixture = torch.ones(2, 3, dtype=torch.complex64)
    with pytest.raises(UdseError, match=line):
        share_mixture(mixture, powers, levels, lambda step, k: torch.zeros_like(mixture))


# -- one block ---------------------------------------------------------------------------------------------------------

LOW, HIGH, MIDDLE = (0, 2000), (4000, 8001), (2000, 4000)


def of_bands(**settings: Any) -> BlockSeparator:
    sources = [Source("low"), Source("high"), Source("noise")]
    networks = [gaussian(band(*bounds)) for bounds in (LOW, HIGH, MIDDLE)]
    return BlockSeparator(sources, networks, SPECTRAL, SeparationSettings(**{"steps": 10, **settings}), seed=0)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sampler": "dps"},
        {"sampler": "dps", "solver": "heun"},
        {"sampler": "dps", "rule": "gradient"},
        {"sampler": "dps", "rule": "residual"},
    ],
)
def test_priors_of_different_bands_find_their_sources(options: dict[str, str]) -> None:
    low, high = in_band(50, 1900, 0), in_band(4100, 7900, 1)
    mixture = torch.from_numpy(low + high + in_band(2100, 3900, 2))
    talkers = of_bands(**options).separate(mixture[None], 0, {})[0].numpy()
    assert si_sdr(low, talkers[0]) > 12 > si_sdr(low, mixture.numpy())
    assert si_sdr(high, talkers[1]) > 12


def test_channels_keep_their_image_and_opposite_ones_do_not_cancel() -> None:
    mixture = torch.from_numpy(in_band(50, 1900, 0) + in_band(4100, 7900, 1))
    separator = of_bands(steps=5)
    alone = separator.separate(mixture[None], 0, {})
    both = separator.separate(torch.stack([mixture, -0.5 * mixture]), 0, {})
    torch.testing.assert_close(both[1], -0.5 * both[0])
    torch.testing.assert_close(both[0], alone[0], rtol=1e-3, atol=1e-4)


def test_silence_stays_silence() -> None:
    assert not of_bands(steps=2).separate(torch.zeros(1, 3000), 0, {}).any()


class SeenBands(Network):
    """A Gaussian prior of two bands, whose powers at every frame are the features of the video (B, Tv, 2)."""

    predicts = "clean"
    has_posterior_variance = True
    conditions = ("video",)
    condition_sizes: ClassVar[Mapping[str, int]] = {"p": 2}

    def posterior(
        self, noisy: Tensor, noise_level: Tensor, conditions: Conditions = NOTHING, past: Past | None = None
    ) -> tuple[Tensor, Tensor]:
        assert conditions.video is not None
        power = nn.functional.interpolate(conditions.video.transpose(1, 2), noisy.shape[-1]).unsqueeze(2)
        bands = torch.stack([band(*LOW), band(*HIGH)])[:, :, None]
        return of_gaussian(noisy, noise_level, (power * bands).sum(1)[:, None] + 1e-5)

    def completed(self, conditions: Conditions, batch: int) -> Conditions:
        return Conditions(video=torch.ones(1, 1, 2)).merged(conditions)


@pytest.fixture(params=["shares", "dps"])
def seeing(tiny: Any, request: pytest.FixtureRequest) -> udse_fast.Separator:
    """Two talkers of one prior, which hears nothing and sees which bands they talk in."""
    separator: udse_fast.Separator = tiny(["left", "right"], sampler=request.param, steps=10, block_seconds=8.0)
    stft = {"n_fft": 510, "hop_length": 255, "window": "sqrt_hann"}
    network = ScoreNetwork(SeenBands(), complete_config({"architecture": {"name": "seen"}, "stft": stft}))
    separator.networks[:] = [network, network]
    return separator


def test_what_is_seen_decides_who_talks(seeing: udse_fast.Separator) -> None:
    low, high = in_band(50, 1900, 0), in_band(4100, 7900, 1)
    swap = np.repeat([[1, 0], [0, 1]], [13, 12], axis=0).astype(np.float32)  # after half a second, at 25 Hz
    left = np.concatenate([low[: RATE // 2], high[RATE // 2 :]])
    found = seeing.separate(low + high, RATE, video={"left": swap, "right": 1 - swap})
    assert si_sdr(left, found["left"]) > 8
    unseen = seeing.separate(low + high, RATE)
    assert si_sdr(left, unseen["left"]) < 4
    guided = [udse_fast.Source("left", guidance=0), udse_fast.Source("right", guidance=0)]
    seeing._blocks = dataclasses.replace(seeing._blocks, sources=guided)
    unguided = seeing.separate(low + high, RATE, video={"left": swap, "right": 1 - swap})
    assert np.abs(unguided["left"] - found["left"]).max() > 1e-6


@pytest.mark.parametrize(
    ("video", "line"),
    [
        ({"middle": np.zeros((5, 2), np.float32)}, "video: expected the names of sources, left, right, got middle"),
        ({"left": np.zeros((5, 3), np.float32)}, "left: video: expected mouth crops"),
        ({"right": "a.mp4"}, "right: video: expected mouth crops .* got str"),
    ],
)
def test_videos_that_do_not_fit_are_one_line(seeing: udse_fast.Separator, video: Any, line: str) -> None:
    with pytest.raises(UdseError, match=line):
        seeing.separate(np.ones(100, np.float32), RATE, video=video)


def test_a_prior_that_sees_nothing_takes_no_video(tiny: Any) -> None:
    with pytest.raises(UdseError, match="talker_1: video: expected none with a prior that only hears"):
        tiny(2).separate(np.ones(100, np.float32), RATE, video={"talker_1": np.zeros((5, 2), np.float32)})


# -- blocks one after the other ----------------------------------------------------------------------------------------


def shuffled(parts: np.ndarray) -> tuple[Callable[[Tensor, Block[Any]], Tensor], list[list[int]]]:
    """A separation that knows the talkers (K, L), and gives those of every block in another order."""
    rng, orders = np.random.default_rng(0), list[list[int]]()

    def separate(signals: Tensor, of: Block[Any]) -> Tensor:
        start = of.first_frame * SPECTRAL.hop_length
        padded = np.pad(parts, ((0, 0), (0, len(parts[0]))))
        orders.append(rng.permutation(len(parts)).tolist())
        block = torch.from_numpy(padded[orders[-1], start : start + signals.shape[1]])
        return block.float().expand(len(signals), -1, -1)

    return separate, orders


def stream_of(parts: np.ndarray, channels: int = 1) -> tuple[SeparationStream, list[list[int]]]:
    separate, orders = shuffled(parts)
    names = [*(f"talker_{k + 1}" for k in range(len(parts))), "noise"]
    settings = OverlapSettings(0.5, 0.2)
    stream = SeparationStream(
        separate, lambda talkers: OverlapBlocks.of(settings, SPECTRAL, talkers), names, RATE, RATE, channels
    )
    return stream, orders


@pytest.mark.parametrize("talkers", [2, 3])
def test_talkers_keep_their_order_over_blocks(talkers: int) -> None:
    parts = np.stack([in_band(300 * k, 300 * k + 2000, k, 3 * RATE) for k in range(talkers)])
    stream, orders = stream_of(parts)
    mixture = parts.sum(0) + in_band(50, 7900, 9, 3 * RATE)
    pieces = [stream.process(chunk) for chunk in np.array_split(mixture, 7)] + [stream.flush()]
    out = {name: np.concatenate([piece[name] for piece in pieces]) for name in stream.names}
    assert len({tuple(order) for order in orders}) > 1
    for k in range(talkers):
        np.testing.assert_allclose(out[f"talker_{k + 1}"], parts[orders[0][k]], atol=1e-5)
    np.testing.assert_allclose(sum(out.values()), mixture, atol=1e-6)


def test_the_output_does_not_depend_on_the_chunks() -> None:
    parts = np.stack([in_band(0, 2000, k, 2 * RATE) for k in range(2)])
    results = []
    for cuts in ([], [1, 2, 5000], list(range(100, 2 * RATE, 1700))):
        stream, _ = stream_of(parts)
        pieces = [stream.process(chunk) for chunk in np.split(parts.sum(0), cuts)] + [stream.flush()]
        results.append(np.concatenate([piece["talker_2"] for piece in pieces]))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_the_best_of_all_orders() -> None:
    before = torch.randn(4, 2, 50, generator=torch.Generator().manual_seed(0))
    assert best_order(before, before[[2, 0, 3, 1]] + 0.01) == [1, 3, 0, 2]
    assert best_order(torch.zeros(3, 9), torch.zeros(3, 9)) == [0, 1, 2]
    assert best_order(torch.zeros(2, 0), torch.zeros(2, 0)) == [0, 1]


# -- whole recordings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
@pytest.mark.parametrize("shape", [(2, 9001), (1,)])
def test_the_sources_add_up_to_the_recording(tiny: Any, rate: int, shape: tuple[int, ...]) -> None:
    audio = (0.1 * np.random.default_rng(0).standard_normal(shape)).astype(np.float32)
    sources = tiny(3).separate(audio, rate)
    assert list(sources) == ["talker_1", "talker_2", "talker_3", "noise"]
    assert all(x.shape == audio.shape and x.dtype == audio.dtype and np.isfinite(x).all() for x in sources.values())
    np.testing.assert_allclose(sum(sources.values()), audio, atol=1e-6)


def test_what_comes_is_what_goes(tiny: Any) -> None:
    audio = 0.1 * np.random.default_rng(0).standard_normal(5000)
    separator = tiny(2)
    floats = separator.separate(audio.astype(np.float32), RATE)
    integers = separator.separate(np.rint(audio * 32768).astype(np.int16), RATE)
    tensors = separator.separate(torch.from_numpy(audio), RATE)
    for name, expected in floats.items():
        assert integers[name].dtype == np.int16
        assert tensors[name].dtype == torch.float64
        np.testing.assert_allclose(tensors[name].numpy(), expected, atol=1e-4)


def test_the_seed_decides(tiny: Any) -> None:
    audio = (0.1 * np.random.default_rng(0).standard_normal(5000)).astype(np.float32)
    first, again, other = (tiny(2, seed=seed).separate(audio, RATE)["talker_1"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


def test_each_source_has_its_own_prior(tiny: Any, tiny_checkpoints: dict[str, Path]) -> None:
    named = [udse_fast.Source("anna", tiny_checkpoints["joint"]), "noise", "ben"]
    separator = tiny(named)
    assert separator.names == ("anna", "ben", "noise")
    joint, speech, noise = separator.networks
    assert joint is noise
    assert not speech.joint


def test_without_a_prior_of_noise_it_is_still_what_is_left_over(tiny: Any) -> None:
    audio = (0.1 * np.random.default_rng(0).standard_normal(4000)).astype(np.float32)
    separator = tiny(["anna", "ben"])
    assert separator.names == ("anna", "ben", "noise")
    sources = separator.separate(audio, RATE)
    np.testing.assert_allclose(sources["anna"] + sources["ben"], audio, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "settings", "line"),
    [
        ((0,), {}, "sources: expected a whole number from 1 to 8, got 0"),
        ((["noise"],), {}, "sources: expected 1 to 8 talkers beside the noise, got 0"),
        ((["a", "a"],), {}, "sources: expected a name of its own for each, got a twice"),
        ((["a/b"],), {}, "sources: expected names such as 'talker_1', which files can have, got 'a/b'"),
        ((2,), {"zetta": 1}, "Separator: unknown setting zetta; there are sampler, steps"),
        ((2,), {"solver": "rk4"}, "solver: expected euler or heun, got 'rk4'"),
        ((2,), {"rule": "mine"}, "rule: expected gradient or joint or residual, got 'mine'"),
        ((2,), {"steps": 1}, "steps: expected a whole number >?from 2"),
        ((2,), {"lowest_level": 2.0}, "lowest_level: expected less than highest_level"),
        ((2,), {"start_level": 3.0}, "start_level: expected a level that .* knows, got 3"),
        ((2,), {"sampler": "dps", "highest_level": 3.0}, "highest_level: expected a level that .* knows, got 3"),
        ((2,), {"sampler": "ddrm"}, "sampler: expected shares or dps, got 'ddrm'"),
        ((2,), {"guidance": -1.0}, "guidance: expected a number from 0 to 1000"),
        ((2,), {"overlap_seconds": 0.5}, "overlap_seconds: expected up to half of block_seconds"),
        ((2,), {"checkpoint": "nowhere.pt"}, "expected a checkpoint file, got nowhere.pt"),
        ((2,), {"checkpoint": "posterior"}, "posterior: expected a prior, got a network that is told the recording"),
    ],
)
def test_what_does_not_fit_is_one_line(tiny: Any, arguments: Any, settings: dict[str, Any], line: str) -> None:
    with pytest.raises(UdseError, match=line.replace(">?", "")) as error:
        tiny(*arguments, **settings)
    assert "\n" not in str(error.value)


def test_priors_of_another_transform_do_not_fit(tiny: Any, tiny_checkpoint: Path, tmp_path: Path) -> None:
    network = load_network(tiny_checkpoint)
    other = {**network.config, "stft": {**network.config["stft"], "hop_length": 128}}
    save_checkpoint(tmp_path / "other.safetensors", network.module.state_dict(), other)
    with pytest.raises(UdseError, match=r"other.safetensors: expected the stft settings of the first source's prior"):
        tiny(2, noise_checkpoint=tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("chunk", "line"),
    [
        (np.zeros((2, 5), np.float32), "chunk: expected 1 channels"),
        (np.full(5, np.nan, np.float32), "chunk: expected finite samples"),
        ([0.0], "chunk: expected a numpy array or torch tensor"),
    ],
)
def test_chunks_that_do_not_fit_are_one_line(tiny: Any, chunk: Any, line: str) -> None:
    with pytest.raises(UdseError, match=line):
        tiny(2).open_stream(RATE).process(chunk)


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def command(tiny_checkpoints: dict[str, Path]) -> list[str]:
    priors = ["--checkpoint", str(tiny_checkpoints["speech"]), "--noise-checkpoint", str(tiny_checkpoints["joint"])]
    return ["separate", *priors, "--steps", "2", "--set", "block_seconds=0.6", "--set", "overlap_seconds=0.2"]


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    audio = 0.1 * np.random.default_rng(0).standard_normal((12000, 2))
    soundfile.write(tmp_path / "two people.flac", audio, 22050, subtype="PCM_24")
    return tmp_path / "two people.flac"


def test_a_file_for_each_talker_and_the_noise(
    command: list[str], recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, str(recording), "-o", str(tmp_path / "out"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["separated"], told["failed"]) == (1, 0)
    (file,) = told["files"]
    assert file["seconds"] == pytest.approx(12000 / 22050, abs=1e-3)
    names = {"talker_1", "talker_2", "noise"}
    assert {name: Path(path).name for name, path in file["outputs"].items()} == {
        name: f"two people_{name}.flac" for name in names
    }
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"two people_{name}.flac" for name in names}
    mixture, _ = soundfile.read(recording)
    parts = [soundfile.read(path) for path in file["outputs"].values()]
    assert all(rate == 22050 and x.shape == mixture.shape for x, rate in parts)
    assert all(soundfile.info(path).subtype == "PCM_24" for path in file["outputs"].values())
    np.testing.assert_allclose(sum(x for x, _ in parts), mixture, atol=4 / 2**23)


def test_talkers_by_name(command: list[str], recording: Path, tmp_path: Path) -> None:
    assert main([*command, str(recording), "-o", str(tmp_path / "out"), "--sources", "anna, ben,noise"]) == 0
    assert len(list((tmp_path / "out").glob("two people_anna.flac"))) == 1


def test_what_fails_is_told_and_the_others_go_on(
    command: list[str], recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.wav").write_text("hello")
    out = tmp_path / "out"
    assert main([*command, str(tmp_path / "text.wav"), str(recording), "-o", str(out)]) == 2
    told = capsys.readouterr()
    assert "text.wav: expected audio" in told.err
    assert "RTF" in told.out
    assert len(list(out.iterdir())) == 3


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nowhere.wav"], "nowhere.wav: expected a recording, found nothing of that name"),
        (["."], ".: expected a recording, found a folder"),
        (["--sources", "0", "nowhere.wav"], "sources: expected a whole number from 1 to 8"),
        (["--set", "steps=3", "nowhere.wav"], "--set: steps has an option of its own"),
        (["--set", "zetta=3", "nowhere.wav"], "unknown setting zetta"),
    ],
)
def test_wrong_arguments_are_one_line(
    command: list[str], arguments: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, *arguments, "-o", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert line in told
    assert len(told.splitlines()) == 1


def test_inputs_of_one_name_would_overwrite_each_other(
    command: list[str], recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other").mkdir()
    twin = tmp_path / "other" / recording.name
    twin.write_bytes(recording.read_bytes())
    assert main([*command, str(recording), str(twin), "-o", str(tmp_path / "out")]) == 2
    assert "expected a name of its own for every output" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_nothing_half_written_where_the_sampler_diverges(command: list[str], recording: Path, tmp_path: Path) -> None:
    diverging = ["--sampler", "dps", "--zeta", "1e6"]
    assert main([*command, str(recording), "-o", str(tmp_path / "out"), *diverging]) in (0, 2)
    assert not list((tmp_path / "out").glob(".*"))


def test_a_video_for_each_talker(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The files are read, their mouths reach the prior, and swapped videos give something else."""
    architecture = {
        "name": "compact-av", "encoder": {"name": "compact", "features": 6, "channels": [4, 4, 4]},
        "channels": [8, 8], "blocks": [1, 1], "frame_channels": 16, "dilations": [1], "embedding": 16,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_network(architecture)
        for weight in network.parameters():
            if not weight.any():  # what starts at zero would hide the video
                nn.init.normal_(weight, std=0.3)
    stft = {"n_fft": 510, "hop_length": 255, "window": "sqrt_hann", "sample_rate": RATE}
    prior = tmp_path / "av.safetensors"
    save_checkpoint(prior, network.state_dict(), {"architecture": architecture, "stft": stft})
    voices = [in_band(50, 2000, 0, RATE), in_band(1000, 6000, 1, RATE) * np.linspace(0, 1, RATE, dtype=np.float32)]
    for name, voice in zip("ab", voices, strict=True):
        write_clip(tmp_path / f"{name}.mkv", draw_mouths(voice, RATE), voice, RATE)
    soundfile.write(tmp_path / "mix.wav", voices[0] + voices[1], RATE, subtype="FLOAT")
    command = ["separate", str(tmp_path / "mix.wav"), "--checkpoint", str(prior), "--steps", "3", "--sources", "2"]
    results = []
    for number, order in enumerate(("ab", "ba")):
        videos = [str(tmp_path / f"{name}.mkv") for name in order]
        out = tmp_path / str(number)
        assert main([*command, "-o", str(out), "--video", *videos]) == 0
        results.append(soundfile.read(out / "mix_talker_1.wav")[0])
    assert np.abs(results[0] - results[1]).max() > 1e-4
    capsys.readouterr()
    assert main([*command, "-o", str(out), "--video", videos[0]]) == 2
    assert "--video: expected one recording, and a video for each of talker_1, talker_2" in capsys.readouterr().err

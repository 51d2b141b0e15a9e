"""`Enhancer`: form, length, level and alignment of what comes back, and what it says to bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray
from torch import Tensor

import udse_fast
from udse_fast import Enhancer, UdseError
from udse_fast.audio.spectral import Spectral
from udse_fast.checkpoints.checkpoint import load_network
from udse_fast.checkpoints.export import export_network
from udse_fast.evaluation.oracles import TrueNoise
from udse_fast.sampling.samplers import SAMPLERS
from udse_fast.settings import OverlapSettings
from udse_fast.streaming.blocks import Enhanced
from udse_fast.streaming.overlap import OverlapBlocks

OF_PRIORS = [name for name, row in SAMPLERS.items() if row.network == "prior"]
FAST = {"steps": 2, "samples": 1, "precision": "float32"}
FLOAT32_CHAIN = 1e-3  # rounding of the input, through a few network calls


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint: Path) -> Enhancer:
    return Enhancer(tiny_checkpoint, **FAST)


def noise(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32) * 0.1


@pytest.mark.parametrize("dtype", ["float32", "float64", "int16"])
@pytest.mark.parametrize("shape", [(5_000,), (1, 5_000), (2, 5_000)])
def test_form_in_form_out(tiny: Enhancer, dtype: str, shape: tuple[int, ...]) -> None:
    x = (noise(*shape) * (32767 if dtype == "int16" else 1)).astype(dtype)
    before = x.copy()
    y, rest = tiny.separate(x, 16000)
    assert (y.dtype, y.shape, rest.dtype, rest.shape) == (x.dtype, x.shape, x.dtype, x.shape)
    np.testing.assert_array_equal(x, before)
    z = tiny.enhance(torch.from_numpy(x), 16000)
    assert isinstance(z, Tensor)
    np.testing.assert_array_equal(z.numpy(), y)


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000, 96000, 192000])
@pytest.mark.parametrize("length", [1, 2, 255, 5_001])
def test_length(tiny: Enhancer, rate: int, length: int) -> None:
    y = tiny.enhance(noise(length), rate)
    assert y.shape == (length,)
    assert np.isfinite(y).all()


def test_awkward_arrays(tiny: Enhancer) -> None:
    x = noise(8_000)
    np.testing.assert_array_equal(tiny.enhance(noise(8_000)[::-1][::-1], 16000), tiny.enhance(x, 16000))
    read_only = x.copy()
    read_only.flags.writeable = False
    np.testing.assert_array_equal(tiny.enhance(read_only, 16000), tiny.enhance(x, 16000))
    asfortran = np.asfortranarray(noise(2, 4_000))
    np.testing.assert_array_equal(tiny.enhance(asfortran, 16000), tiny.enhance(noise(2, 4_000), 16000))
    tracked = torch.from_numpy(x).requires_grad_()
    assert not tiny.enhance(tracked, 16000).requires_grad
    np.testing.assert_array_equal(tiny.enhance(x, np.int64(16000)), tiny.enhance(x, 16000))


@pytest.mark.parametrize("gain", [2.0**-20, 2.0**-10, 1e-3, 30.0])
def test_level_in_level_out(tiny: Enhancer, gain: float) -> None:
    x = noise(6_000)
    quiet, loud = tiny.enhance((gain * x).astype(np.float32), 16000), gain * tiny.enhance(x, 16000)
    np.testing.assert_allclose(quiet, loud, atol=FLOAT32_CHAIN * np.abs(loud).max())


def test_int16_is_rounded_float(tiny: Enhancer) -> None:
    x = (noise(6_000) * 32767).astype(np.int16)
    y = tiny.enhance(x / 32768, 16000)
    expected = np.clip(np.rint(y * 32768), -32768, 32767)
    assert np.abs(y).max() > 1  # an untrained network exceeds full scale: it must be clipped, not wrapped
    np.testing.assert_array_equal(tiny.enhance(x, 16000), expected)


def test_seed(tiny: Enhancer, tiny_checkpoint: Path) -> None:
    x = noise(6_000)
    first = tiny.enhance(x, 16000)
    torch.manual_seed(7)
    np.testing.assert_array_equal(tiny.enhance(x, 16000), first)
    np.testing.assert_array_equal(Enhancer(tiny_checkpoint, **FAST, seed=0).enhance(x, 16000), first)
    assert np.abs(Enhancer(tiny_checkpoint, **FAST, seed=1).enhance(x, 16000) - first).max() > 1e-3


def test_channels_are_enhanced_one_by_one(tiny: Enhancer) -> None:
    x = noise(2, 6_000)
    together = tiny.enhance(x, 44100)
    np.testing.assert_array_equal(together, np.stack([tiny.enhance(row, 44100) for row in x]))


def test_a_dead_channel_stays_dead(tiny: Enhancer) -> None:
    x = noise(2, 6_000)
    x[1] = 0
    speech, rest = tiny.separate(x, 48000)
    assert not speech[1].any()
    assert not rest[1].any()
    np.testing.assert_array_equal(speech[0], tiny.enhance(x[0], 48000))


@pytest.mark.parametrize("length", [1, 100, 5_000])
def test_silence_is_silent(tiny: Enhancer, length: int) -> None:
    assert not tiny.enhance(np.zeros(length, np.float32), 16000).any()


@pytest.mark.parametrize(
    "x",
    [np.ones(4_000), np.sign(noise(4_000)), np.full(4_000, 1e-38), noise(4_000) * 1e25, np.eye(1, 4_000)[0]],
    ids=["constant", "full scale", "denormal", "huge", "impulse"],
)
def test_odd_signals(tiny: Enhancer, x: NDArray[Any]) -> None:
    y = tiny.enhance(x.astype(np.float32), 16000)
    assert y.shape == x.shape
    assert np.isfinite(y).all()


@pytest.mark.parametrize("rate", [16000, 48000])
def test_the_attenuation_is_limited(tiny_checkpoint: Path, tiny: Enhancer, rate: int) -> None:
    x = noise(6_000)
    speech, rest = tiny.separate(x, rate)
    for decibels in (0.0, 6.0, 200.0):
        enhancer = Enhancer(tiny_checkpoint, **FAST, max_attenuation_db=decibels)
        limited, taken = enhancer.separate(x, rate)
        expected = speech + 10 ** (-decibels / 20) * rest
        np.testing.assert_allclose(limited, expected, atol=1e-6 * np.abs(speech).max())
        np.testing.assert_allclose(limited + taken, x, atol=1e-6 * np.abs(speech).max())


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
@pytest.mark.parametrize("causal", [False, True])
def test_no_attenuation_gives_the_input_back(tiny_checkpoints: dict[str, Path], rate: int, causal: bool) -> None:
    """At every rate, what lies above the prior's band included, aligned; also as a stream."""
    enhancer = Enhancer(tiny_checkpoints["causal" if causal else "speech"], **FAST, max_attenuation_db=0)
    x = noise(2, rate // 2)
    whole = enhancer.enhance(x, rate, causal=causal)
    stream = enhancer.open_stream(rate, 2, causal=causal)
    cut = np.concatenate([stream.process(x[:, :1_000]), stream.process(x[:, 1_000:]), stream.flush()], axis=1)
    for y in (whole, cut):
        np.testing.assert_allclose(y, x, atol=1e-5)


def test_the_old_name_of_the_limit(tiny_checkpoint: Path) -> None:
    with pytest.warns(DeprecationWarning, match="max_attenuation_db"):
        assert Enhancer(tiny_checkpoint, **FAST, strength=12).max_attenuation_db == 12.0
    with pytest.raises(UdseError, match="got both"):
        Enhancer(tiny_checkpoint, **FAST, strength=12, max_attenuation_db=12)
    with pytest.raises(UdseError, match="unknown setting strength"):
        Enhancer(tiny_checkpoint, **FAST).open_stream(strength=12)


@pytest.mark.parametrize("name", [name for name in OF_PRIORS if name != "prior"])
def test_every_sampler(tiny_checkpoints: dict[str, Path], name: str) -> None:
    enhancer = Enhancer(tiny_checkpoints["joint"], name, **FAST)
    x = noise(5_000)
    speech, rest = enhancer.separate(x, 16000)
    assert np.isfinite(speech).all()
    np.testing.assert_allclose(speech + rest, x, atol=1e-6 * max(1, np.abs(speech).max()))


def test_two_priors_for_paradiffuse(tiny_checkpoints: dict[str, Path]) -> None:
    speech = tiny_checkpoints["speech"]
    with pytest.raises(UdseError, match="joint"):
        Enhancer(speech, "paradiffuse_en", **FAST)
    two = Enhancer(speech, "paradiffuse_en", noise_checkpoint=speech, **FAST)
    assert np.isfinite(two.enhance(noise(4_000), 16000)).all()


@pytest.mark.parametrize("mode", ["oracle", "pure oracle"])
def test_oracle_modes(tiny: Enhancer, mode: str) -> None:
    x = noise(6_000)
    speech, rest = tiny.separate(x, 16000, make_noise_model=TrueNoise(tiny, 0.5 * x, mode))
    np.testing.assert_allclose(speech + rest, x, atol=1e-6 * np.abs(speech).max())
    assert np.abs(speech - tiny.enhance(x, 16000)).max() > 1e-3
    with pytest.raises(UdseError, match="as much noise as recording"):
        tiny.separate(x, 16000, make_noise_model=TrueNoise(tiny, x[1:], mode))
    with pytest.raises(UdseError, match="expected one of oracle, pure oracle, got 'half'"):
        TrueNoise(tiny, x, "half")
    with pytest.raises(UdseError, match=r"one channel \(L,\), got the shape \(1, 6000\)"):
        TrueNoise(tiny, x[None], mode)


def test_a_noise_model_of_ones_own_is_for_whole_signals(tiny_checkpoints: dict[str, Path]) -> None:
    enhancer, x = Enhancer(tiny_checkpoints["causal"], **FAST), noise(6_000)
    with pytest.raises(UdseError, match="make_noise_model: expected causal=False"):
        enhancer.separate(x, 16000, causal=True, make_noise_model=TrueNoise(enhancer, x, "oracle"))


@pytest.mark.parametrize(
    ("audio", "rate", "complaint"),
    [
        ([0.0, 0.1], 16000, "expected a numpy array or torch tensor, got list"),
        (np.zeros(0, np.float32), 16000, "at least one sample"),
        (np.zeros((2, 0), np.float32), 16000, "at least one sample"),
        (np.zeros((0, 10), np.float32), 16000, "at least one sample"),
        (np.float32(1), 16000, "numpy array"),
        (np.zeros(()), 16000, "shape"),
        (np.zeros((2, 2, 100)), 16000, "shape"),
        (np.zeros((16000, 2)), 16000, "transpose"),
        (np.zeros(10, complex), 16000, "complex128; convert"),
        (torch.zeros(10, dtype=torch.int64), 16000, "int64; convert"),
        (np.array([0.0, np.nan]), 16000, "got nan at sample 1"),
        (np.array([np.inf, 0.0]), 16000, "got inf at sample 0"),
        (np.array([1e200, 0.0]), 16000, "got inf at sample 0"),
        (np.zeros(10), 7999, "from 8000 to 1000000, got 7999"),
        (np.zeros(10), 16000.5, "whole number of Hz"),
        (np.zeros(10), True, "whole number of Hz"),
        (np.zeros(10), "16000", "whole number of Hz"),
    ],
)
def test_complaints_about_audio(tiny: Enhancer, audio: Any, rate: Any, complaint: str) -> None:
    with pytest.raises(UdseError, match=complaint) as error:
        tiny.enhance(audio, rate)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"sampler": "wiener"}, "expected one of udiffse, .*got 'wiener'"),
        ({"sampler": "prior"}, "without a recording"),
        ({"steps": 0}, "steps: expected a whole number from 1 to 100000, got 0"),
        ({"steps": 1.5}, "steps: expected"),
        ({"samples": True}, "samples: expected"),
        ({"seed": -1}, "seed: expected"),
        ({"seed": 0.5}, "seed: expected"),
        ({"max_attenuation_db": -1.0}, "max_attenuation_db: expected"),
        ({"max_attenuation_db": "loud"}, "max_attenuation_db: expected"),
        ({"device": "tpu"}, "expected a device of this machine"),
        ({"precision": "int8"}, "precision: expected"),
        ({"readout": "median"}, "readout: expected one of"),
        ({"colour": 1}, "unknown setting colour; there are steps"),
        ({"block_seconds": 0.1}, "block_seconds: expected a number from 0.5 to 3600, got 0.1"),
        ({"end_time": 0.9, "start_time": 0.8}, "end_time < start_time"),
    ],
)
def test_complaints_about_settings(tiny_checkpoint: Path, settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UdseError, match=complaint) as error:
        Enhancer(tiny_checkpoint, **settings)
    assert "\n" not in str(error.value)


def test_the_built_in_prior_improves_the_example() -> None:
    folder = Path(udse_fast.__file__).parent / "examples"
    noisy, rate = soundfile.read(folder / "noisy.flac", dtype="float32")
    clean, _ = soundfile.read(folder / "clean.flac", dtype="float32")

    def si_sdr(x: NDArray[np.float32]) -> float:
        target = (x @ clean) / (clean @ clean) * clean
        return float(10 * np.log10(np.sum(target**2) / np.sum((x - target) ** 2)))

    enhanced = Enhancer().enhance(noisy, rate)
    assert si_sdr(enhanced) > si_sdr(noisy) + 3


@pytest.mark.parametrize("length", [1, 15_000, 16_065, 16_066, 50_000, 123_457])
def test_long_signals_are_cut_into_blocks_and_joined(length: int) -> None:
    spectral = Spectral(hop_length=255)
    blocks = OverlapBlocks.of(OverlapSettings(block_seconds=1.0, overlap_seconds=0.2), spectral)
    x, lengths, out = torch.from_numpy(noise(length)), [], []
    blocks.push(x)
    blocks.end()
    while due := blocks.due():
        for block in due:
            lengths.append(len(block.signal))
            out.append(blocks.accept(block, Enhanced(block.signal.expand(2, -1), None)))
    torch.testing.assert_close(torch.cat([*out, blocks.rest()], dim=1)[0], x, atol=1e-7, rtol=0)
    assert max(lengths) <= 16_065 + 255  # of the last block: it starts at a whole frame
    assert len(lengths) == max(1, 1 + int(np.ceil((length - 16_065) / (16_065 - 3_315))))


def test_speech_is_the_name_of_the_built_in_prior() -> None:
    """With all that it has: a causal form, and the joint prior for the samplers that need one."""
    x, options = noise(4_000), {"steps": 2, "samples": 1}
    named, default = Enhancer("speech", **options), Enhancer(**options)
    np.testing.assert_array_equal(named.enhance(x, 16000), default.enhance(x, 16000))
    assert named.latency_samples == default.latency_samples
    np.testing.assert_array_equal(named.process(x), default.process(x))
    assert Enhancer("speech", "paradiffuse_en", **options).network.joint


def test_many_recordings_at_once(tiny: Enhancer) -> None:
    """Each as alone; forms, rates and order stay."""
    recordings: list[Any] = [
        (noise(2, 9_000), 44100),
        ((noise(5_000) * 32767).astype(np.int16), 16000),
        (torch.from_numpy(noise(20_000)), 16000),
        (noise(5_000)[::-1].astype(np.float64), 16000),
    ]
    results = tiny.enhance_many(recordings, together=3)
    for (audio, rate), result in zip(recordings, results, strict=True):
        expected = tiny.enhance(audio, rate)
        assert (type(result), result.dtype, result.shape) == (type(expected), expected.dtype, expected.shape)
        scale = float(np.abs(np.asarray(expected)).max())
        np.testing.assert_allclose(np.asarray(result), np.asarray(expected), atol=1e-3 * scale)
    assert tiny.enhance_many([]) == []
    with pytest.raises(UdseError, match=r"recordings\[1\]: expected at least one sample"):
        tiny.enhance_many([recordings[0], (np.zeros(0), 16000)])


def test_recordings_share_network_calls(tiny: Enhancer, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, evaluate = [], type(tiny.network).evaluate

    def counted(self: Any, state: Tensor, *arguments: Any, **keywords: Any) -> Any:
        sizes.append(len(state))
        return evaluate(self, state, *arguments, **keywords)

    monkeypatch.setattr(type(tiny.network), "evaluate", counted)
    tiny.enhance_many([(noise(5_000), 16000)] * 3)
    assert set(sizes) == {3}


def test_a_stream_refuses_unknown_settings(tiny_checkpoint: Path) -> None:
    with pytest.raises(UdseError, match="unknown setting blocks_seconds"):
        Enhancer(tiny_checkpoint).open_stream(16000, blocks_seconds=2.0)


def test_torchscript_of_the_built_in_prior_enhances_alike(tmp_path: Path) -> None:
    export_network(load_network(None), tmp_path / "prior.pt")
    x = noise(16_000)
    settings: dict[str, Any] = {"steps": 5, "precision": "float32"}
    expected = Enhancer(sampler="ddrm", **settings).enhance(x, 16000)
    y = Enhancer(tmp_path / "prior.pt", "ddrm", **settings).enhance(x, 16000)
    assert np.linalg.norm(y - expected) < 1e-3 * np.linalg.norm(expected)

"""Enhancing with a video: what of it each block is told, and what becomes of video that is not as expected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from udse_fast import Enhancer, UdseError
from udse_fast.checkpoints.checkpoint import load_network
from udse_fast.streaming.blocks import Block
from udse_fast.video.track import VideoTrack

QUICK = {"sampler": "ddrm", "steps": 2, "samples": 1, "precision": "float32", "device": "cpu"}
PUBLISHED = Path(__file__).parent / "golden" / "networks_av" / "av.ckpt"


@pytest.fixture(scope="module")
def checkpoint(audio_visual_checkpoint: Path) -> Path:
    return audio_visual_checkpoint


@pytest.fixture(scope="module")
def enhancer(checkpoint: Path) -> Enhancer:
    return Enhancer(checkpoint, block_seconds=1.0, overlap_seconds=0.25, **QUICK)


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, round(seconds * 16000)).astype(np.float32)


def pixels(frames: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, 88, 88), np.uint8)


def features(frames: int, seed: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(frames, 6)).astype(np.float32)


def track_of(checkpoint: Path, rate: float = 25.0) -> VideoTrack:
    enhancer = Enhancer(checkpoint, **QUICK)
    return VideoTrack(enhancer.network, enhancer.spectral, rate)


def told(track: VideoTrack, start: float, seconds: float) -> Tensor:
    """Features of the block that starts with the frame at a time, (n, 6)."""
    video = track.tell(Block(torch.zeros(round(seconds * 16000)), round(start * 16000 / 255), None)).video
    assert video is not None
    return video[0]


def test_a_video_is_heard_of_and_its_pixels_are_its_features(enhancer: Enhancer) -> None:
    audio, video = noise(2.5), pixels(63)
    speech = enhancer.enhance(audio, 16000, video=video)
    assert speech.shape == audio.shape
    assert np.abs(speech - enhancer.enhance(audio, 16000)).max() > 1e-4
    assert np.abs(speech - enhancer.enhance(audio, 16000, video=pixels(63, seed=9))).max() > 1e-4
    np.testing.assert_array_equal(enhancer.enhance(audio, 16000, video=torch.from_numpy(video).float()), speech)


def test_without_a_video_it_hears_only(enhancer: Enhancer) -> None:
    audio = noise(1.5)
    without = enhancer.enhance(audio, 16000)
    np.testing.assert_allclose(enhancer.enhance(audio, 16000, video=np.zeros((38, 6), np.float32)), without, atol=1e-6)
    np.testing.assert_allclose(enhancer.enhance(audio, 16000, video=pixels(0)), without, atol=1e-6)


def test_every_block_is_told_the_frames_of_its_own_time(checkpoint: Path) -> None:
    track, video = track_of(checkpoint), features(250)
    track.append(video)
    for first in (0, 55, 120):  # frames of the sound
        start = first * 255 / 16000
        seen = told(track, start, 2.0).numpy()
        times = start + (np.arange(50) + 0.5) / 25
        np.testing.assert_array_equal(seen, video[np.floor(times * 25).astype(int)])


def test_the_encoder_sees_the_block_and_no_more(checkpoint: Path) -> None:
    network, video = load_network(checkpoint), pixels(100)
    track = track_of(checkpoint)
    track.append(video)
    first = 94  # 1.498 s
    times = first * 255 / 16000 + (np.arange(25) + 0.5) / 25
    frames = torch.from_numpy(video[np.floor(times * 25).astype(int)])
    assert network.visual_encoder is not None
    expected = network.visual_encoder(frames[None, None])[0]
    torch.testing.assert_close(told(track, first * 255 / 16000, 1.0), expected)


@pytest.mark.parametrize("rate", [12.5, 50.0, 100.0])
def test_another_rate_is_brought_to_25(checkpoint: Path, rate: float) -> None:
    other, video = track_of(checkpoint, rate), features(50)
    number = np.floor((np.arange(int(2 * rate)) + 0.5) / rate * 25).astype(int)
    other.append(video[number])
    shown = number[np.floor((np.arange(50) + 0.5) / 25 * rate + 1e-6).astype(int)]
    assert rate < 25 or np.array_equal(shown, np.arange(50))
    np.testing.assert_array_equal(told(other, 0, 2.0).numpy(), video[shown])


def test_video_that_ends_early_is_held_for_a_moment_and_then_missing(checkpoint: Path) -> None:
    track, video = track_of(checkpoint), features(30)  # 1.2 s
    track.append(video)
    seen = told(track, 0, 2.0).numpy()
    np.testing.assert_array_equal(seen[:30], video)
    np.testing.assert_array_equal(seen[30:35], np.repeat(video[29:], 5, 0))
    assert not seen[35:].any()
    assert not told(track, 3.0, 1.0).any()


def test_video_that_is_longer_than_the_sound_is_left_out(enhancer: Enhancer) -> None:
    audio, video = noise(1.3), pixels(100)
    longer = enhancer.enhance(audio, 16000, video=video)
    np.testing.assert_array_equal(enhancer.enhance(audio, 16000, video=video[:33]), longer)


def test_a_stream_with_its_video_in_pieces_is_the_whole(enhancer: Enhancer) -> None:
    audio, video = noise(3.2), pixels(80)
    whole = enhancer.enhance(audio, 16000, video=video)
    stream = enhancer.open_stream(whole_signal=True)
    pieces = [stream.process(audio[i * 3200 : (i + 1) * 3200], video=video[i * 5 : (i + 1) * 5]) for i in range(16)]
    np.testing.assert_allclose(np.concatenate([*pieces, stream.flush()]), whole, atol=1e-6)


def test_a_stream_forgets_frames_that_no_block_will_see(enhancer: Enhancer) -> None:
    stream = enhancer.open_stream()
    for second in range(12):
        stream.process(noise(1.0, second), video=pixels(25, second))
    assert stream.track is not None
    kept = stream.track.state()["frames"]
    assert len(kept) < 4 * 25


def test_the_state_of_a_stream_has_its_video(enhancer: Enhancer) -> None:
    audio, video = noise(4.0), pixels(100)
    one, other = enhancer.open_stream(), enhancer.open_stream()
    one.process(audio[:40000], video=video[:63])
    other.restore(one.state())
    rest = [s.process(audio[40000:], video=video[63:]) for s in (one, other)]
    np.testing.assert_array_equal(*rest)
    np.testing.assert_array_equal(one.flush(), other.flush())


def test_channels_see_the_same_and_other_rates_of_sound_do_too(enhancer: Enhancer) -> None:
    audio = np.stack([noise(1.5), noise(1.5)])
    left, right = enhancer.enhance(audio, 16000, video=pixels(38))
    np.testing.assert_array_equal(left, right)
    assert enhancer.enhance(np.repeat(audio[0], 3), 48000, video=pixels(38)).shape == (72000,)


def test_the_published_network_takes_features_of_its_own_width() -> None:
    enhancer = Enhancer(PUBLISHED, **{**QUICK, "sampler": None})
    assert enhancer.sampler == "udiffse_plus"
    video = np.random.default_rng(0).normal(size=(20, 24)).astype(np.float32)
    speech = enhancer.enhance(noise(0.8), 16000, video=video)
    assert np.isfinite(speech).all()
    assert np.abs(speech - enhancer.enhance(noise(0.8), 16000)).max() > 1e-5
    with pytest.raises(UdseError, match="no visual encoder that is known"):
        enhancer.enhance(noise(0.8), 16000, video=pixels(20))


@pytest.mark.parametrize(
    ("video", "said"),
    [
        (np.zeros((20, 96, 96), np.uint8), r"expected mouth crops \(Tv, 88, 88\)"),
        (np.zeros((20, 7), np.float32), r"features \(Tv, 6\), got"),
        (np.zeros((20, 88, 88, 3), np.uint8), "expected mouth crops"),
        (np.random.default_rng(0).random((20, 88, 88)), "pixels from 0 .* to 255"),
        (np.full((20, 88, 88), 300.0), "pixels from 0 .* to 255"),
        (np.full((20, 6), np.nan, np.float32), "finite"),
        ("lips.mp4", "expected mouth crops"),
        (np.array(["a"]), "expected mouth crops"),
    ],
)
def test_videos_that_cannot_be_are_refused_in_a_line(enhancer: Enhancer, video: Any, said: str) -> None:
    with pytest.raises(UdseError, match=said) as error:
        enhancer.enhance(noise(0.5), 16000, video=video)
    assert "\n" not in str(error.value)


def test_a_prior_that_hears_only_is_given_no_video() -> None:
    enhancer = Enhancer(**QUICK)
    with pytest.raises(UdseError, match="a prior that only hears"):
        enhancer.enhance(noise(0.5), 16000, video=pixels(13))
    with pytest.raises(UdseError, match="a prior that only hears"):
        enhancer.open_stream().process(noise(0.1), video=pixels(3))


@pytest.mark.parametrize("rate", [0, -25, float("nan"), "fast"])
def test_rates_that_cannot_be(enhancer: Enhancer, rate: Any) -> None:
    with pytest.raises(UdseError, match="video_rate"):
        enhancer.enhance(noise(0.5), 16000, video=pixels(13), video_rate=rate)

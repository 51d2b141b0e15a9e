"""Videos in, videos out: the mouth in them, and the whole way through the command line."""

from __future__ import annotations

import subprocess
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import imageio_ffmpeg
import numpy as np
import pytest
from numpy.typing import NDArray

from udse_fast.audio.files import read_audio
from udse_fast.cli import main
from udse_fast.errors import UdseError
from udse_fast.evaluation.synthetic_lips import band_levels, draw_mouths, write_clip
from udse_fast.video.faces import NoMouthError
from udse_fast.video.mouths import read_mouth_crops

RATE = 16000
PORTRAIT = Path(__file__).parent / "data" / "portrait.jpg"
EYES, MOUTH = ((112, 101), (156, 103)), (132, 144)
"""Of the portrait, (x, y), by eye."""
Picture = NDArray[np.uint8]


@pytest.fixture(scope="module")
def face() -> Picture:
    """(256, 256) grey."""
    with av.open(str(PORTRAIT)) as file:
        return next(file.decode(video=0)).to_ndarray(format="gray")


def noise(seconds: float) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(0, 0.1, round(seconds * RATE)).astype(np.float32)


def video(path: Path, pictures: list[Picture], sound: NDArray[np.float32], rate: int = 25, delay: float = 0) -> Path:
    """An MP4 file; the picture begins `delay` seconds before the sound."""
    with av.open(str(path), "w") as out:
        track: Any = out.add_stream("mpeg4", rate=rate)
        track.height, track.width = pictures[0].shape
        track.pix_fmt, track.bit_rate = "yuv420p", 4_000_000
        heard: Any = out.add_stream("aac", rate=RATE, layout="mono")
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="gray").reformat(format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, rate)
            out.mux(track.encode(frame))
        out.mux(track.encode(None))
        frame = av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE, round(delay * RATE), Fraction(1, RATE)
        out.mux(heard.encode(frame))
        out.mux(heard.encode(None))
    return path


def moved(picture: Picture, x: int, y: int) -> Picture:
    return np.roll(picture, (y, x), (0, 1))


def match(crops: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Correlation of every crop with the first."""
    flat = crops.reshape(len(crops), -1).astype(np.float64)
    flat -= flat.mean(1, keepdims=True)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    return flat @ flat[0]


# -- the mouth -----------------------------------------------------------------------------------------------------


def test_the_mouth_is_found_and_followed(tmp_path: Path, face: Picture) -> None:
    wide = np.pad(face, ((0, 0), (60, 60)), mode="edge")
    pictures = [moved(wide, round(40 * np.sin(number / 25)), 0) for number in range(30)]
    crops = read_mouth_crops(video(tmp_path / "face.mp4", pictures, noise(1.2)))
    assert crops.shape == (30, 88, 88)
    assert crops.dtype == np.uint8
    assert match(crops).min() > 0.8
    side = 1.47 * np.hypot(EYES[1][0] - EYES[0][0], EYES[1][1] - EYES[0][1])
    x, y = (round(c - side / 2) for c in MOUTH)
    expected = face[y : y + round(side), x : x + round(side)]
    rows = np.linspace(0, len(expected) - 1, 88).round().astype(int)
    assert match(np.stack([expected[np.ix_(rows, rows)], crops[0]]))[1] > 0.8


def test_a_tilted_face_gives_an_upright_mouth(tmp_path: Path, face: Picture) -> None:
    angle = np.deg2rad(10)
    y, x = np.mgrid[:256, :256] - 127.5
    source = [np.clip(np.rint(c + 127.5), 0, 255).astype(int) for c in (
        np.cos(angle) * y + np.sin(angle) * x, np.cos(angle) * x - np.sin(angle) * y)]  # fmt: skip
    upright = read_mouth_crops(video(tmp_path / "a.mp4", [face] * 12, noise(0.5)))
    tilted = read_mouth_crops(video(tmp_path / "b.mp4", [face[tuple(source)]] * 12, noise(0.5)))
    assert match(np.stack([upright[5], tilted[5]]))[1] > 0.8


def test_a_video_that_players_turn_is_turned(tmp_path: Path, face: Picture) -> None:
    upright = read_mouth_crops(video(tmp_path / "up.mp4", [face] * 6, noise(0.3)))
    lying = video(tmp_path / "lying.mp4", [np.rot90(face, -1)] * 6, noise(0.3))
    with pytest.raises(NoMouthError):
        read_mouth_crops(lying)
    turn = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-display_rotation", "90", "-i", str(lying)]
    subprocess.run([*turn, "-c", "copy", str(tmp_path / "turned.mp4")], check=True)
    turned = read_mouth_crops(tmp_path / "turned.mp4")
    assert match(np.stack([upright[3], turned[3]]))[1] > 0.9


def test_crops_of_the_right_size_are_taken_as_they_are(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (20, 96, 96), np.uint8)
    write_clip(tmp_path / "wide.mkv", frames, noise(0.8), RATE)
    write_clip(tmp_path / "crops.mkv", frames[:, 4:92, 4:92], noise(0.8), RATE)
    np.testing.assert_array_equal(read_mouth_crops(tmp_path / "crops.mkv"), frames[:, 4:92, 4:92])
    np.testing.assert_array_equal(read_mouth_crops(tmp_path / "wide.mkv"), frames[:, 4:92, 4:92])


@pytest.mark.parametrize("rate", [10, 30, 50])
def test_other_rates_become_25(tmp_path: Path, rate: int) -> None:
    pictures = [np.full((88, 88), 2 * number, np.uint8) for number in range(2 * rate)]
    crops = read_mouth_crops(video(tmp_path / "a.mp4", pictures, noise(2.0), rate))
    shown = np.floor((np.arange(50) + 0.5) / 25 * rate)
    assert len(crops) == 50
    np.testing.assert_allclose(crops.mean((1, 2)) / 2, shown, atol=1.5)


def test_pictures_before_the_sound_are_left_out(tmp_path: Path) -> None:
    pictures = [np.full((88, 88), 5 * number, np.uint8) for number in range(50)]
    crops = read_mouth_crops(video(tmp_path / "late.mp4", pictures, noise(1.6), delay=0.4))
    assert len(crops) in (40, 41, 42)  # the codec starts up to 64 ms early
    assert abs(crops[0].mean() / 5 - 10) < 2.5


def test_a_face_that_leaves_is_black_meanwhile(tmp_path: Path, face: Picture) -> None:
    gone = np.full_like(face, 128)
    crops = read_mouth_crops(video(tmp_path / "a.mp4", [face] * 20 + [gone] * 30 + [face] * 20, noise(2.8)))
    there = crops.reshape(70, -1).any(1)
    assert there[:18].all()
    assert there[52:].all()
    assert not there[23:48].any()


def test_a_face_that_is_missed_for_a_moment_is_not(tmp_path: Path, face: Picture) -> None:
    gone = np.full_like(face, 128)
    crops = read_mouth_crops(video(tmp_path / "a.mp4", [face] * 12 + [gone] * 6 + [face] * 12, noise(1.2)))
    assert crops.reshape(30, -1).any(1).all()


def test_no_face_and_two_faces_are_told_in_a_line(tmp_path: Path, face: Picture) -> None:
    for name, picture, said in (
        ("none", np.full_like(face, 128), "found none"),
        ("two", np.concatenate([face, face], axis=1), "expected one face, found more"),
    ):
        path = video(tmp_path / f"{name}.mp4", [picture] * 6, noise(0.3))
        with pytest.raises(NoMouthError, match=said) as error:
            read_mouth_crops(path)
        assert str(error.value).startswith(str(path))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"no video at all", b"RIFF\0\0\0\0WAVE"])
def test_what_is_no_video_is_told_in_a_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(UdseError, match="expected a video") as error:
        read_mouth_crops(tmp_path / "a.mp4")
    assert "\n" not in str(error.value)
    with pytest.raises(UdseError, match="expected a video"):
        read_mouth_crops(tmp_path / "missing.mp4")


def test_a_truncated_video_gives_what_is_there_or_a_line(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (40, 88, 88), np.uint8)
    write_clip(tmp_path / "a.mkv", frames, noise(1.6), RATE)
    whole = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    crops = read_mouth_crops(tmp_path / "cut.mkv")
    assert 5 < len(crops) < 40
    np.testing.assert_array_equal(crops[:5], frames[:5])


def test_a_gap_of_hours_is_damage_and_no_endless_still(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "gap.mkv"), "w") as out:
        track: Any = out.add_stream("ffv1", rate=25)
        track.height, track.width, track.pix_fmt = 88, 88, "gray"
        for time in (0, 1, 25 * 7200):
            frame = av.VideoFrame.from_ndarray(np.zeros((88, 88), np.uint8), format="gray")
            frame.pts, frame.time_base = time, Fraction(1, 25)
            out.mux(track.encode(frame))
        out.mux(track.encode(None))
    with pytest.raises(NoMouthError, match="no picture for 7"):
        read_mouth_crops(tmp_path / "gap.mkv")


# -- synthetic lips ------------------------------------------------------------------------------------------------


def test_a_drawn_mouth_opens_with_the_speech() -> None:
    sound = np.concatenate([np.zeros(RATE), np.sin(2 * np.pi * 500 * np.arange(RATE) / RATE), np.zeros(RATE)])
    levels = band_levels(sound, RATE)
    frames = draw_mouths(sound, RATE, seed=3).astype(float)
    assert frames.shape == (75, 88, 88)
    assert levels[30:45, 0].min() > 0.95
    assert levels[:23, 0].max() == 0
    dark = (frames < 60).mean((1, 2))
    assert dark[30:45].min() > 3 * dark[:20].max()
    np.testing.assert_array_equal(draw_mouths(sound, RATE, seed=3), draw_mouths(sound, RATE, seed=3))


# -- the command line ----------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(audio_visual_checkpoint: Path) -> Path:
    return audio_visual_checkpoint


def enhance(source: Path, out: Path, checkpoint: Path, *more: str) -> int:
    quick = ["--sampler", "ddrm", "--steps", "1", "--samples", "1", "--threads", "1", "--device", "cpu"]
    return main(["enhance", str(source), "-o", str(out), "--checkpoint", str(checkpoint), *quick, *more])


def packets(path: Path) -> list[tuple[float, bytes]]:
    with av.open(str(path)) as file:
        return [(float(p.pts * p.time_base), bytes(p)) for p in file.demux(file.streams.video[0]) if p.size]


def test_a_talk_is_enhanced_and_its_pictures_stay(tmp_path: Path, face: Picture, checkpoint: Path, capsys) -> None:
    sound = noise(2.0)
    source = video(tmp_path / "talk.mp4", [moved(face, number % 5, 0) for number in range(50)], sound)
    assert enhance(source, tmp_path / "clean.mp4", checkpoint) == 0
    assert "alone" not in capsys.readouterr().err
    before, after = packets(source), packets(tmp_path / "clean.mp4")
    assert [content for _, content in after] == [content for _, content in before]
    np.testing.assert_allclose([t for t, _ in after], [t for t, _ in before], atol=1e-3)
    lengths = [len(read_audio(path)[0]) for path in (source, tmp_path / "clean.mp4")]
    assert abs(lengths[0] - lengths[1]) <= 1
    assert enhance(source, tmp_path / "same.mp4", checkpoint, "--max-attenuation-db", "0") == 0
    a, b = (read_audio(path)[0][:, 0] for path in (source, tmp_path / "same.mp4"))
    middle = slice(RATE // 2, RATE)
    lag = np.argmax([a[middle] @ b[RATE // 2 + d : RATE + d] for d in range(-40, 41)]) - 40
    assert abs(lag) <= RATE // 1000


def test_the_lips_are_seen(tmp_path: Path, face: Picture, checkpoint: Path) -> None:
    """The same sound under other pictures is enhanced otherwise; under none, as by the sound alone."""
    sound, outs = noise(1.2), []
    for name, pictures in (("a", [face] * 30), ("b", [255 - face] * 30), ("c", [np.full_like(face, 128)] * 30)):
        clip = np.stack(pictures)[:, 100:188, 88:176]
        write_clip(tmp_path / f"{name}.mkv", np.ascontiguousarray(clip), sound, RATE)
        assert enhance(tmp_path / f"{name}.mkv", tmp_path / f"{name}.wav", checkpoint) == 0
        outs.append(read_audio(tmp_path / f"{name}.wav")[0])
    assert np.abs(outs[0] - outs[1]).max() > 1e-3


@pytest.mark.parametrize(("kind", "said"), [("none", "found none"), ("two", "expected one face"), ("wav", "without")])
def test_where_no_mouth_is_seen_the_sound_is_enhanced_alone(
    tmp_path: Path, face: Picture, checkpoint: Path, capsys, kind: str, said: str
) -> None:
    if kind == "wav":
        import soundfile

        source = tmp_path / "a.wav"
        soundfile.write(source, noise(0.5), RATE)
    else:
        picture = np.full_like(face, 128) if kind == "none" else np.concatenate([face, face], axis=1)
        source = video(tmp_path / "a.mp4", [picture] * 12, noise(0.5))
    assert enhance(source, tmp_path / f"out{source.suffix}", checkpoint) == 0
    told = capsys.readouterr().err
    assert said in told
    assert "enhanced by its sound alone" in told

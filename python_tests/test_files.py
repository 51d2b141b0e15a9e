"""Audio files: read in chunks, written in the layout they came in, whole or not at all."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from udse_fast import UdseError
from udse_fast.audio.files import CONTAINERS, Layout, audio_files, open_recording, output_layout, written_audio

RATE = 48000
LSB = {"PCM_U8": 2 / 128, "PCM_S8": 2 / 128, "PCM_16": 0.0, "PCM_24": 3 / 2**23, "PCM_32": 1e-7, "FLOAT": 0.0,
       "DOUBLE": 0.0, "ALAC_16": 2 / 2**15, "ULAW": 0.02, "ALAW": 0.02}  # fmt: skip
"""Largest change of a sample that is read and written again: 24 bits are all that float32 has."""


def tone(channels: int = 1, seconds: float = 1.3, rate: int = RATE) -> NDArray[np.float64]:
    t = np.arange(int(seconds * rate)) / rate
    return np.stack([0.5 * np.sin(2 * np.pi * (300 + 200 * c) * t) for c in range(channels)], axis=1)


def write(path: Path, x: NDArray[Any], container: str, subtype: str, rate: int = RATE) -> Path:
    soundfile.write(path, x, rate, subtype, format=container)
    return path


def copied(source: Path, target: Path, seconds: float = 0.1) -> list[str]:
    """Through both functions; returns what could not be kept."""
    notices: list[str] = []
    with open_recording(source) as recording, written_audio(target, recording.layout, notices.append) as out:
        for chunk in recording.chunks(seconds):
            out(chunk)
    return notices


@pytest.mark.parametrize(
    ("container", "subtype", "suffix"),
    [
        *[("WAV", subtype, ".wav") for subtype in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE")],
        ("WAV", "ULAW", ".wav"),
        ("WAVEX", "PCM_24", ".wav"),
        ("RF64", "PCM_16", ".wav"),
        ("FLAC", "PCM_S8", ".flac"),
        ("FLAC", "PCM_16", ".flac"),
        ("FLAC", "PCM_24", ".FLAC"),
        ("AIFF", "PCM_24", ".aif"),
        ("AU", "ALAW", ".au"),
        ("CAF", "ALAC_16", ".caf"),
        ("W64", "DOUBLE", ".w64"),
        ("NIST", "PCM_16", ".sph"),
    ],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_layout_is_kept(tmp_path: Path, container: str, subtype: str, suffix: str, channels: int) -> None:
    source = write(tmp_path / f"in{suffix}", tone(channels), container, subtype)
    target = tmp_path / f"out{suffix}"
    assert copied(source, target) == []
    a, b = soundfile.info(source), soundfile.info(target)
    for name in ("samplerate", "channels", "frames", "format", "subtype"):
        assert getattr(a, name) == getattr(b, name)
    np.testing.assert_allclose(soundfile.read(target)[0], soundfile.read(source)[0], atol=LSB[subtype])


@pytest.mark.parametrize(
    ("container", "subtype", "suffix"),
    [("OGG", "VORBIS", ".ogg"), ("OGG", "OPUS", ".opus"), ("MP3", "MPEG_LAYER_III", ".mp3")],
)
def test_lossy_layouts_are_kept(tmp_path: Path, container: str, subtype: str, suffix: str) -> None:
    source = write(tmp_path / f"in{suffix}", tone(2), container, subtype)
    target = tmp_path / f"out{suffix}"
    assert copied(source, target) == []
    info = soundfile.info(target)
    assert (info.format, info.subtype, info.samplerate) == (container, subtype, RATE)
    before, after = soundfile.read(source)[0], soundfile.read(target)[0]
    assert after.shape == before.shape
    inner = slice(RATE // 10, -RATE // 10)
    assert np.abs(after[inner] - before[inner]).max() < 0.05


@pytest.mark.parametrize(
    ("subtype", "name", "expected"),
    [
        ("PCM_16", "a.wav", ("WAV", "PCM_16")),
        ("FLOAT", "a.flac", ("FLAC", "PCM_24")),
        ("DOUBLE", "a.flac", ("FLAC", "PCM_24")),
        ("PCM_32", "a.flac", ("FLAC", "PCM_24")),
        ("ULAW", "a.flac", ("FLAC", "PCM_16")),
        ("PCM_16", "a.ogg", ("OGG", "VORBIS")),
        ("PCM_16", "a.mp3", ("MP3", "MPEG_LAYER_III")),
        ("VORBIS", "a.wav", ("WAV", "PCM_16")),
        ("VORBIS", "a.opus", ("OGG", "OPUS")),
    ],
)
def test_other_containers(subtype: str, name: str, expected: tuple[str, str]) -> None:
    container, chosen, lost = output_layout(Path(name), Layout(16000, 1, 100, "WAV", subtype, {}))
    assert (container, chosen) == expected
    assert (lost is None) == (chosen == subtype or name.endswith(".opus"))


def test_more_than_a_wav_can_count() -> None:
    hours = Layout(192_000, 2, 192_000 * 3600 * 2, "WAV", "FLOAT", {})
    container, subtype, lost = output_layout(Path("a.wav"), hours)
    assert (container, subtype) == ("RF64", "FLOAT")
    assert lost is not None


def test_tags_are_kept(tmp_path: Path) -> None:
    with soundfile.SoundFile(tmp_path / "in.flac", "w", RATE, 1) as file:
        file.title, file.artist = "Nocturne", "Nobody"
        file.write(tone())
    copied(tmp_path / "in.flac", tmp_path / "out.flac")
    with soundfile.SoundFile(tmp_path / "out.flac") as file:
        assert (file.title, file.artist) == ("Nocturne", "Nobody")


@pytest.mark.parametrize(("container", "subtype"), [("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III"), ("FLAC", "PCM_16")])
def test_chunks_are_the_whole(tmp_path: Path, container: str, subtype: str) -> None:
    path = write(tmp_path / "a", tone(2), container, subtype)
    whole, _ = soundfile.read(path, dtype="float32")
    with open_recording(path) as recording:
        chunks = list(recording.chunks(0.01))
    joined = np.concatenate(chunks, axis=1).T
    joined = joined / np.float32(32768) if joined.dtype == np.int16 else joined
    np.testing.assert_allclose(joined, whole, atol=2e-6)  # another decoder of MP3 than soundfile's


def test_float_beyond_full_scale(tmp_path: Path) -> None:
    source = write(tmp_path / "in.wav", 3 * tone(), "WAV", "FLOAT")
    copied(source, tmp_path / "out.wav")
    np.testing.assert_array_equal(soundfile.read(tmp_path / "out.wav")[0], soundfile.read(source)[0])
    copied(source, tmp_path / "out.flac")  # clipped, not wrapped
    np.testing.assert_allclose(soundfile.read(tmp_path / "out.flac")[0], np.clip(3 * tone()[:, 0], -1, 1), atol=1e-6)


def test_an_error_leaves_no_file(tmp_path: Path) -> None:
    layout = Layout(RATE, 1, 100, "WAV", "PCM_16", {})
    target = tmp_path / "out.wav"
    target.write_bytes(b"before")

    def interrupted() -> None:
        with written_audio(target, layout, print) as out:
            out(np.zeros((1, 100), np.float32))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [path.name for path in tmp_path.iterdir()] == ["out.wav"]
    assert target.read_bytes() == b"before"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "empty file"),
        (b"To be, or not to be\n" * 9, "got something else"),
        (b"RIFF", "got something else"),
        (b"fLaC" + b"\0" * 50, "got something else"),
    ],
)
@pytest.mark.parametrize("name", ["a.wav", "a.txt", "a.mp3", "a"])
def test_what_is_no_audio(tmp_path: Path, content: bytes, complaint: str, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UdseError, match=complaint), open_recording(tmp_path / name):
        pass


@pytest.mark.parametrize("seed", range(6))
def test_random_bytes(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(np.random.default_rng(seed).bytes(20_000))
    with suppress(UdseError), open_recording(path) as recording:  # no other error
        assert all(np.isfinite(chunk).all() for chunk in recording.chunks())


def test_missing_folder_raw(tmp_path: Path) -> None:
    with pytest.raises(UdseError, match="No such file"), open_recording(tmp_path / "no.wav"):
        pass
    with pytest.raises(UdseError, match="got a folder"), open_recording(tmp_path):
        pass
    (tmp_path / "a.raw").write_bytes(b"\0" * 100)
    with pytest.raises(UdseError, match="udse-fast stream"), open_recording(tmp_path / "a.raw"):
        pass


def test_not_a_number_is_told_with_its_place(tmp_path: Path) -> None:
    x = tone(2)
    x[RATE, 1] = np.nan
    path = write(tmp_path / "a.wav", x, "WAV", "FLOAT")
    with (
        open_recording(path) as recording,
        pytest.raises(UdseError, match=r"got nan at 1\.000 s in channel 2"),
    ):
        list(recording.chunks())


@pytest.mark.parametrize(("container", "subtype"), [("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"),
    ("MP3", "MPEG_LAYER_III"), ("W64", "FLOAT")])  # fmt: skip
@pytest.mark.parametrize("share", [0.001, 0.01, 0.5, 0.95])
def test_truncated_files(tmp_path: Path, container: str, subtype: str, share: float) -> None:
    x = tone(1, 3.0) + 0.01 * np.random.default_rng(0).standard_normal((3 * RATE, 1))
    whole = write(tmp_path / "whole", x, container, subtype).read_bytes()
    path = tmp_path / "a"
    path.write_bytes(whole[: int(share * len(whole))])
    with suppress(UdseError), open_recording(path) as recording:  # no other error, or what is there
        assert 0 < sum(chunk.shape[1] for chunk in recording.chunks()) < 3 * RATE


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    layout = Layout(RATE, 1, 100, "WAV", "PCM_16", {})
    (tmp_path / "folder.wav").mkdir()
    for path in (tmp_path / "no" / "a.wav", tmp_path / "folder.wav"):
        with pytest.raises(UdseError, match="cannot write"), written_audio(path, layout, print):
            pass
    with pytest.raises(UdseError, match="expected an existing folder, or an output name that ends in"):
        output_layout(tmp_path / "a.xyz", layout)
    with (
        pytest.raises(UdseError, match=r"does not hold 1 channels at 192000 Hz.*\.wav"),
        written_audio(tmp_path / "a.mp3", Layout(192_000, 1, 100, "WAV", "PCM_16", {}), print),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["folder.wav"]


def test_folders_are_searched(tmp_path: Path) -> None:
    for name in ("b/c.flac", "a.WAV", "d.txt", ".hidden.wav", "e.opus"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.wav").mkdir()
    assert [path.name for path in audio_files(tmp_path)] == ["a.WAV", "c.flac", "e.opus"]
    assert set(CONTAINERS.values()) <= set(soundfile.available_formats())

"""Formats: what comes in any container comes out with its length, layout, bit rate and tags, or is told."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from udse_fast import UdseError
from udse_fast.audio.files import Layout, open_recording, output_layout, read_audio, written_audio
from udse_fast.audio.riff import wave_chunks

CASES = Path(__file__).parent / "data" / "cases"
RATE = 16000


def tone(seconds: float = 1.7, rate: int = RATE, channels: int = 1) -> NDArray[np.float32]:
    """(channels, L): a different frequency in every channel."""
    t = np.arange(round(seconds * rate)) / rate
    return np.stack([0.4 * np.sin(2 * np.pi * 330 * (1 + c) * t) for c in range(channels)]).astype(np.float32)


def encoded(path: Path, container: str, codec: str, x: NDArray[np.float32], rate: int = RATE, **more: Any) -> Path:
    """Written by FFmpeg, not by the code under test."""
    layout = {1: "mono", 2: "stereo"}[len(x)]
    with av.open(str(path), "w", format=container, options=more.get("options", {})) as out:
        stream: Any = out.add_stream(codec, rate=rate, layout=layout)
        stream.bit_rate = more.get("bit_rate", 48_000)
        out.metadata.update(more.get("tags", {}))
        if "chapters" in more:
            out.set_chapters(more["chapters"])
        for start in range(0, x.shape[1], 1000):
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(x[:, start : start + 1000]), "fltp", layout)
            frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def copied(source: Path, target: Path) -> list[str]:
    """Read and written; what could not be kept."""
    notices: list[str] = []
    with (
        open_recording(source) as recording,
        written_audio(target, recording.layout, notices.append, recording.source) as out,
    ):
        for chunk in recording.chunks(0.3):
            out(chunk)
        notices += recording.remarks
    return notices


def described(path: Path) -> tuple[str, str, int]:
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        return container.format.name, stream.codec_context.name, stream.codec_context.sample_rate


@pytest.mark.parametrize(
    ("suffix", "container", "codec", "exact"),
    [
        ("m4a", "ipod", "aac", False),
        ("m4a", "ipod", "alac", True),
        ("mp4", "mp4", "aac", False),
        ("mov", "mov", "pcm_s16le", True),
        ("mka", "matroska", "flac", True),
        ("mkv", "matroska", "aac", False),
        ("webm", "webm", "libopus", True),
        ("wma", "asf", "wmav2", False),
        ("aac", "adts", "aac", False),
        ("avi", "avi", "pcm_s16le", True),
        ("wv", "wv", "wavpack", True),
        ("tta", "tta", "tta", True),
        ("mp3", "mp3", "libmp3lame", True),
        ("ac3", "ac3", "ac3", False),
    ],
)
@pytest.mark.parametrize("named", [True, False], ids=["its name", "no name"])
def test_any_format_is_decoded(
    tmp_path: Path, suffix: str, container: str, codec: str, exact: bool, named: bool
) -> None:
    """Against the tone that went in: in time, in level; lossless lengths are exact. The name does not matter."""
    rate = 48000 if codec in ("libopus", "ac3") else RATE
    source = encoded(tmp_path / f"in.{suffix}", container, codec, tone(rate=rate), rate)
    if not named:
        source = source.rename(tmp_path / "in")
    samples, found = read_audio(source)
    assert found == rate
    assert samples.shape[1] == 1
    expected = tone(rate=rate)[0]
    assert abs(len(samples) - len(expected)) <= (0 if exact else 4096)
    middle = samples[rate // 2 : rate, 0]
    assert np.sqrt(2) * middle.std() == pytest.approx(0.4, rel=0.1)
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    assert spectrum.argmax() == pytest.approx(330 / 2, abs=1)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(
    ("suffix", "container", "codec", "bit_rate"),
    [
        ("m4a", "ipod", "aac", 40_000),
        ("m4a", "ipod", "aac", 64_000),
        ("mp3", "mp3", "libmp3lame", 32_000),
        ("mp3", "mp3", "libmp3lame", 96_000),
        ("opus", "ogg", "libopus", 24_000),
        ("opus", "ogg", "libopus", 96_000),
        ("mka", "matroska", "libopus", 48_000),
    ],
)
def test_bit_rates_lengths_and_codecs_stay(
    tmp_path: Path, suffix: str, container: str, codec: str, bit_rate: int, channels: int
) -> None:
    rate = 48000 if codec == "libopus" else RATE
    noise = np.random.default_rng(0).standard_normal((channels, 4 * rate)).astype(np.float32) * 0.1
    source = encoded(tmp_path / f"in.{suffix}", container, codec, noise, rate, bit_rate=bit_rate)
    target = tmp_path / f"out.{suffix}"
    assert copied(source, target) == []
    assert described(target) == described(source)
    before, after = (read_audio(path)[0] for path in (source, target))
    assert after.shape == before.shape
    assert target.stat().st_size == pytest.approx(source.stat().st_size, rel=0.25)


@pytest.mark.parametrize("length", [1, 100, 1023, 1024, 1025, 16001, 20000])
@pytest.mark.parametrize("suffix", ["m4a", "opus", "mp4", "mp3", "webm", "mka"])
def test_odd_lengths_of_lossy_files_stay(tmp_path: Path, suffix: str, length: int) -> None:
    rate = 48000 if suffix in ("opus", "webm", "mka") else RATE
    x = tone(2, rate)[:, :length]
    with written_audio(tmp_path / f"a.{suffix}", Layout(rate, 1, length, "WAV", "FLOAT", {}), lambda _: None) as out:
        out(x)
    least = {"mp3": 48, "webm": 648, "mka": 648}.get(suffix, 0)  # they cannot say less
    assert length <= len(read_audio(tmp_path / f"a.{suffix}")[0]) <= max(length, least)


@pytest.mark.parametrize(
    ("subtype", "name", "expected"),
    [
        ("MPEG_LAYER_III", "a.wav", ("WAV", "PCM_16")),
        ("AAC", "a.wav", ("WAV", "PCM_16")),
        ("AAC", "a.flac", ("FLAC", "PCM_16")),
        ("AAC", "a.mp3", ("MP3", "MPEG_LAYER_III")),
        ("MPEG_LAYER_III", "a.m4a", ("ipod", "AAC")),
        ("ALAC_24", "a.m4a", ("ipod", "ALAC_24")),
        ("ALAC_24", "a.flac", ("FLAC", "PCM_24")),
        ("PCM_16", "a.m4a", ("ipod", "AAC")),
        ("IMA_ADPCM", "a.wav", ("WAV", "PCM_16")),
        ("GSM610", "a.wav", ("WAV", "PCM_16")),
        ("MS_ADPCM", "a.w64", ("W64", "PCM_16")),
        ("OPUS", "a.ogg", ("OGG", "OPUS")),
        ("OPUS", "a.webm", ("webm", "OPUS")),
        ("OPUS", "a.mka", ("matroska", "OPUS")),
        ("WMAV2", "a.wav", ("WAV", "PCM_16")),
        ("PCM_S8", "a.wav", ("WAV", "PCM_16")),
        ("PCM_U8", "a.aiff", ("AIFF", "PCM_U8")),
        ("FLOAT", "a.mkv", ("matroska", "FLOAT")),
        ("DOUBLE", "a.caf", ("CAF", "DOUBLE")),
    ],
)
def test_what_a_container_cannot_hold_becomes_its_best(subtype: str, name: str, expected: tuple[str, str]) -> None:
    container, chosen, lost = output_layout(Path(name), Layout(RATE, 1, 100, "?", subtype, {}))
    assert (container, chosen) == expected
    assert (lost is None) == (chosen == subtype)
    assert lost is None or subtype in lost


@pytest.mark.parametrize(("suffix", "container", "codec"), [("m4a", "ipod", "aac"), ("mp3", "mp3", "libmp3lame"),
    ("opus", "ogg", "libopus"), ("mka", "matroska", "libopus")])  # fmt: skip
def test_tags_and_chapters_are_kept(tmp_path: Path, suffix: str, container: str, codec: str) -> None:
    base = Fraction(1, 1000)
    chapters = [
        {"id": n, "start": 500 * n, "end": 500 * (n + 1), "time_base": base, "metadata": {"title": f"part {n}"}}
        for n in range(3)
    ]
    names = {f"CHAPTER{n:03}NAME": f"part {n}" for n in range(3)}
    tags = {"title": "Über", "artist": "nobody", "album": "none", "comment": "two\nlines"}
    if suffix == "opus":  # FFmpeg writes wrong ones into Ogg
        more = {f"CHAPTER{n:03}": f"00:00:0{n / 2:.3f}" for n in range(3)}
        source = encoded(tmp_path / "a.opus", "ogg", codec, tone(), RATE, tags=tags | more | names)
    else:
        source = encoded(tmp_path / f"a.{suffix}", container, codec, tone(), RATE, tags=tags, chapters=chapters)
    target = tmp_path / f"b.{suffix}"
    copied(source, target)
    with av.open(str(target)) as file:
        found = {name.lower(): value for name, value in {**file.metadata, **file.streams.audio[0].metadata}.items()}
        assert {name: found.get(name) for name in tags} == tags
        marks = [(float(c["start"] * c["time_base"]), c["metadata"]["title"]) for c in file.chapters()]
    assert marks == [(0.0, "part 0"), (0.5, "part 1"), (1.0, "part 2")]


def test_tags_go_from_mp3_to_flac(tmp_path: Path) -> None:
    source = encoded(tmp_path / "a.mp3", "mp3", "libmp3lame", tone(), tags={"title": "T", "artist": "A", "track": "3"})
    copied(source, tmp_path / "b.flac")
    with soundfile.SoundFile(tmp_path / "b.flac") as file:
        assert (file.title, file.artist, file.tracknumber) == ("T", "A", "3")


def video(path: Path, container: str, seconds: int = 2) -> Path:
    """A moving picture with a tone that begins with it."""
    with av.open(str(path), "w", format=container) as out:
        picture: Any = out.add_stream("mpeg4", rate=25)
        picture.width, picture.height, picture.pix_fmt = 64, 48, "yuv420p"
        sound: Any = out.add_stream("aac", rate=RATE, layout="mono")
        for number in range(25 * seconds):
            pixels = np.full((48, 64, 3), number, np.uint8)
            pixels[number % 48] = 255
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            out.mux(picture.encode(frame))
            x = tone(seconds)[:, number * RATE // 25 : (number + 1) * RATE // 25]
            heard = av.AudioFrame.from_ndarray(np.ascontiguousarray(x), "fltp", "mono")
            heard.sample_rate, heard.pts, heard.time_base = RATE, number * RATE // 25, Fraction(1, RATE)
            out.mux(sound.encode(heard))
        out.mux(picture.encode(None))
        out.mux(sound.encode(None))
    return path


def pictures(path: Path) -> list[tuple[float, bytes]]:
    with av.open(str(path)) as file:
        packets = [p for p in file.demux(file.streams.video[0]) if p.size]
        return [(float(p.pts * p.time_base), bytes(p)) for p in packets]


@pytest.mark.parametrize(("suffix", "container"), [("mp4", "mp4"), ("mkv", "matroska"), ("mov", "mov")])
@pytest.mark.parametrize("target", ["mp4", "mkv"])
def test_pictures_stay_as_they_are(tmp_path: Path, suffix: str, container: str, target: str) -> None:
    """Every packet of the video is the same, at the same time; the sound is as long as before, and in time."""
    source, out = video(tmp_path / f"in.{suffix}", container), tmp_path / f"out.{target}"
    assert copied(source, out) == []
    before, after = pictures(source), pictures(out)
    assert [content for _, content in after] == [content for _, content in before]
    np.testing.assert_allclose([t for t, _ in after], [t for t, _ in before], atol=0.002)
    a, b = read_audio(source)[0][:, 0], read_audio(out)[0][:, 0]
    assert abs(len(a) - len(b)) <= 1024 + RATE // 1000
    middle = slice(RATE // 2, RATE)
    lag = np.argmax([a[middle] @ b[RATE // 2 + d : RATE + d] for d in range(-20, 21)]) - 20
    assert abs(lag) <= 2


def test_pictures_that_do_not_fit_are_told(tmp_path: Path) -> None:
    source = video(tmp_path / "in.mp4", "mp4")
    assert any("left out" in told for told in copied(source, tmp_path / "out.webm"))
    assert copied(source, tmp_path / "out.flac") != []  # AAC is not FLAC
    assert abs(len(read_audio(tmp_path / "out.flac")[0]) - 2 * RATE) < 2048


# -- WAV headers -----------------------------------------------------------------------------------------------


def wave(*chunks: tuple[bytes, bytes], kind: bytes = b"RIFF", sizes: dict[bytes, int] | None = None) -> bytes:
    """A WAV file of 16 bits, mono; `sizes`: what the headers of chunks say instead of the truth."""
    body = b"WAVE"
    for name, content in ((b"fmt ", struct.pack("<HHIIHH", 1, 1, RATE, 2 * RATE, 2, 16)), *chunks):
        size = (sizes or {}).get(name, len(content))
        body += struct.pack("<4sI", name, size) + content + b"\0" * (len(content) % 2)
    return kind + struct.pack("<I", (sizes or {}).get(b"RIFF", len(body))) + body


SAMPLES = (tone()[0] * 32767).astype("<i2").tobytes()


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFFFFF, 0xFFFFFFF0])
@pytest.mark.parametrize("riff", [0, 0xFFFFFFFF, 36])
def test_wav_of_a_pipe_is_read_to_its_end(tmp_path: Path, size: int, riff: int) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(wave((b"data", SAMPLES), sizes={b"data": size, b"RIFF": riff}))
    samples, rate = read_audio(path)
    assert rate == RATE
    np.testing.assert_array_equal(samples[:, 0] * 32768, np.frombuffer(SAMPLES, "<i2"))


def test_wav_of_a_pipe_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(wave((b"data", SAMPLES), sizes={b"data": 0}))
    assert "says 0 bytes" in copied(path, tmp_path / "b.wav")[0]


@pytest.mark.parametrize("more", [[], [(b"LIST", b"INFOISFT\4\0\0\0abc\0")]])
def test_wav_that_is_really_empty(tmp_path: Path, more: list[tuple[bytes, bytes]]) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(wave((b"data", b""), *more))
    with pytest.raises(UdseError, match="without samples"):
        read_audio(path)


def test_a_rate_of_zero_is_no_audio(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    content = bytearray(wave((b"data", SAMPLES)))
    content[24:28] = bytes(4)
    path.write_bytes(content)
    with pytest.raises(UdseError, match="expected audio"):
        read_audio(path)


@pytest.mark.parametrize("kind", ["WAV", "WAVEX", "RF64"])
def test_broadcast_chunks_are_kept_byte_for_byte(tmp_path: Path, kind: str) -> None:
    bext = b"An interview".ljust(256, b"\0") + bytes(range(256)) + b"A=PCM,F=16000\r\n"
    cue = struct.pack("<I", 1) + struct.pack("<II4sIII", 1, 800, b"data", 0, 0, 800)
    others = [(b"bext", bext), (b"iXML", b"<BWFXML/>"), (b"cue ", cue), (b"LIST", b"adtllabl\6\0\0\0\1\0\0\0a\0")]
    source = tmp_path / "a.wav"
    source.write_bytes(wave(others[0], (b"data", SAMPLES), *others[1:]))
    target = tmp_path / "b.wav"
    with open_recording(source) as recording:
        layout = Layout(RATE, 1, recording.layout.frames, kind, "PCM_16", {})
        with written_audio(target, layout, print, recording.source) as out:
            for chunk in recording.chunks(0.1):
                out(chunk)
    assert soundfile.info(target).format == kind
    np.testing.assert_array_equal(soundfile.read(target, dtype="int16")[0], np.frombuffer(SAMPLES, "<i2"))
    content = target.read_bytes()
    with target.open("rb") as file:
        found = {c.name: content[c.start : c.start + c.size] for c in wave_chunks(file)}
    assert {name: found.get(name) for name, _ in others} == dict(others)
    if kind != "RF64":
        assert struct.unpack("<I", content[4:8])[0] == len(content) - 8
    else:
        assert struct.unpack("<Q", content[20:28])[0] == len(content) - 8


def test_a_chunk_that_ends_nowhere_is_left_out(tmp_path: Path) -> None:
    source = tmp_path / "a.wav"
    source.write_bytes(wave((b"data", SAMPLES), (b"bext", b"short"), sizes={b"bext": 10**9}))
    assert copied(source, tmp_path / "b.wav") == []
    assert soundfile.info(tmp_path / "b.wav").frames == len(SAMPLES) // 2


@pytest.mark.parametrize("subtype", ["IMA_ADPCM", "MS_ADPCM", "GSM610"])
def test_codecs_of_blocks_keep_the_length(tmp_path: Path, subtype: str) -> None:
    soundfile.write(tmp_path / "a.wav", tone()[0], 8000, subtype)
    frames = soundfile.info(tmp_path / "a.wav").frames
    assert "PCM_16 instead" in copied(tmp_path / "a.wav", tmp_path / "b.wav")[0]
    info = soundfile.info(tmp_path / "b.wav")
    assert (info.frames, info.subtype) == (frames, "PCM_16")


# -- what is told ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "subtype", "told"),
    [(".flac", "PCM_24", True), (".wav", "PCM_16", True), (".wav", "FLOAT", False), (".mp3", "MPEG_LAYER_III", False)],
)
def test_clipping_is_told(tmp_path: Path, suffix: str, subtype: str, told: bool) -> None:
    x = tone()
    x[0, 100:107] = 1.5
    x[0, 200] = -1.01
    x[0, 300] = 1.0  # full scale itself is not above it
    notices: list[str] = []
    with written_audio(tmp_path / f"a{suffix}", Layout(RATE, 1, 100, "?", subtype, {}), notices.append) as out:
        out(x)
    assert [n for n in notices if "clipped" in n] == (
        [f"{tmp_path}/a{suffix}: 8 samples are above full scale and were clipped; a .wav of FLOAT would keep them"]
        if told
        else []
    )


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"<!DOCTYPE html><html><body>404</body></html>" * 20, "a web page"),
        (b"\xef\xbb\xbf<html>" + b" " * 3000, "a web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "a web page"),
        (b'{"error": "rate limit"}' * 10, "text"),
        (b"#EXTM3U\n#EXTINF:10,\n/etc/passwd\n", "text"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "text"),
        (b"\xff\xfb\x90\x00" + np.random.default_rng(0).bytes(20_000), ""),
        (b"ID3\x03\0\0\0\0\0\x7f" + b"hello " * 3000, ""),
        (b"\0" * 5000, ""),
        (b"PK\x03\x04" + b"\0" * 500, ""),
    ],
    ids=["html", "html with a mark", "xml", "json", "playlist", "concat", "mp3 header", "id3", "zeros", "zip"],
)
@pytest.mark.parametrize("name", ["a.mp3", "a.wav", "a.m4a"])
def test_no_audio_is_one_line_and_no_noise_of_decoders(
    tmp_path: Path, content: bytes, told: str, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UdseError, match="expected audio") as error:
        read_audio(tmp_path / name)
    assert told in str(error.value)
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_readers_leave_no_file_open(tmp_path: Path) -> None:
    (tmp_path / "bad.wav").write_bytes(b"RIFF\0\0\0\0WAVE" + b"\0" * 100)
    good = encoded(tmp_path / "a.m4a", "ipod", "aac", tone())
    soundfile.write(tmp_path / "a.flac", tone()[0], RATE)

    def use() -> None:
        read_audio(good), read_audio(tmp_path / "a.flac")
        with pytest.raises(UdseError):
            read_audio(tmp_path / "bad.wav")

    use()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        use()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("share", [0.2, 0.6, 0.97])
@pytest.mark.parametrize(
    "make",
    [
        lambda p: encoded(p, "ipod", "aac", tone(4), options={"movflags": "faststart"}),
        lambda p: encoded(p, "matroska", "aac", tone(4)),
        lambda p: encoded(p, "mp3", "libmp3lame", tone(4)),
        lambda p: encoded(p, "asf", "wmav2", tone(4)),
    ],
    ids=["m4a", "mka", "mp3", "wma"],
)
def test_cut_files_give_what_is_there(tmp_path: Path, make: Callable[[Path], Path], share: float) -> None:
    whole = make(tmp_path / "whole").read_bytes()
    (tmp_path / "cut").write_bytes(whole[: int(share * len(whole))])
    try:
        samples, _ = read_audio(tmp_path / "cut")
    except UdseError:
        assert share < 0.5  # so little that nothing can be decoded
        return
    assert 0.3 * share * 4 * RATE < len(samples) <= 4 * RATE + 4096

"""Pipes: standard input and output, process substitution, named pipes; what a raw stream is and what it is not."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import time
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

import udse_fast.audio.inputs
import udse_fast.audio.outputs
from udse_fast.audio.pcm import FORMATS, header_of
from udse_fast.cli import main

RATE = 16000
CASES = Path(__file__).parent / "data" / "cases"
COMMAND = [sys.executable, "-m", "udse_fast"]
TEXT = " ".join(COMMAND)


@pytest.fixture(autouse=True)
def _in_an_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(udse_fast.audio.inputs, "WRITER_SECONDS", 0.3)
    monkeypatch.setattr(udse_fast.audio.outputs, "READER_SECONDS", 0.3)


def noise(length: int = 6000) -> NDArray[np.float64]:
    return 0.05 * np.random.default_rng(0).standard_normal(length)


def shell(script: str, **options: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["bash", "-c", script], capture_output=True, check=False, timeout=120, **options)  # type: ignore[call-overload, no-any-return]


@pytest.fixture
def expected(fast: list[str]) -> NDArray[np.int16]:
    soundfile.write("in.wav", noise(), RATE)
    assert main(["enhance", "in.wav", "-o", "expected.wav", *fast]) == 0
    samples: NDArray[np.int16] = soundfile.read("expected.wav", dtype="int16")[0]
    return samples


@pytest.mark.parametrize(
    "script",
    [
        "cat in.wav | {enhance} - -o - > out.wav",
        "{enhance} - -o - < in.wav > out.wav",
        "cat in.wav | {enhance} /dev/stdin -o out.wav",
        "{enhance} /dev/stdin -o /dev/stdout < in.wav | cat > out.wav",
        "{enhance} <(cat in.wav) -o out.wav",
        "{enhance} in.wav -o - | cat > out.wav",
        "{enhance} in.wav -o >(cat > out.wav); sleep 0.3",
        "mkfifo pipe; cat in.wav > pipe & {enhance} pipe -o out.wav",
        "mkfifo pipe; cat pipe > out.wav & {enhance} in.wav -o pipe; wait",
        "(head -c 1000 in.wav; sleep 1; tail -c +1001 in.wav) | {enhance} - -o out.wav",
        "mkdir there; cat in.wav | {enhance} - -o there/ && mv there/stdin.wav out.wav",
    ],
)
def test_every_kind_of_pipe(script: str, fast: list[str], expected: NDArray[np.int16]) -> None:
    done = shell(script.format(enhance=f"{TEXT} enhance {' '.join(fast)}").replace("enhance --", "enhance --"))
    assert done.returncode == 0, done.stderr
    assert b"error" not in done.stderr
    np.testing.assert_array_equal(soundfile.read("out.wav", dtype="int16")[0], expected)


@pytest.mark.parametrize("container", ["FLAC", "OGG", "MP3", "AIFF"])
def test_the_container_of_a_pipe_stays(container: str, fast: list[str]) -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, noise(), RATE, format=container)
    done = subprocess.run([*COMMAND, "enhance", "-", "-o", "-", *fast], input=buffer.getvalue(), capture_output=True,
                          check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    info = soundfile.info(io.BytesIO(done.stdout))
    assert (info.format, info.frames, info.samplerate) == (container, 6000, RATE)
    assert b"/dev/stdin -> /dev/stdout" in done.stderr  # not among the samples


def test_an_m4a_through_pipes(fast: list[str]) -> None:
    memo = (CASES / "phone_memo_aac.m4a").read_bytes()
    done = subprocess.run([*COMMAND, "enhance", "-", "-o", "out.wav", *fast], input=memo, capture_output=True,
                          check=False)  # fmt: skip
    assert (done.returncode, soundfile.info("out.wav").frames) == (0, 48000), done.stderr


def test_one_of_several_is_a_pipe(fast: list[str], expected: NDArray[np.int16]) -> None:
    for jobs in ("1", "2"):
        done = shell(f"cat in.wav | {TEXT} enhance in.wav - {' '.join(fast)} -o out{jobs} --jobs {jobs}")
        assert done.returncode == 0, done.stderr
        assert sorted(os.listdir(f"out{jobs}")) == ["in.wav", "stdin.wav"]
        np.testing.assert_array_equal(soundfile.read(f"out{jobs}/stdin.wav", dtype="int16")[0], expected)


@pytest.mark.parametrize("content", [b"", b"no audio", b"\0" * 200_000], ids=["nothing", "text", "zeros"])
def test_a_writer_is_never_killed(content: bytes, fast: list[str]) -> None:
    """It writes all it has, although none of it is audio."""
    Path("content").write_bytes(content)
    done = shell(f"cat content | {TEXT} enhance - -o out.wav {' '.join(fast)}; echo ${{PIPESTATUS[*]}}")
    assert done.stdout == b"0 2\n"
    assert len(done.stderr.splitlines()) == 1
    assert os.listdir() == ["content"]


def test_a_pipe_without_a_writer_is_told_soon(fast: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo("pipe")
    assert main(["enhance", "pipe", "-o", "out.wav", *fast]) == 2
    assert "somebody writes to" in capsys.readouterr().err
    soundfile.write("in.wav", noise(), RATE)
    assert main(["enhance", "in.wav", "-o", "pipe", *fast]) == 2
    assert "somebody reads" in capsys.readouterr().err


def test_a_slow_writer_is_waited_for(fast: list[str], expected: NDArray[np.int16]) -> None:
    os.mkfifo("pipe")
    content = Path("in.wav").read_bytes()

    def write() -> None:
        with open("pipe", "wb", buffering=0) as pipe:
            for part in (content[:100], content[100:]):
                time.sleep(0.6)  # longer than a pipe without a writer is waited for
                pipe.write(part)

    writer = threading.Thread(target=write)
    writer.start()
    status = main(["enhance", "pipe", "-o", "out.wav", *fast])
    writer.join()
    assert status == 0
    np.testing.assert_array_equal(soundfile.read("out.wav", dtype="int16")[0], expected)


def test_a_closed_reader_is_no_error(fast: list[str]) -> None:
    soundfile.write("in.wav", noise(200_000), RATE)
    done = shell(f"{TEXT} enhance in.wav -o - {' '.join(fast)} | head -c 100 | wc -c; echo ${{PIPESTATUS[0]}}")
    assert done.stdout.split() == [b"100", b"141"]
    assert b"Traceback" not in done.stderr


def test_closed_standard_streams(fast: list[str]) -> None:
    soundfile.write("in.wav", noise(), RATE)
    options = " ".join(fast)
    assert shell(f"{TEXT} enhance - -o out.wav {options} <&-").returncode == 2
    assert shell(f"{TEXT} enhance in.wav -o - {options} >&-").returncode == 2
    assert shell(f"{TEXT} enhance in.wav -o out.wav {options} >&- 2>&-").returncode == 0
    assert soundfile.info("out.wav").frames == 6000


# -- raw streams ------------------------------------------------------------------------------------------------


Stream = Callable[..., tuple[int, bytes, str]]


@pytest.fixture
def stream(fast: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Stream:
    """`udse-fast stream` in this process: exit status, output, what it says."""

    def run(data: bytes, *arguments: str) -> tuple[int, bytes, str]:
        Path("in.raw").write_bytes(data)
        blocks = ["--block-seconds", "0.5", "--overlap-seconds", "0.1", "--quiet"]
        with open("in.raw", "rb") as source, open("out.raw", "wb") as target, monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", source)
            patch.setattr(sys, "stdout", target)
            status = main(["stream", *blocks, *fast, *arguments])
        return status, Path("out.raw").read_bytes(), capsys.readouterr().err

    return run


@pytest.mark.parametrize("format_name", FORMATS)
def test_samples_of_every_format_come_back(format_name: str) -> None:
    """All values there are (or many), twice through: what is decoded is what was encoded."""
    pcm = FORMATS[format_name]
    data = np.random.default_rng(0).bytes(65536 * pcm.width)
    if format_name in ("f32le", "f64le"):
        data = np.random.default_rng(0).standard_normal(1000).astype(f"<f{pcm.width}").tobytes()
    samples = pcm.decode(data)
    assert len(samples) == len(data) // pcm.width
    again = pcm.encode(samples)
    if format_name == "mulaw":  # which has two zeros
        np.testing.assert_array_equal(pcm.decode(again), samples)
    else:
        assert again == data


@pytest.mark.parametrize("format_name", ["mulaw", "alaw"])
def test_companding_is_that_of_libsndfile(format_name: str) -> None:
    subtype = {"mulaw": "ULAW", "alaw": "ALAW"}[format_name]
    x = np.concatenate([np.arange(-32768, 32768), [0, 1, -1]]).astype(np.int16)
    ours = FORMATS[format_name].decode(FORMATS[format_name].encode(x)).astype(int)
    soundfile.write("x.raw", x, 8000, subtype, format="RAW")
    coded = Path("x.raw").read_bytes()
    theirs = soundfile.read("x.raw", channels=1, samplerate=8000, subtype=subtype, format="RAW", dtype="int16")[0]
    np.testing.assert_array_equal(FORMATS[format_name].decode(coded), theirs)  # the tables
    assert np.all(np.abs(ours - x) <= np.abs(theirs.astype(int) - x))  # nothing is nearer than ours


@pytest.mark.parametrize("format_name", FORMATS)
def test_stream_in_every_format_has_its_length(format_name: str, stream: Stream) -> None:
    pcm = FORMATS[format_name]
    x = noise(8000)
    raw = {"u8": 128 + 127 * x, "f32le": x, "f64le": x}.get(format_name)
    if raw is None:
        raw = x * (2**31 - 256 if format_name in ("s24le", "s32le") else 32767)
    dtype = {"u8": np.uint8, "f32le": "f4", "f64le": "f8"}.get(format_name, np.int16)
    data = pcm.encode(raw.astype(np.int32 if format_name in ("s24le", "s32le") else dtype))
    status, out, said = stream(data, "--format", format_name, "--strength", "0")  # nothing is taken away
    assert said == "" or "deprecated" in said
    assert (status, len(out)) == (0, len(data))
    error = pcm.decode(out).astype(np.float64) - pcm.decode(data)
    full_scale = {"u8": 128, "f32le": 1, "f64le": 1, "s24le": 2**31, "s32le": 2**31}.get(format_name, 2**15)
    assert np.abs(error).max() <= full_scale * (0.02 if format_name in ("u8", "mulaw", "alaw") else 1e-4)


def header(kind: str) -> bytes:
    buffer = io.BytesIO()
    if kind == "MP3 without a tag":
        soundfile.write(buffer, noise(48000), RATE, format="MP3")
        return buffer.getvalue()
    if kind == "ID3":
        return (CASES / "speech_noise_16k_mono.mp3").read_bytes()
    if kind == "MP4":
        return (CASES / "phone_memo_aac.m4a").read_bytes()
    soundfile.write(buffer, noise(), RATE, format=kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("WAV", "a RIFF header (WAV); give --format wav"),
        ("RF64", "a RIFF header"),
        ("FLAC", "a FLAC header"),
        ("OGG", "an Ogg header"),
        ("AIFF", "an AIFF header"),
        ("ID3", "an MP3"),
        ("MP3 without a tag", "an MP3 header"),
        ("MP4", "an MP4 header"),
    ],
)
def test_files_are_no_raw_samples(kind: str, told: str, stream: Stream) -> None:
    status, out, said = stream(header(kind))
    assert (status, out) == (2, b"")
    assert told in said
    assert len(said.splitlines()) == 1


def test_noise_is_never_taken_for_a_file() -> None:
    rng = np.random.default_rng(0)
    for _ in range(2000):
        assert header_of(b"\xff" + rng.bytes(1499)) is None
    for start in (b"", b"R", b"RIFF", b"RIFF\0\0\0\0AVI ", b"\xff\xfb", b"FORM\0\0\0\0ILBM", b"\0" * 12):
        assert header_of(start) is None


@pytest.mark.parametrize(
    ("subtype", "kind", "channels"),
    [("PCM_16", "WAV", 1), ("PCM_24", "WAVEX", 2), ("PCM_U8", "WAV", 1), ("FLOAT", "WAV", 2), ("DOUBLE", "WAV", 1),
     ("ULAW", "WAV", 1), ("ALAW", "WAV", 1), ("PCM_32", "WAV", 3), ("PCM_16", "RF64", 1)],
)  # fmt: skip
def test_wav_streams(subtype: str, kind: str, channels: int, stream: Stream) -> None:
    """Rate, channels and format of the header; the same header comes out, and what is behind the samples."""
    buffer = io.BytesIO()
    soundfile.write(buffer, noise(8000 * channels).reshape(-1, channels), 22050, subtype, format=kind)
    data = buffer.getvalue() + b"LIST\4\0\0\0INFO"
    status, out, said = stream(data, "--format", "wav", "--rate", "8000")
    assert (status, said) == (0, "")
    assert len(out) == len(data)
    assert out[:44] == data[:44]
    assert out.endswith(b"LIST\4\0\0\0INFO")
    info = soundfile.info(io.BytesIO(out))
    assert (info.samplerate, info.channels, info.frames, info.subtype) == (22050, channels, 8000, subtype)
    assert out != data


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF])
def test_wav_streams_of_unknown_length(size: int, stream: Stream) -> None:
    samples = (noise(8000) * 32767).astype("<i2").tobytes()
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(RATE)
        file.writeframes(b"")
    head = buffer.getvalue()[:40] + size.to_bytes(4, "little")
    status, out, said = stream(head + samples, "--format", "wav")
    assert (status, len(out), said) == (0, 44 + 16000, "")


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "expected a RIFF header on stdin, got none"),
        (b"\0" * 5000, "expected a RIFF header"),
        (header("FLAC"), "got a FLAC header"),
        (b"RIFF\0\0\0\0WAVE", "the end of stdin"),
        (b"RIFF\0\0\0\0WAVEdata\4\0\0\0abcd", "got none"),
        (b"RIFF\0\0\0\0WAVEfmt \xff\xff\xff\xff" + b"x" * 5000, "a small header"),
        ((CASES / "ima_adpcm_48984_samples.wav").read_bytes(), "format 17 of 4 bits"),
    ],
    ids=["nothing", "zeros", "flac", "end", "no fmt", "large", "adpcm"],
)
def test_wav_streams_that_are_none(data: bytes, told: str, stream: Stream) -> None:
    status, out, said = stream(data, "--format", "wav")
    assert (status, out) == (2, b"")
    assert told in said
    assert len(said.splitlines()) == 1

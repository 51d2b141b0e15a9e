"""`udse-fast`: what it writes, what it says, and its exit status."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray

import udse_fast
from udse_fast import Enhancer
from udse_fast.cli import COMMANDS, main
from udse_fast.commands.live import Bridge
from udse_fast.errors import UdseError
from udse_fast.plots import RunningSpectrogram

RATE = 16000
FAST = ["--steps", "2", "--samples", "1", "--precision", "float32"]
COMMAND = [sys.executable, "-m", "udse_fast"]


@pytest.fixture
def fast(tiny_checkpoint: Path) -> list[str]:
    return [*FAST, "--checkpoint", str(tiny_checkpoint)]


@pytest.fixture(autouse=True)
def _in_an_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def noise(length: int = 4_000, channels: int = 1) -> NDArray[np.float64]:
    return np.random.default_rng(0).standard_normal((length, channels)) * 0.05


def sound(name: str, x: NDArray[Any] | None = None, rate: int = RATE, **layout: Any) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, noise() if x is None else x, rate, **layout)
    return path


def enhance(*arguments: object) -> int:
    return main(["enhance", *map(str, arguments)])


def complaint(capsys: pytest.CaptureFixture[str], status: int) -> str:
    """The one line on stderr of a run that failed."""
    assert status == 2
    out, err = capsys.readouterr()
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("udse-fast: error: ")
    assert "Traceback" not in err + out
    return lines[0]


def no_leftovers(*expected: str) -> None:
    assert sorted(path.name for path in Path().iterdir()) == sorted(expected)


# -- the command itself ------------------------------------------------------------------------------------


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    check = (
        "import sys; from udse_fast.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert not {'torch', 'numpy', 'soundfile'} & set(sys.modules), 'heavy'"
    )
    for arguments in (["--help"], *([name, "--help"] for name in ("enhance", "stream", "live", "export"))):
        done = subprocess.run([sys.executable, "-c", check, *arguments], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        assert "usage: udse-fast" in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert command in capsys.readouterr().out


def test_help_names_every_sampler_of_recordings(capsys: pytest.CaptureFixture[str]) -> None:
    """The help is written by hand, so that it comes without importing torch."""
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    words = set(re.split(r"[^a-z_]+", capsys.readouterr().out))
    assert {*udse_fast.sampler_names()} - {"prior"} <= words


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"udse-fast {importlib.metadata.version('udse-fast')}\n"


@pytest.mark.parametrize(
    "arguments",
    [[], ["enhanced"], ["enhance"], ["enhance", "-o", "a.wav"], ["enhance", "a.wav"], ["train"], ["--loud"],
     ["enhance", "--example", "a.wav", "-o", "b.wav"], ["enhance", "--example", "-o", "b.wav", "--seed", "x"],
     ["stream", "--format", "mp3"], ["export"]],
)  # fmt: skip
def test_wrong_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    complaint(capsys, main(arguments))


# -- enhance -----------------------------------------------------------------------------------------------


def test_the_example(fast: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert enhance("--example", "-o", "out.wav", *fast) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "noisy.flac -> out.wav: 4.21 s in " in out
    info = soundfile.info("out.wav")
    assert (info.samplerate, info.channels, info.frames, info.subtype) == (RATE, 1, 67360, "PCM_16")
    no_leftovers("out.wav")


def test_the_file_is_what_the_enhancer_says(tiny_checkpoint: Path, fast: list[str]) -> None:
    x = noise(70_000, 2).astype(np.float32)  # more than one block and one chunk
    sound("in.wav", x, 44100, subtype="FLOAT")
    more = ["--set", "block_seconds=0.6", "--set", "overlap_seconds=.2", "--seed", "3"]
    assert enhance("in.wav", "-o", "out.wav", "--noise-out", "noise.flac", *fast, *more) == 0
    enhancer = Enhancer(
        tiny_checkpoint,
        steps=2,
        samples=1,
        precision="float32",
        seed=3,
        block_seconds=0.6,
        overlap_seconds=0.2,
    )
    speech, rest = enhancer.separate(np.ascontiguousarray(x.T), 44100)
    np.testing.assert_array_equal(soundfile.read("out.wav", dtype="float32")[0], speech.T)
    np.testing.assert_allclose(soundfile.read("noise.flac")[0], rest.T.clip(-1, 1), atol=1e-6)
    assert soundfile.info("noise.flac").subtype == "PCM_24"


def test_a_file_is_a_whole_signal_whatever_the_prior_streams_like(tiny_checkpoints: dict[str, Path]) -> None:
    """Of a causal prior, streams are causal; files are not."""
    x = noise(50_000)[:, 0].astype(np.float32)
    sound("in.wav", x, RATE, subtype="FLOAT")
    causal = str(tiny_checkpoints["causal"])
    options = ["--checkpoint", causal, "--steps", "2", "--samples", "1", "--readout", "wiener"]
    assert enhance("in.wav", "-o", "out.wav", *options) == 0
    enhancer = Enhancer(causal, steps=2, samples=1, readout="wiener")
    written = soundfile.read("out.wav", dtype="float32")[0]
    np.testing.assert_array_equal(written, enhancer.enhance(x, RATE))
    causal_result = enhancer.enhance(x, RATE, causal=True)
    assert not np.array_equal(written, causal_result)
    assert enhance("in.wav", "-o", "causal.wav", "--causal", *options) == 0
    np.testing.assert_array_equal(soundfile.read("causal.wav", dtype="float32")[0], causal_result)


@pytest.mark.parametrize(
    ("rate", "channels", "layout"),
    [
        (8000, 1, {"subtype": "PCM_U8"}),
        (11025, 2, {"subtype": "PCM_24"}),
        (44100, 1, {"subtype": "PCM_32"}),
        (48000, 3, {"subtype": "DOUBLE"}),
        (192000, 1, {"subtype": "PCM_24", "format": "WAVEX"}),
    ],
)
def test_layout_is_kept(rate: int, channels: int, layout: dict[str, str], fast: list[str]) -> None:
    sound("in.wav", noise(rate // 4, channels), rate, **layout)
    assert enhance("in.wav", "-o", "out.wav", *fast) == 0
    a, b = soundfile.info("in.wav"), soundfile.info("out.wav")
    for name in ("samplerate", "channels", "frames", "format", "subtype"):
        assert getattr(a, name) == getattr(b, name)


def test_what_a_container_cannot_hold_is_told(fast: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    sound("in.wav", 1e-3 * noise(), subtype="DOUBLE")
    assert enhance("in.wav", "-o", "out.flac", *fast) == 0
    assert capsys.readouterr().err == "udse-fast: out.flac: FLAC does not hold DOUBLE, PCM_24 instead\n"


def test_folders(fast: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    sound("in/a.wav")
    sound("in/b/a.flac")
    Path("in/notes.txt").write_text("no audio")
    for _ in range(2):  # the second time there are results below the input folder
        assert enhance("in", "-o", "in/out", "--noise-out", "rest", "--plot", "pictures", *fast) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 3
        assert lines[-1].startswith("2 of 2 files, 0.50 s in ")
    found = sorted(str(path) for path in Path().rglob("*") if path.is_file())
    assert found == ["in/a.wav", "in/b/a.flac", "in/notes.txt", "in/out/a.wav", "in/out/b/a.flac",
        "pictures/a.png", "pictures/b/a.png", "rest/a.wav", "rest/b/a.flac"]  # fmt: skip


def test_several_files_into_a_folder(fast: list[str]) -> None:
    sound("a.wav"), sound("b.flac")
    assert enhance("a.wav", "b.flac", "-o", "out", *fast) == 0
    Path("single").mkdir()
    assert enhance("a.wav", "-o", "single", *fast) == 0
    assert Path("out/b.flac").is_file()
    assert Path("single/a.wav").read_bytes() == Path("out/a.wav").read_bytes()


def test_a_bad_file_does_not_stop_the_others(fast: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    sound("in/a.wav")
    Path("in/b.wav").write_text("no audio")
    sound("in/c.wav")
    assert "in/b.wav" in complaint(capsys, enhance("in", "-o", "out", *fast))
    assert sorted(path.name for path in Path("out").iterdir()) == ["a.wav", "c.wav"]


def test_plot(fast: list[str]) -> None:
    sound("in.wav", subtype="FLOAT")
    assert enhance("in.wav", "-o", "out.wav", "--plot", "out.png", *fast) == 0
    assert Path("out.png").read_bytes().startswith(b"\x89PNG")
    no_leftovers("in.wav", "out.png", "out.wav")


def test_pictures_of_recordings_of_one_name(fast: list[str]) -> None:
    sound("in/a.wav")
    sound("in/a.flac", subtype="PCM_16")
    sound("in/b.wav")
    assert enhance("in", "-o", "out", "--plot", "pictures", *fast) == 0
    assert sorted(path.name for path in Path("pictures").iterdir()) == ["a.flac.png", "a.wav.png", "b.png"]


def test_too_little_memory_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("udse_fast.commands.enhance.run", lambda arguments: torch.empty(1 << 60))
    assert "out of memory; a smaller --samples" in complaint(capsys, enhance("a.wav", "-o", "b.wav"))


def test_progress_shows_the_real_time_factor(fast: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    sound("in.wav")
    assert enhance("in.wav", "-o", "out.wav", "--progress", *fast) == 0
    assert "RTF" in capsys.readouterr().err
    assert enhance("in.wav", "-o", "out.wav", *fast) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("dead", [0, 1])
def test_a_dead_channel(dead: int, fast: list[str]) -> None:
    x = noise(4_000, 2)
    x[:, dead] = 0
    sound("in.wav", x, 44100)
    assert enhance("in.wav", "-o", "out.wav", *fast) == 0
    y, _ = soundfile.read("out.wav")
    assert not y[:, dead].any()
    assert y[:, 1 - dead].any()


@pytest.mark.parametrize(
    "x",
    [np.zeros(4_000), np.zeros(1), np.ones(1) * 0.5, np.sign(noise()) * 0.999, np.ones(4_000) * 0.3],
    ids=["silence", "one silent sample", "one sample", "clipped", "constant"],
)
@pytest.mark.parametrize("rate", [16000, 44100])
def test_odd_signals(x: NDArray[np.float64], rate: int, fast: list[str]) -> None:
    sound("in.wav", x, rate)
    assert enhance("in.wav", "-o", "out.wav", *fast) == 0
    y, _ = soundfile.read("out.wav")
    assert len(y) == len(x)
    assert y.any() or not x.any() or len(x) == 1


def test_a_file_cut_in_the_middle_of_its_codec_leaves_no_half_result(
    fast: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    x = noise(3 * RATE)
    sound("whole.flac", x)
    whole = Path("whole.flac").read_bytes()
    Path("in.flac").write_bytes(whole[: len(whole) // 2])
    assert "in.flac: expected audio, got damaged data after " in complaint(
        capsys, enhance("in.flac", "-o", "out.flac", *fast)
    )
    no_leftovers("in.flac", "whole.flac")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["no.wav", "-o", "out.wav"], "no.wav: expected a recording or a folder"),
        (["empty.wav", "-o", "out.wav"], "empty file"),
        (["headeronly.wav", "-o", "out.wav"], "without samples"),
        (["text.wav", "-o", "out.wav"], "got something else"),
        (["nan.wav", "-o", "out.wav"], "got nan at 0.125 s in channel 1"),
        (["inf.wav", "-o", "out.wav"], "got -inf"),
        (
            ["slow.wav", "-o", "out.wav"],
            "slow.wav: sample_rate: expected a whole number of Hz from 8000 to 1000000, got 7999",
        ),
        (["a.wav", "-o", "a.wav"], "a name of its own"),
        (["a.wav", "-o", "link.wav"], "a name of its own"),
        (["a.wav", "-o", "."], "a name of its own"),
        (["a.wav", "-o", "out.wav", "--noise-out", "out.wav"], "a name of its own"),
        (["a.wav", "-o", "out.wav", "--noise-out", "a.wav"], "a name of its own"),
        (["a.wav", "folder/a.wav", "-o", "out"], "a name of its own"),
        (["folder", "-o", "folder"], "a name of its own"),
        (["a.wav", "folder/a.wav", "-o", "text.wav"], "expected a folder for several inputs"),
        (["none", "-o", "out"], "found none"),
        (["a.wav", "-o", "out.xyz"], "an output name that ends in"),
        (["a.wav", "-o", "no/out.wav"], "cannot write no/out.wav: there is no folder no; make it first"),
        (["a.wav", "-o", "/proc/out.wav"], "cannot write /proc/out.wav"),
        (["a.wav", "-o", ""], "got an empty one"),
        (["a.wav", "-o", "out.wav", "--plot", "a.jpg"], "ends in .png"),
        (["fast.wav", "-o", "out.mp3"], "use another extension"),
        (["a.wav", "-o", "out.wav", "--sampler", "wiener"], "expected one of udiffse"),
        (["a.wav", "-o", "out.wav", "--sampler", "paradiffuse_en"], "joint"),
        (["a.wav", "-o", "out.wav", "--steps", "0"], "steps: expected"),
        (["a.wav", "-o", "out.wav", "--threads", "0"], "--threads"),
        (["a.wav", "-o", "out.wav", "--device", "tpu"], "expected a device"),
        (["a.wav", "-o", "out.wav", "--set", "rank"], "NAME=VALUE"),
        (["a.wav", "-o", "out.wav", "--set", "steps=4"], "an option of its own"),
        (["a.wav", "-o", "out.wav", "--set", "colour=blue"], "unknown setting colour"),
        (["a.wav", "-o", "out.wav", "--set", "forgetting_seconds=soon"], "forgetting_seconds: expected a number"),
        (
            ["a.wav", "-o", "out.wav", "--set", "start_share=nan"],
            "start_share: expected a number above 0 and up to 1e+06, got nan",
        ),
        (["a.wav", "-o", "out.wav", "--checkpoint", "no.ckpt"], "expected a checkpoint file"),
        (["a.wav", "-o", "out.wav", "--checkpoint", "text.wav"], "a file of another kind"),
        (["a.wav", "-o", "out.wav", "--checkpoint", "empty.wav"], "an empty file"),
        (["a.wav", "-o", "out.wav", "--checkpoint", "cut.safetensors"], "damaged"),
    ],
)
def test_complaints(
    arguments: list[str],
    expected: str,
    fast: list[str],
    tiny_checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sound("a.wav"), sound("folder/a.wav"), sound("slow.wav", rate=7999), sound("fast.wav", rate=192_000)
    Path("link.wav").symlink_to("a.wav")
    Path("none").mkdir()
    Path("empty.wav").touch()
    sound("headeronly.wav", np.zeros(0))
    Path("text.wav").write_text("To be, or not to be")
    for name, value in (("nan", np.nan), ("inf", -np.inf)):
        x = noise()
        x[2_000] = value
        sound(f"{name}.wav", x, subtype="FLOAT")
    weights = tiny_checkpoint.read_bytes()
    Path("cut.safetensors").write_bytes(weights[: len(weights) // 2])
    before = sorted(Path().rglob("*"))
    original = Path("a.wav").read_bytes()
    assert expected in complaint(capsys, enhance(*fast, *arguments))
    assert Path("a.wav").read_bytes() == original
    after = [path for path in Path().rglob("*") if path not in before]
    assert after in ([], [Path("out")])


@pytest.mark.needs("ordinary user")  # root writes everywhere
def test_an_unwritable_folder(fast: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    sound("a.wav")
    Path("closed").mkdir(mode=0o500)
    assert "Permission denied" in complaint(capsys, enhance("a.wav", "-o", "closed/a.wav", *fast))


def test_a_full_disk(fast: list[str]) -> None:
    sound("a.wav", noise(40_000))
    done = subprocess.run(
        [*COMMAND, "enhance", "a.wav", "-o", "out.wav", *fast], capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("udse-fast: error: ")
    assert len(done.stderr.splitlines()) == 1
    no_leftovers("a.wav")


def heed_interrupts() -> None:
    """A test run in the background of a shell ignores SIGINT, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interruption_leaves_nothing(number: signal.Signals, status: int, fast: list[str]) -> None:
    sound("a.wav", noise(160_000))
    run = subprocess.Popen(
        [*COMMAND, "enhance", "a.wav", "-o", "out.wav", *fast, "--steps", "10000"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts,
    )  # fmt: skip
    give_up = time.monotonic() + 60
    while len(list(Path().iterdir())) < 2:  # the temporary file is there
        assert time.monotonic() < give_up
        time.sleep(0.05)
    run.send_signal(number)
    out, err = run.communicate(timeout=30)
    assert (run.returncode, out, err) == (status, "", "")
    no_leftovers("a.wav")


# -- stream ------------------------------------------------------------------------------------------------

BLOCKS = ["--block-seconds", "0.5", "--overlap-seconds", "0.1"]


def stream(data: bytes, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*COMMAND, "stream", *BLOCKS, *arguments], input=data, capture_output=True, check=False)


def test_stream_is_what_the_enhancer_says(tiny_checkpoint: Path, fast: list[str]) -> None:
    x = (noise(30_000, 2) * 32767).astype("<i2")
    done = stream(x.tobytes() + b"\x01\x02\x03", "--rate", "44100", "--channels", "2", *fast)
    assert done.returncode == 0
    enhancer = Enhancer(
        tiny_checkpoint, steps=2, samples=1, precision="float32", block_seconds=0.5, overlap_seconds=0.1
    )
    expected = enhancer.enhance(np.ascontiguousarray(x.T), 44100).T
    np.testing.assert_array_equal(np.frombuffer(done.stdout, "<i2").reshape(-1, 2), expected)
    messages = done.stderr.decode().splitlines()
    assert "latency 0.5" in messages[0]
    assert "3 bytes at the end" in messages[1]
    assert "real-time factor" in messages[2]


def stream_here(monkeypatch: pytest.MonkeyPatch, data: bytes, *arguments: str) -> tuple[int, bytes]:
    """The same in this process, through files: its exit status and output."""
    Path("in.raw").write_bytes(data)
    with open("in.raw", "rb") as source, open("out.raw", "wb") as target, monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", source)
        patch.setattr(sys, "stdout", target)
        status = main(["stream", *BLOCKS, *arguments])
    return status, Path("out.raw").read_bytes()


def test_stream_of_floats_and_of_nothing(fast: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    x = noise(9_000)[:, 0].astype("<f4")
    status, out = stream_here(monkeypatch, x.tobytes(), "--format", "f32le", "--quiet", *fast)
    assert status == 0
    assert len(out) == x.nbytes
    assert stream_here(monkeypatch, b"", *fast) == (0, b"")


def test_stream_lets_out_what_is_ready(fast: list[str]) -> None:
    run = subprocess.Popen(
        [*COMMAND, "stream", *BLOCKS, *fast],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=heed_interrupts,
    )
    assert run.stdin is not None
    assert run.stdout is not None
    run.stdin.write((noise(16_000) * 32767).astype("<i2").tobytes())
    run.stdin.flush()
    assert len(run.stdout.read(2_000)) == 2_000  # while stdin stays open
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=30)
    assert run.returncode == 130
    assert b"Traceback" not in err


def test_stream_ends_when_nobody_listens(fast: list[str]) -> None:
    sound("in.wav", noise(200_000))
    Path("in.raw").write_bytes((noise(200_000) * 32767).astype("<i2").tobytes())
    command = " ".join([*COMMAND, "stream", *BLOCKS, *fast, "--quiet"])
    done = subprocess.run(
        ["bash", "-c", f"{command} < in.raw | head -c 1000 | wc -c; echo ${{PIPESTATUS[0]}}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.stdout.split(), done.stderr) == (["1000", "141"], "")


def test_stream_in_a_pipeline(fast: list[str]) -> None:
    sound("in.wav", noise(20_000))
    ours = " ".join([*COMMAND, "stream", "--quiet", *BLOCKS, *fast])
    ffmpeg, raw = imageio_ffmpeg.get_ffmpeg_exe(), "-f s16le -ar 16000 -ac 1"
    pipeline = f"{ffmpeg} -v error -i in.wav {raw} - | {ours} | {ffmpeg} -v error {raw} -i - out.wav"
    subprocess.run(["bash", "-o", "pipefail", "-c", pipeline], check=True)
    assert soundfile.info("out.wav").frames == 20_000


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--rate", "4000"], "sample_rate"),
        (["--channels", "0"], "channels"),
        (["--block-seconds", "0.1"], "block_seconds"),
        (["--sampler", "none"], "sampler"),
    ],
)
def test_stream_complaints(
    arguments: list[str],
    expected: str,
    fast: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    status, out = stream_here(monkeypatch, b"\0" * 100, *fast, *arguments)
    assert expected in complaint(capsys, status)
    assert out == b""


def test_stream_on_a_terminal(
    fast: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "isatty", lambda _: True)
    assert "got a terminal" in complaint(capsys, stream_here(monkeypatch, b"", *fast)[0])


# -- live --------------------------------------------------------------------------------------------------


class Delay:
    """A stream that returns what it got, `latency` samples later, in bursts."""

    sample_rate, channels, real_time_factor, latency_seconds = RATE, 2, 0.25, 0.1

    def __init__(self, burst: int = 1600) -> None:
        self.burst, self.kept = burst, np.zeros((2, 0), np.float32)

    def process(self, chunk: NDArray[np.float32]) -> NDArray[np.float32]:
        self.kept = np.concatenate([self.kept, chunk], axis=1)
        count = self.kept.shape[1] // self.burst * self.burst
        ready, self.kept = self.kept[:, :count], self.kept[:, count:]
        return ready


def calls(bridge: Bridge, x: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """What a device would play, called back every `size` samples when the thread is done."""
    played = []
    for start in range(0, x.shape[1] - size + 1, size):
        out = np.full((size, 2), np.nan, np.float32)
        bridge.callback(np.ascontiguousarray(x[:, start : start + size].T), out, size, None, None)
        while not bridge._heard.empty():
            time.sleep(0.001)
        time.sleep(0.002)
        played.append(out)
    return np.concatenate(played).T


def test_live_bridge_plays_everything_in_order_without_gaps() -> None:
    x = noise(32_000, 2).T.astype(np.float32)
    bridge = Bridge(Delay(), buffer_seconds=0.05)  # type: ignore[arg-type]
    with bridge:
        y = calls(bridge, x, 160)
    bridge.check()
    assert bridge.underruns == 0
    start = int(np.argmax(np.any(y != 0, axis=0)))
    assert 1600 <= start <= 1600 + 1600
    np.testing.assert_array_equal(y[:, start:], x[:, : y.shape[1] - start])
    assert "underruns 0" in bridge.status()


def test_live_bridge_counts_underruns_and_goes_on() -> None:
    class Slow(Delay):
        def process(self, chunk: NDArray[np.float32]) -> NDArray[np.float32]:
            return super().process(chunk)[:, ::2]  # half of what is due

    bridge = Bridge(Slow(), buffer_seconds=0.0)  # type: ignore[arg-type]
    with bridge:
        y = calls(bridge, np.ones((2, 32_000), np.float32), 160)
    assert bridge.underruns > 3
    assert set(np.unique(y)) == {0.0, 1.0}


def test_live_bridge_leaves_out_what_it_cannot_keep_up_with() -> None:
    class Stuck(Delay):
        release = threading.Event()

        def process(self, chunk: NDArray[np.float32]) -> NDArray[np.float32]:
            self.release.wait(30)
            return super().process(chunk)

    bridge, out = Bridge(Stuck(), buffer_seconds=0.0), np.zeros((RATE, 2), np.float32)  # type: ignore[arg-type]
    with bridge:
        for _ in range(20):  # seconds
            bridge.callback(out, out, RATE, None, None)
        assert 4 <= bridge._heard.qsize() <= 6
        Stuck.release.set()
    assert bridge.overruns > 10


def test_live_bridge_tells_what_went_wrong() -> None:
    class Broken(Delay):
        def process(self, chunk: NDArray[np.float32]) -> NDArray[np.float32]:
            raise UdseError("broken")

    bridge = Bridge(Broken(), buffer_seconds=0.0)  # type: ignore[arg-type]
    with bridge:
        bridge._heard.put(np.zeros((2, 10), np.float32))
    with pytest.raises(UdseError, match="broken"):
        bridge.check()


class FakeDevice:
    """Calls back in a thread, as PortAudio does."""

    def __init__(self, callback: Any, channels: int, device: tuple[Any, Any], **_: Any) -> None:
        if device[0] == "no such":
            raise ValueError("No input device matching 'no such'")
        self.callback, self.channels, self.stop = callback, channels, threading.Event()
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self.stop.wait(0.005):
            heard = np.full((160, self.channels), 0.1, np.float32)
            self.callback(heard, np.empty_like(heard), 160, None, None)

    def __enter__(self) -> FakeDevice:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()


@pytest.fixture
def _sounddevice(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    fake = SimpleNamespace(
        Stream=FakeDevice, PortAudioError=OSError, query_devices=lambda: "0 microphone\n1 loudspeaker"
    )
    monkeypatch.setitem(sys.modules, "sounddevice", fake)  # type: ignore[arg-type]
    return


@pytest.mark.usefixtures("_sounddevice")
def test_live(fast: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["live", "--list"]) == 0
    assert capsys.readouterr().out == "0 microphone\n1 loudspeaker\n"
    assert main(["live", "--duration", "0.5", "--channels", "2", "--input", "1", *BLOCKS, *fast]) == 0
    err = capsys.readouterr().err
    assert "latency 0.7" in err
    assert "underruns" in err
    assert "load" in err
    assert "udse-fast live --list" in complaint(capsys, main(["live", "--input", "no such", *fast]))


def test_live_without_its_package(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)  # type: ignore[arg-type]
    assert "pip install udse-fast[live]" in complaint(capsys, main(["live"]))


# -- the others --------------------------------------------------------------------------------------------


def test_export(tiny_checkpoint: Path, fast: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tiny_checkpoint), "-o", "a.pt"]) == 0
    assert "a.pt: 0." in capsys.readouterr().out
    sound("in.wav")
    assert enhance("in.wav", "-o", "script.wav", *FAST, "--checkpoint", "a.pt") == 0
    assert enhance("in.wav", "-o", "eager.wav", *fast) == 0
    np.testing.assert_allclose(soundfile.read("script.wav")[0], soundfile.read("eager.wav")[0], atol=2e-4)
    capsys.readouterr()
    assert "expected an export to" in complaint(capsys, main(["export", str(tiny_checkpoint), "-o", "a.xyz"]))
    assert "expected a checkpoint" in complaint(capsys, main(["export", "in.wav", "-o", "b.pt"]))


def test_bench(fast: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", "--seconds", "1", "--runs", "1", *BLOCKS, *fast]
    assert main([*arguments, "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert results["real-time factor (best)"] > 0
    assert 0 < results["share of the network"] < 1
    assert results["network calls a run"] == 4  # predictor and corrector of two steps
    assert results["stream: latency seconds"] == pytest.approx(0.5, rel=0.05)
    assert main(arguments) == 0
    assert "real-time factor (median)" in capsys.readouterr().out


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    for expected in (f"udse-fast {udse_fast.__version__}", "torch ", "cpu: ", "reference", "Built-in priors"):
        assert expected in out


def test_spectrogram_of_a_tone() -> None:
    """Full scale is 0 dB in the bin of the tone; the length of the chunks does not matter."""
    x = np.sin(2 * np.pi * 1000 * np.arange(80_000) / RATE)[None].astype(np.float32)
    whole, parts = (
        RunningSpectrogram(RATE, 80_000, columns=100),
        RunningSpectrogram(RATE, 80_000, columns=100),
    )
    whole.push(x)
    for start in range(0, 80_000, 777):
        parts.push(x[:, start : start + 777])
    picture = whole.decibels()
    np.testing.assert_allclose(parts.decibels(), picture, atol=1e-6)
    assert picture[:, 50].argmax() == 32  # 1000 Hz of 31.25 Hz a bin
    assert picture[32, 50] == pytest.approx(0, abs=0.01)
    assert whole.extent == (0.0, 5.0, 0.0, 8.0)
    assert picture.shape == (257, 100)

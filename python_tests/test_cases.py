"""Situations that users of such software reported in public, each with its right value; files in data/cases.

Those of `SOUND` are about the sound of the built-in prior.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
from numpy.typing import NDArray

import udse_fast
from udse_fast.cli import main
from udse_fast.plots import RunningSpectrogram

DATA = Path(__file__).parent / "data"
CASES = DATA / "cases"
RATE = 16000
COMMAND = [sys.executable, "-m", "udse_fast"]
Samples = NDArray[np.float64]


@dataclass(frozen=True)
class Setting:
    """What a row may use: an own folder, options of a network that runs in milliseconds, what was printed."""

    folder: Path
    fast: list[str]
    printed: Callable[[], tuple[str, str]]

    def enhance(self, *arguments: object) -> int:
        return main(["enhance", *map(str, arguments), *self.fast])

    def shell(self, script: str) -> subprocess.CompletedProcess[bytes]:
        enhance = " ".join([*COMMAND, "enhance", *self.fast])
        stream = " ".join([*COMMAND, "stream", *self.fast])
        text = script.format(enhance=enhance, stream=stream, sound=CASES / "speech_4s.flac")
        return subprocess.run(["bash", "-c", text], cwd=self.folder, capture_output=True, check=False, timeout=300)


# -- files, pipes, folders --------------------------------------------------------------------------------------


def mp3_in_wav_out(s: Setting) -> None:
    assert s.enhance(CASES / "speech_noise_16k_mono.mp3", "-o", s.folder / "out.wav") == 0
    info = soundfile.info(s.folder / "out.wav")
    assert (info.format, info.frames, info.samplerate) == ("WAV", 48000, RATE)


def mp3_called_wav(s: Setting) -> None:
    (s.folder / "in.wav").write_bytes((CASES / "speech_noise_16k_mono.mp3").read_bytes())
    assert s.enhance(s.folder / "in.wav", "-o", s.folder / "out.wav") == 0
    info = soundfile.info(s.folder / "out.wav")
    assert (info.format, info.subtype, info.frames) == ("WAV", "PCM_16", 48000)


def memo_is_decoded(s: Setting) -> None:
    assert s.enhance(CASES / "phone_memo_aac.m4a", "-o", s.folder / "out.wav") == 0
    assert soundfile.info(s.folder / "out.wav").frames == 48000


def memo_in_a_folder(s: Setting) -> None:
    (s.folder / "in").mkdir()
    for name in ("phone_memo_aac.m4a", "float32_peak_1.43.wav"):
        (s.folder / "in" / name).write_bytes((CASES / name).read_bytes())
    assert s.enhance(s.folder / "in", "-o", s.folder / "out") == 0
    assert sorted(os.listdir(s.folder / "out")) == ["float32_peak_1.43.wav", "phone_memo_aac.m4a"]


def memo_in_a_list(s: Setting) -> None:
    (s.folder / "bad.m4a").write_bytes((CASES / "phone_memo_aac.m4a").read_bytes()[:5000])
    given = [s.folder / "bad.m4a", CASES / "phone_memo_aac.m4a"]
    assert s.enhance(*given, "-o", s.folder / "out") == 2  # bad.m4a is named, the other goes on
    assert "bad.m4a" in s.printed()[1]
    assert os.listdir(s.folder / "out") == ["phone_memo_aac.m4a"]


def flac_of_unknown_length(s: Setting) -> None:
    source, out = CASES / "flac_length_unknown_ffmpeg_pipe.flac", s.folder / "out.wav"
    columns = []
    draw = RunningSpectrogram.decibels
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunningSpectrogram, "decibels", lambda p: columns.append(draw(p).shape[1]) or draw(p))
        assert s.enhance(source, "-o", out, "--plot", s.folder / "out.png") == 0
    info = soundfile.info(out)
    assert (info.frames, info.format) == (48000, "WAV")  # no RF64
    said, told = s.printed()
    assert "truncated" not in told
    assert "3.00 s in" in said
    assert min(columns) > 100


def wav_of_size_zero(s: Setting) -> None:
    assert s.enhance(CASES / "wav_data_size_zero.wav", "-o", s.folder / "out.wav") == 0
    assert soundfile.info(s.folder / "out.wav").frames == 48000
    assert "header says 0 bytes" in s.printed()[1]


def adpcm_length(s: Setting) -> None:
    assert s.enhance(CASES / "ima_adpcm_48984_samples.wav", "-o", s.folder / "out.wav") == 0
    assert soundfile.info(s.folder / "out.wav").frames == 48984


def clipping_is_told(s: Setting) -> None:
    assert s.enhance(CASES / "float32_peak_1.43.wav", "-o", s.folder / "x.flac", "--strength", "0") == 0
    assert "120 samples" in s.printed()[1]


def pipe_to_pipe(s: Setting) -> None:
    done = s.shell("cat {sound} | {enhance} - -o -")
    assert done.returncode == 0, done.stderr
    assert soundfile.info(io.BytesIO(done.stdout)).frames == 64000


def pipe_dev_stdin(s: Setting) -> None:
    assert s.shell("cat {sound} | {enhance} /dev/stdin -o out.wav").returncode == 0
    assert soundfile.info(s.folder / "out.wav").frames == 64000


def pipe_process_substitution(s: Setting) -> None:
    assert s.shell("{enhance} <(cat {sound}) -o out.wav").returncode == 0
    assert soundfile.info(s.folder / "out.wav").frames == 64000


def pipe_named(s: Setting) -> None:
    assert s.shell("mkfifo p; cat {sound} > p & {enhance} p -o out.wav").returncode == 0
    assert soundfile.info(s.folder / "out.wav").frames == 64000


def riff_into_a_raw_stream(s: Setting) -> None:
    samples, _ = soundfile.read(CASES / "speech_4s.flac", dtype="int16")
    soundfile.write(s.folder / "in.wav", samples, RATE)
    done = s.shell("cat in.wav | {stream}")
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"RIFF header" in done.stderr
    done = s.shell("cat in.wav | {stream} --format wav")
    assert soundfile.info(io.BytesIO(done.stdout)).frames == 64000


def empty_path(s: Setting) -> None:
    (s.folder / "a.wav").write_bytes((CASES / "wav_data_size_zero.wav").read_bytes())
    done = s.shell('{enhance} "$NOT_SET" -o out/')
    assert done.returncode == 2
    assert os.listdir(s.folder) == ["a.wav"]


def latin_1_name(s: Setting) -> None:
    name = os.fsdecode(b"w\xe9.flac")
    (s.folder / name).write_bytes((CASES / "speech_4s.flac").read_bytes())
    done = s.shell("{enhance} w$'\\xe9'.flac -o o$'\\xe9'.flac")
    assert done.returncode == 0, done.stderr
    assert (s.folder / os.fsdecode(b"o\xe9.flac")).stat().st_size > 10_000


def hangup_leaves_nothing(s: Setting) -> None:
    done = s.shell("""env --default-signal=HUP {enhance} {sound} -o out.wav --steps 10000 & p=$!
        for i in $(seq 600); do [ -n "$(find . -name '.*partial*')" ] && break; sleep 0.1; done
        [ -n "$(find . -name '.*partial*')" ] && kill -HUP $p; wait $p""")
    assert done.returncode == 129
    assert os.listdir(s.folder) == []


# -- sound ------------------------------------------------------------------------------------------------------


def read(name: str) -> Samples:
    samples: Samples = soundfile.read(name if "/" in name else CASES / name)[0]
    return samples


def level(x: Samples) -> float:
    return float(10 * np.log10(np.mean(np.square(x)) + 1e-20))


def si_sdr(estimate: Samples, reference: Samples) -> float:
    """Le Roux et al. 2019, in dB."""
    target = reference * (estimate @ reference) / (reference @ reference)
    return float(10 * np.log10((target @ target) / np.sum(np.square(estimate - target))))


def enhanced(x: Samples, rate: int = RATE, causal: bool = False, **settings: Any) -> Samples:
    """By the built-in prior."""
    enhancer = udse_fast.Enhancer(**settings)
    given = x.astype(np.float32)
    if not causal:
        return np.asarray(enhancer.enhance(given, rate), np.float64)
    stream = enhancer.open_stream(rate)
    return np.concatenate([stream.process(given), stream.flush()]).astype(np.float64)


def white_noise_as_a_stream(_: Setting) -> None:
    x = read("white_noise_only_4s_-30dBFS.flac")
    assert level(x[RATE:]) - level(enhanced(x, causal=True)[RATE:]) >= 20


def white_noise_whole(_: Setting) -> None:
    x = read("white_noise_only_4s_-30dBFS.flac")
    assert level(x) - level(enhanced(x)) >= 35


def noise_of_a_machine(_: Setting) -> None:
    """In the place of the laundry room, whose recording may not be passed on."""
    x = read(str(DATA / "ls6925_exercisebike_noise.flac"))[: 3 * RATE]
    assert level(x) - level(enhanced(x)) >= 15
    assert level(x) - level(enhanced(x, causal=True)) >= 15


def clean_speech(_: Setting) -> None:
    x = read("clean_speech_2s.flac")
    y = enhanced(x)
    assert si_sdr(y, x) >= 25
    assert abs(level(y) - level(x)) <= 0.2


def speech_with_little_noise(_: Setting) -> None:
    x = read("clean_speech_2s.flac")
    for snr in (40, 30, 20):
        noise = np.random.default_rng(0).standard_normal(len(x))
        noise *= np.sqrt(np.mean(x**2) / np.mean(noise**2)) * 10 ** (-snr / 20)
        assert si_sdr(enhanced(x + noise), x) >= snr - 0.5


def whisper(_: Setting) -> None:
    x = read("whisper_lpc_noise_excited.flac")
    y = enhanced(x)
    assert abs(level(y) - level(x)) <= 1
    assert si_sdr(y, x) >= 10


def singing(_: Setting) -> None:
    x = read("singing_lpc_220Hz_vibrato.flac")
    assert abs(level(enhanced(x)) - level(x)) <= 1


def direct_current(_: Setting) -> None:
    assert si_sdr(enhanced(read("speech_5dB_plus_DC_0.5.flac")), read("speech_4s.flac")) >= 7.6


def mains_hum(_: Setting) -> None:
    assert si_sdr(enhanced(read("speech_in_mains_hum_-20dB.flac")), read("clean_speech_2s.flac")) > 0


def opposite_channels_cancel(_: Setting) -> None:
    x = (0.2 * read("clean_speech_2s.flac")).astype(np.float32)
    left, right = udse_fast.Enhancer(stereo="common").enhance(np.stack([x, -x]), RATE)
    np.testing.assert_allclose(left + right, 0, atol=1e-6)


def reverberant_speech(_: Setting) -> None:
    """T60 of 0.6 s: exponentially decaying noise after the direct sound."""
    x = read("speech_4s.flac")
    t = np.arange(int(0.6 * RATE)) / RATE
    tail = np.random.default_rng(0).standard_normal(len(t)) * 10 ** (-3 * t / 0.6) * (t > 0.003)
    tail *= 0.7 / np.sqrt(np.sum(tail**2))
    x = np.convolve(x, np.concatenate([[1.0], tail]))[: len(x)]
    assert si_sdr(enhanced(x), x) >= 18


def above_the_prior(_: Setting) -> None:
    """Above 9 kHz nothing vanishes silently where nothing is to be taken away."""
    for rate in (44100, 48000):
        x = 0.05 * np.random.default_rng(0).standard_normal(2 * rate) + soxr.resample(
            read("clean_speech_2s.flac"), RATE, rate
        )
        y = enhanced(x, rate, max_attenuation_db=0)
        high = slice(9000 * 2, None)  # bins of half a Hz
        before, after = (np.abs(np.fft.rfft(z))[high] for z in (x, y))
        assert level(before) - level(after) < 1


def published_sampler_on_noise(_: Setting) -> None:
    x = read("white_noise_only_4s_-30dBFS.flac")
    with pytest.warns(RuntimeWarning, match="diverged in a block"):
        assert np.isfinite(enhanced(x, causal=True, sampler="diffuseen")).all()


NOW = [
    mp3_in_wav_out, mp3_called_wav, memo_is_decoded, memo_in_a_folder, memo_in_a_list, flac_of_unknown_length,
    wav_of_size_zero, adpcm_length, clipping_is_told, pipe_to_pipe, pipe_dev_stdin, pipe_process_substitution,
    pipe_named, riff_into_a_raw_stream, empty_path, latin_1_name, hangup_leaves_nothing,
]  # fmt: skip
SOUND = [
    white_noise_as_a_stream, white_noise_whole, noise_of_a_machine, clean_speech, direct_current, mains_hum,
    opposite_channels_cancel, reverberant_speech, above_the_prior, published_sampler_on_noise,
    speech_with_little_noise, singing, whisper,
]  # fmt: skip


@pytest.fixture
def setting(
    tmp_path: Path,
    tiny_checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
) -> Setting:
    fast = ["--steps", "2", "--samples", "1", "--precision", "float32", "--checkpoint", str(tiny_checkpoint)]
    return Setting(tmp_path, fast, capsys.readouterr)


@pytest.mark.parametrize("case", NOW, ids=lambda case: case.__name__)
def test_case(case: Callable[[Setting], None], setting: Setting) -> None:
    case(setting)


@pytest.mark.parametrize("case", SOUND, ids=lambda case: case.__name__)
def test_sound(case: Callable[[Setting], None], setting: Setting) -> None:
    case(setting)

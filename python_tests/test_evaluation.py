"""`udse-fast evaluate`: pairing, resuming, comparison and what it writes."""

import argparse
import csv
import math
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import scipy.signal
import soundfile

from udse_fast.commands import evaluate as command
from udse_fast.errors import UdseError
from udse_fast.evaluation import report
from udse_fast.evaluation.pairs import pairs_in_folders, pairs_in_mixtures, pairs_in_table, read_audio
from udse_fast.evaluation.tables import ScoreRow, interval, markdown, mean_interval, paired_differences

DATA = Path(__file__).parent / "data"
RATE = 16000


def write(path, samples, rate=RATE):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, subtype="FLOAT")


def tone(hertz, seconds=0.5, rate=RATE):
    return 0.1 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)


def run(*options):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args([str(option) for option in options]))


def rows_of(folder):
    with (folder / "scores.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def mixtures(tmp_path):
    """Two sets, two SNRs, three utterances: tones in orthogonal tones of exact SNR."""
    root = tmp_path / "mixtures"
    for set_name in ("matched", "mismatched"):
        for snr in (-5, 10):
            for n, hertz in enumerate((400, 800, 1200)):
                folder = root / set_name / f"snr{snr}"
                speech = tone(hertz)
                write(folder / "clean" / f"00{n}_tone{n}.wav", speech)
                write(folder / "noisy" / f"00{n}_tone{n}.wav", speech + 10 ** (-snr / 20) * tone(3000))
    return root


@pytest.fixture
def enhancer(monkeypatch):
    """A stand-in that takes away half of the 3 kHz tone: +6.02 dB; counts its calls."""

    class HalfTheNoise:
        calls = 0
        spectral, settings, seed = None, SimpleNamespace(rank=4), 0

        def __init__(self, **arguments):
            assert {"checkpoint", "sampler", "steps", "seed", "device"} <= set(arguments)

        def enhance(self, audio, sample_rate):
            return self.separate(audio, sample_rate)[0]

        def separate(self, audio, sample_rate, causal=False, make_noise_model=None):
            assert sample_rate == RATE
            HalfTheNoise.calls += 1
            noise = tone(3000, len(audio) / RATE)
            taken = 0.5 * noise * (audio @ noise) / (noise @ noise)
            if make_noise_model is not None:
                assert make_noise_model.mode == "pure oracle"
                taken = make_noise_model.noise.numpy()
            return audio - taken, taken

    module = ModuleType("udse_fast.enhancer")
    module.Enhancer = HalfTheNoise
    monkeypatch.setitem(sys.modules, "udse_fast.enhancer", module)
    return HalfTheNoise


@pytest.fixture
def no_plots(monkeypatch):
    """For what is not about plots: they take most of the time."""
    for name in ("draw_violins", "draw_differences"):
        monkeypatch.setattr(report, name, lambda rows, path, title: None)


def test_one_command_scores_a_folder_of_mixtures(mixtures, enhancer, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("--mixtures", mixtures, "--out", out, "--metrics", "si", "--jobs", 1) == 0
    rows = rows_of(out)
    assert len(rows) == 2 * 12
    for row in rows:
        gained = {"noisy": 0.0, "amortised_ddrm": 20 * math.log10(2)}[row["system"]]
        assert float(row["si_sdr"]) == pytest.approx(float(row["snr"]) + gained, abs=1e-3)
        assert float(row["si_sir"]) == pytest.approx(float(row["snr"]) + gained, abs=1e-3)
        assert row["pesq_wb"] == ""
        assert bool(row["rtf"]) == (row["system"] == "amortised_ddrm")
    table = (out / "table.md").read_text()
    assert "| -5 | amortised_ddrm | 3 | 1.02 ± 0.00 |" in table
    assert "| all | noisy | 6 | 2.50 ± 0.00 |" in table
    assert "| all | noisy | 6 | **+6.02** ± 0.00 |" in table
    assert table in capsys.readouterr().out
    for name in ("violins_matched", "violins_mismatched", "differences_matched", "differences_mismatched"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert not list(out.glob(".*"))


def test_a_sampler_that_diverges_on_noise_alone_is_scored(mixtures, enhancer, tmp_path, no_plots, monkeypatch):
    """The call before the first file is about noise."""

    def diverge(self, audio, sample_rate):
        raise UdseError("the reverse pass diverged")

    monkeypatch.setattr(enhancer, "enhance", diverge)
    out = tmp_path / "out"
    assert run("--mixtures", mixtures, "--out", out, "--metrics", "si", "--jobs", 1, "--no-noisy") == 0
    assert len(rows_of(out)) == 12


def test_oracle_modes_are_given_the_true_noise(mixtures, enhancer, tmp_path, no_plots):
    out = tmp_path / "out"
    options = ("--mixtures", mixtures, "--out", out, "--metrics", "si", "--jobs", 1, "--no-noisy")
    assert run(*options, "--oracle", "pure oracle") == 0
    assert {row["system"] for row in rows_of(out)} == {"amortised_ddrm (pure oracle)"}
    assert min(float(row["si_sdr"]) for row in rows_of(out)) > 60


def test_only_the_files_of_a_table(mixtures, enhancer, tmp_path, no_plots):
    table, out = tmp_path / "peers.csv", tmp_path / "out"
    table.write_text("system,set,snr,utterance,si_sdr\npeer,matched,10,tone1,1\npeer,mismatched,-5,002_tone2,1\n")
    options = ("--mixtures", mixtures, "--metrics", "si", "--jobs", 1, "--no-noisy")
    assert run(*options, "--out", out, "--only", table) == 0
    found = sorted((row["set"], row["snr"], row["utterance"]) for row in rows_of(out))
    assert found == [("matched", "10", "001_tone1"), ("mismatched", "-5", "002_tone2")]
    table.write_text("utterance\ntone1\n")
    assert run(*options, "--out", tmp_path / "by_name", "--only", table) == 0
    assert [row["utterance"] for row in rows_of(tmp_path / "by_name")] == ["001_tone1"] * 4
    table.write_text("system,set,snr,utterance,si_sdr\npeer,matched,10,tone7,1\n")
    with pytest.raises(UdseError, match=r"--only: expected names of the 12 noisy files in .*peers\.csv, found none"):
        run(*options, "--out", tmp_path / "none", "--only", table)


def test_kept_files_are_scored_alike(mixtures, enhancer, tmp_path, no_plots):
    options = ("--mixtures", mixtures, "--metrics", "si", "--jobs", 1, "--no-noisy")
    assert run(*options, "--out", tmp_path / "first", "--write", tmp_path / "kept") == 0
    assert run(*options, "--out", tmp_path / "again", "--enhanced", tmp_path / "kept") == 0
    first, again = (
        {(row["set"], row["snr"], row["utterance"]): float(row["si_sdr"]) for row in rows_of(tmp_path / name)}
        for name in ("first", "again")
    )
    assert first == pytest.approx(again, abs=1e-4)


def test_a_second_run_scores_only_what_is_missing(mixtures, enhancer, tmp_path, no_plots):
    out = tmp_path / "out"
    options = ("--mixtures", mixtures, "--out", out, "--metrics", "si", "--jobs", 1, "--no-noisy")
    run(*options)
    assert enhancer.calls == 12 + 1  # and a warm-up
    complete = (out / "scores.csv").read_text()
    run(*options)
    assert enhancer.calls == 13
    assert (out / "scores.csv").read_text() == complete

    (out / "scores.csv").write_text(complete[:-40])  # interrupted within the last line
    run(*options)
    assert enhancer.calls == 13 + 2
    assert sorted(r["utterance"] for r in rows_of(out)) == sorted(["000_tone0", "001_tone1", "002_tone2"] * 4)

    with pytest.raises(UdseError, match="steps None -> 7"):
        run(*options, "--steps", 7)
    run(*options, "--steps", 7, "--overwrite")
    assert enhancer.calls == 15 + 13
    assert len(rows_of(out)) == 12


def test_several_systems_share_a_folder(mixtures, enhancer, tmp_path, no_plots):
    out = tmp_path / "out"
    options = ("--mixtures", mixtures, "--out", out, "--jobs", 1)
    run(*options, "--metrics", "si", "estoi")
    run(*options, "--metrics", "si", "--sampler", "udiffse")
    scored = {(r["system"], bool(r["si_sdr"]), bool(r["estoi"])) for r in rows_of(out)}
    assert scored == {("noisy", True, True), ("amortised_ddrm", True, True), ("udiffse", True, False)}
    with pytest.raises(UdseError, match=r"metrics \['estoi', 'si'\] -> \['pesq', 'si'\]"):
        run(*options, "--metrics", "si", "pesq")
    assert "| -5 | amortised_ddrm | 3 | +0.00 ± 0.00 |" in (out / "table.md").read_text()


def test_comparison_with_a_table_and_a_folder(mixtures, enhancer, tmp_path, no_plots):
    other = tmp_path / "other.csv"
    other.write_text(
        "system,set,snr,utterance,si_sdr\npeer,matched,-5.0,tone0,0.0\npeer,matched,-5,tone1,1.0\npeer,matched,-5,else,9\n"
    )
    perfect = tmp_path / "perfect"
    for clean in mixtures.rglob("clean/*.wav"):
        relative = clean.relative_to(mixtures)
        write(perfect / relative.parent.parent / clean.name, read_audio(clean) + 0.1 * tone(3000))
    out = tmp_path / "out"
    run(
        *("--mixtures", mixtures, "--out", out, "--metrics", "si", "--jobs", 1),
        *("--compare", other, perfect),
    )
    table = (out / "table.md").read_text()
    # ours is 1.0206 dB in both: differences 1.0206 and 0.0206, half width 12.706 * 0.7071 / sqrt(2)
    assert "| -5 | peer | 2 | +0.52 ± 6.35 |" in table
    assert "| -5 | perfect | 3 | **-18.98** ± 0.00 |" in table


def test_worker_processes_give_the_same_scores(mixtures, tmp_path, no_plots):
    for jobs in (1, 2):
        run(
            *("--mixtures", mixtures, "--enhanced", mixtures, "--name", "copy", "--no-noisy"),
            *("--out", tmp_path / str(jobs), "--metrics", "si", "--jobs", jobs),
        )
    one, two = (sorted(rows_of(tmp_path / str(j)), key=lambda r: tuple(r.values())) for j in (1, 2))
    assert one == two


def test_termination_leaves_the_rest_undone(mixtures, tmp_path):
    """12 files; the rows that are there are whole, the workers do not go on."""
    out, kept = tmp_path / "out", tmp_path / "kept"
    arguments = ["--mixtures", mixtures, "--out", out, "--write", kept, "--metrics", "si", "--jobs", 2]
    command_line = [sys.executable, "-m", "udse_fast", "evaluate", *arguments, "--no-noisy", "--steps", 40]
    process = subprocess.Popen([str(a) for a in command_line], cwd=tmp_path, stderr=subprocess.DEVNULL)
    while not (out / "scores.csv").is_file() or len(rows_of(out)) < 2:
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    written = len(list(kept.rglob("*.wav")))
    assert 2 <= len(rows_of(out)) <= written < 12
    time.sleep(2)
    assert len(list(kept.rglob("*.wav"))) == written


def test_lengths_rates_and_silence_are_noted_not_fatal(tmp_path, no_plots):
    clean, _ = soundfile.read(DATA / "ls8088_clean.flac")
    clean = clean[:RATE]
    noisy = clean + 0.01 * np.random.default_rng(0).standard_normal(RATE)
    rows = ["noisy,clean,enhanced,utterance"]
    for name, estimate, rate in (
        ("short", noisy[: RATE // 2], RATE),
        ("padded", np.pad(noisy, (0, 100)), RATE),
        ("fast", scipy.signal.resample(noisy, 2 * RATE), 2 * RATE),
        ("silent", np.zeros(RATE), RATE),
    ):
        write(tmp_path / f"{name}.wav", estimate, rate)
        rows.append(f"noisy.wav,clean.wav,{name}.wav,{name}")
    write(tmp_path / "noisy.wav", noisy)
    write(tmp_path / "clean.wav", clean)
    table = tmp_path / "pairs.csv"
    table.write_text("\n".join(rows))
    out = tmp_path / "out"
    run("--pairs", table, "--out", out, "--metrics", "si", "pesq", "estoi", "--jobs", 1, "--no-noisy")
    found = {row["utterance"]: row for row in rows_of(out)}
    assert found["short"]["note"] == "cut from 1.00 s to 0.50 s"
    assert found["padded"]["note"] == ""
    expected = 10 * np.log10(np.sum(clean**2) / np.sum((noisy - clean) ** 2))
    assert float(found["padded"]["si_sdr"]) == pytest.approx(expected, abs=0.1)  # speech and noise correlate a little
    assert float(found["fast"]["si_sdr"]) == pytest.approx(expected, abs=0.5)  # and the resampler cuts near 8 kHz
    assert "pesq_wb" in found["silent"]["note"]
    assert found["silent"]["pesq_wb"] == "nan"
    assert "(3 files)" in (out / "table.md").read_text()


def test_pairs_are_found_in_each_layout(mixtures, tmp_path):
    pairs = pairs_in_mixtures(mixtures)
    assert len(pairs) == 12
    assert ("mismatched", "-5", "001_tone1") in {p.key for p in pairs}
    assert all(p.clean.parent.name == "clean" and p.clean.name == p.noisy.name for p in pairs)
    write(tmp_path / "in" / "speaker" / "a.wav", tone(400))
    write(tmp_path / "ref" / "speaker" / "a.flac.wav", tone(400))
    write(tmp_path / "ref" / "speaker" / "a.wav", tone(400))
    (pair,) = pairs_in_folders(tmp_path / "in", tmp_path / "ref")
    assert pair.key == ("", "", "speaker/a")
    table = tmp_path / "t.csv"
    table.write_text("noisy,clean,set,snr\nin/speaker/a.wav,ref/speaker/a.wav,street,2.50\n")
    (pair,) = pairs_in_table(table)
    assert pair.key == ("street", "2.5", "a")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "exactly one"),
        (("--noisy", "{m}/matched/snr-5/noisy"), "give both"),
        (("--mixtures", "{m}/absent"), "existing folder"),
        (("--mixtures", "{m}/matched/snr-5/clean"), "noisy/ beside clean/"),
        (("--noisy", "{m}/matched", "--clean", "{m}/matched/snr10"), "missing"),
        (("--mixtures", "{m}", "--enhanced", "{m}/matched"), "missing"),
        (("--mixtures", "{m}", "--compare", "{m}/absent.csv"), "no such file"),
        (("--mixtures", "{m}", "--checkpoint", "{m}/absent.pt"), "checkpoint"),
        (("--mixtures", "{m}", "--jobs", "0"), "--jobs"),
        (("--mixtures", "{m}", "--name", "noisy"), "different names"),
        (("--pairs", "{m}/matched/snr-5/noisy/000_tone0.wav"), "readable CSV"),
    ],
)
def test_bad_input_is_a_one_line_error(mixtures, tmp_path, options, message):
    with pytest.raises(UdseError, match=message) as caught:
        run(*(option.format(m=mixtures) for option in options), "--out", tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_a_bad_file_is_named(mixtures, tmp_path):
    write(mixtures / "matched/snr-5/noisy/000_tone0.wav", np.zeros((100, 2)))
    with pytest.raises(UdseError, match=r"000_tone0\.wav: expected mono"):
        run(
            *("--mixtures", mixtures, "--enhanced", mixtures, "--name", "copy", "--no-noisy"),
            *("--out", tmp_path / "out", "--metrics", "si", "--jobs", 1),
        )


def test_interval_is_students():
    found = mean_interval([1.0, 2.0, 3.0, 4.0, 5.0, math.nan, math.inf])
    # t(0.975, 4) = 2.776445, standard deviation sqrt(2.5)
    assert (found.mean, found.n) == (3.0, 5)
    assert found.half_width == pytest.approx(2.776445 * math.sqrt(2.5 / 5), rel=1e-6)
    assert math.isnan(mean_interval([1.0]).half_width)


def test_snrs_of_one_utterance_count_once():
    rows = [ScoreRow("a", "", str(snr), str(n), {"si_sdr": float(n + snr)}) for n in range(4) for snr in (0, 10)]
    # per utterance 5 + n: standard deviation sqrt(5/3), t(0.975, 3) = 3.182446
    found = interval(rows, "si_sdr")
    assert (found.mean, found.n) == (6.5, 4)
    assert found.half_width == pytest.approx(3.182446 * math.sqrt(5 / 3 / 4), rel=1e-6)


def test_paired_differences_need_a_common_file():
    ours = [ScoreRow("a", "s", "0", "x", {"estoi": 0.5})]
    assert paired_differences(ours, [ScoreRow("b", "s", "5", "x", {"estoi": 0.4})]) == []
    (difference,) = paired_differences(ours, [ScoreRow("b", "s", "0", "x", {"estoi": 0.4, "rtf": 1.0})])
    assert difference.values == {"estoi": pytest.approx(0.1)}
    assert "| 0 | b | 1 | +0.100 |" in markdown([difference], differences=True)

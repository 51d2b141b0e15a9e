"""Many recordings: one that fails is named, the others go on, and nothing is left out silently."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from udse_fast.cli import main
from udse_fast.commands.jobs import plan
from udse_fast.commands.workers import run_in_processes
from udse_fast.errors import UdseError

RATE = 16000
COMMAND = [sys.executable, "-m", "udse_fast", "enhance"]


@pytest.fixture(autouse=True)
def _in_an_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def sound(name: str, length: int = 4000, rate: int = RATE) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        x = 0.05 * np.random.default_rng(0).standard_normal(length)
        soundfile.write(file, x, rate, format="FLAC" if name.endswith("flac") else "WAV")
    return path


def enhance(*arguments: object) -> int:
    return main(["enhance", *map(str, arguments)])


def results(folder: str = "out") -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())


def bad_files() -> dict[str, str]:
    """Name -> what is said of it."""
    Path("page.mp3").write_text("<html>not found</html>")
    Path("empty.wav").touch()
    soundfile.write("slow.wav", np.zeros(100), 7999)
    Path("dangling.wav").symlink_to("nowhere.wav")
    Path("folder.wav").mkdir(exist_ok=True)
    x = np.zeros(4000, np.float32)
    x[7] = np.nan
    soundfile.write("nan.wav", x, RATE, "FLOAT")
    whole = sound("whole.flac", 40000).read_bytes()
    Path("cut.flac").write_bytes(whole[:300])
    Path("whole.flac").unlink()
    return {
        "page.mp3": "a web page",
        "empty.wav": "an empty file",
        "slow.wav": "sample_rate",
        "dangling.wav": "",
        "nan.wav": "got nan",
        "nowhere2.wav": "found nothing of that name",
        "cut.flac": "",
    }


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_list_goes_on(jobs: int, fast: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    bad = bad_files()
    sound("a.wav"), sound("b.flac")
    assert enhance("a.wav", *bad, "b.flac", "-o", "out", "--jobs", jobs, *fast) == 2
    out, err = capsys.readouterr()
    if jobs == 1:  # of several processes they are on its stderr, which is not captured here
        for name, told in bad.items():
            assert any(name in line and told in line for line in err.splitlines()), name
    assert results() == ["a.wav", "b.flac"]
    assert f"2 of {len(bad) + 2} files" in out
    assert f"{len(bad)} failed, 0 skipped" in out


def test_a_folder_goes_on(fast: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("in").mkdir()
    os.chdir("in")
    bad = bad_files()
    os.chdir("..")
    sound("in/a.wav"), sound("in/deep/er/b.wav"), sound("in/.hidden.wav"), sound("in/.hidden/c.wav")
    assert enhance("in", "-o", "out", *fast) == 2
    out, err = capsys.readouterr()
    assert results() == ["a.wav", "deep/er/b.wav"]
    assert len([line for line in err.splitlines() if "error:" in line]) == len(bad) - 1  # nowhere2 is not there
    assert "2 of 8 files" in out


def test_unreadable_files_may_be_skipped(fast: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("page.mp3").write_text("<html>not found</html>")
    sound("a.wav")
    assert enhance("page.mp3", "a.wav", "gone.wav", "-o", "out", "--skip-unreadable", *fast) == 0
    out, err = capsys.readouterr()
    assert err.count("skipped: ") == 2
    assert "page.mp3" in err
    assert "1 of 3 files" in out
    assert "0 failed, 2 skipped" in out


def test_skipping_does_not_hide_other_failures(fast: list[str]) -> None:
    sound("a.wav")
    Path("out/a.wav").mkdir(parents=True)  # cannot be replaced by a file
    sound("b.wav")
    assert enhance("a.wav", "b.wav", "-o", "out", "--skip-unreadable", *fast) == 2
    assert results() == ["b.wav"]


@pytest.mark.parametrize("arguments", [["", "-o", "out/"], ["a.wav", "", "-o", "out/"], ["", "-o", "b.wav"]])
def test_an_empty_variable_is_not_the_current_folder(
    arguments: list[str], fast: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    sound("a.wav")
    assert enhance(*arguments, *fast) == 2
    assert "an empty one" in capsys.readouterr().err
    assert [path.name for path in Path().iterdir()] == ["a.wav"]


def test_files_of_other_kinds_are_told(fast: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    sound("in/a.wav")
    for name in ("notes.txt", "cover.jpg", "b.dat", "c.pdf"):
        (Path("in") / name).write_bytes(b"x")
    assert enhance("in", "-o", "out", *fast) == 0
    told = capsys.readouterr().err
    assert told == "udse-fast: in: left out 4 files without an audio extension: b.dat, c.pdf, cover.jpg, ...\n"


def test_links_to_folders_and_files_are_followed(fast: list[str]) -> None:
    sound("real/b.wav"), sound("in/a.wav")
    Path("in/link").symlink_to("../real")
    Path("in/c.wav").symlink_to("../real/b.wav")
    Path("in/up").symlink_to("..")  # would lead back here for ever, and to the results
    Path("real/self").symlink_to(".")
    assert enhance("in", "-o", "out", *fast) == 0
    assert results() == ["a.wav", "c.wav", "link/b.wav", "up/real/b.wav"]


def test_a_link_as_an_output_is_written_through(fast: list[str]) -> None:
    sound("a.wav")
    Path("store").mkdir()
    Path("out.wav").symlink_to("store/real.wav")
    assert enhance("a.wav", "-o", "out.wav", *fast) == 0
    assert Path("out.wav").is_symlink()
    assert soundfile.info("store/real.wav").frames == 4000
    assert [path.name for path in Path("store").iterdir()] == ["real.wav"]


@pytest.mark.parametrize("device", ["/dev/null", "/dev/full"])
def test_devices_stay_devices(device: str, fast: list[str]) -> None:
    sound("a.wav")
    assert enhance("a.wav", "-o", device, *fast) == (0 if device == "/dev/null" else 2)
    assert Path(device).is_char_device()


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null", "/dev/random"])
def test_devices_are_no_recordings(device: str, fast: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert enhance(device, "-o", "out.wav", *fast) == 2
    assert "got a device" in capsys.readouterr().err


@pytest.mark.parametrize("jobs", [1, 2])
def test_any_name(jobs: int, fast: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    names = [
        b"w\xe9.wav",
        b"\xff\xfe.flac",
        b"a\nb.wav",
        b"sp ace.wav",
        "日本語.wav".encode(),
        b"-dash.wav",
        b"a%20b.wav",
    ]
    for name in names:
        sound(f"in/{os.fsdecode(name)}")
    options = ["--plot", "pictures", "--noise-out", "noise", "--jobs", jobs]
    assert enhance("in", "-o", "out", *options, *fast) == 0
    assert sorted(map(os.fsencode, os.listdir("out"))) == sorted(names)
    for name in names:
        assert soundfile.info(b"out/" + name).frames == 4000
    assert len(list(Path("pictures").iterdir())) == len(list(Path("noise").iterdir())) == len(names)
    out, _ = capfd.readouterr()
    out.encode()  # nothing that is no UTF-8
    assert "7 of 7 files" in out


def test_names_of_codecs_that_are_not_written(fast: list[str]) -> None:
    """Read only: .wav; a name that is taken by another input stays his."""
    source = sound("in/a.wav").read_bytes()
    for name in ("in/a.wma", "in/b.aac", "in/sub/b.amr"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(source)  # the content says what it is
    assert enhance("in", "-o", "out", *fast) == 0
    assert results() == ["a.wav", "a.wma.wav", "b.wav", "sub/b.wav"]


# -- what is printed --------------------------------------------------------------------------------------------


def test_json(fast: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    sound("a.wav", 8000), sound("b.wav", 4000)
    assert enhance("a.wav", "b.wav", "gone.wav", "-o", "out", "--json", *fast) == 2
    found = json.loads(capsys.readouterr().out)
    files = {entry["source"]: entry for entry in found["files"]}
    assert (found["enhanced"], found["failed"], found["skipped"], found["seconds"]) == (2, 1, 0, 0.75)
    assert found["real_time_factor"] == pytest.approx(found["wall_seconds"] / 0.75, abs=1e-3)  # both are rounded
    assert (files["a.wav"]["out"], files["a.wav"]["seconds"], files["a.wav"]["error"]) == ("out/a.wav", 0.5, None)
    assert "nothing of that name" in files["gone.wav"]["error"]
    assert files["a.wav"]["loading_seconds"] > 0.002 > files["b.wav"]["loading_seconds"]  # loaded once
    parts = sum(entry["wall_seconds"] + entry["loading_seconds"] for entry in found["files"])
    assert 0.5 * found["wall_seconds"] < parts < found["wall_seconds"] + 0.01


def test_json_of_one_file_that_fails(fast: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.wav").touch()
    assert enhance("a.wav", "-o", "b.wav", "--json", *fast) == 2
    assert json.loads(capsys.readouterr().out)["failed"] == 1


# -- processes --------------------------------------------------------------------------------------------------


def test_processes_give_the_same(fast: list[str]) -> None:
    for number in range(3):
        sound(f"in/{number}.wav", 5000 + 1000 * number)
    assert enhance("in", "-o", "one", *fast) == 0
    assert enhance("in", "-o", "two", "--jobs", "2", *fast) == 0
    for name in results("one"):
        one, two = (soundfile.read(Path(folder, name))[0] for folder in ("one", "two"))
        np.testing.assert_allclose(one, two, atol=3e-5)  # another number of threads adds up in another order


def test_wrong_settings_are_told_once_by_processes(fast: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    sound("a.wav"), sound("b.wav")
    assert enhance("a.wav", "b.wav", "-o", "out", "--jobs", "2", *fast, "--sampler", "none") == 2
    assert len(capfd.readouterr().err.splitlines()) == 1
    assert enhance("a.wav", "-o", "out", "--jobs", "0", *fast) == 2


WORK = """
import os, signal

def work(known):
    def perform(task):
        if task == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return task, str(known * task)
    return perform
"""


def lost(task: int, how: str) -> tuple[int, str]:
    return task, how


def test_a_process_that_dies_costs_its_job_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work_of_the_test.py").write_text(WORK)  # which new processes can import
    monkeypatch.syspath_prepend(tmp_path)
    work = importlib.import_module("work_of_the_test").work
    found = dict(run_in_processes(work, 3, [1, 7, 2, 3], 2, lost))
    assert found == {1: "3", 2: "6", 3: "9", 7: "its process ended with status -9"}


@pytest.mark.parametrize(("number", "jobs"), [(signal.SIGHUP, 1), (signal.SIGTERM, 2), (signal.SIGINT, 2)])
def test_signals_leave_nothing(number: signal.Signals, jobs: int, fast: list[str]) -> None:
    for name in ("a", "b"):
        sound(f"in/{name}.wav", 400_000)
    run = subprocess.Popen(
        [*COMMAND, "in", "-o", "out", "--jobs", str(jobs), *fast, "--steps", "10000"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: [signal.signal(n, signal.SIG_DFL) for n in (signal.SIGINT, signal.SIGHUP)],
    )  # fmt: skip
    give_up = time.monotonic() + 90
    while not Path("out").is_dir() or len(list(Path("out").iterdir())) < jobs:
        assert time.monotonic() < give_up
        time.sleep(0.05)
    run.send_signal(number)
    out, err = run.communicate(timeout=60)
    assert (run.returncode, out, err) == (128 + number, "", "")
    assert list(Path("out").iterdir()) == []


def test_nohup_is_heeded(fast: list[str]) -> None:
    sound("a.wav")
    command = " ".join([*COMMAND, "a.wav", "-o", "b.wav", *fast])
    script = f"trap '' HUP; ({command}) & sleep 0.5; kill -HUP $!; wait $!"
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=False)
    assert (done.returncode, Path("b.wav").is_file()) == (0, True)


# -- planning ---------------------------------------------------------------------------------------------------


def test_standard_output_holds_one_result() -> None:
    sound("a.wav"), sound("b.wav")
    with pytest.raises(UdseError, match="got several"):
        plan(["a.wav"], "-", noise_out="-")
    with pytest.raises(UdseError, match="several inputs"):
        plan(["a.wav", "b.wav"], "-")

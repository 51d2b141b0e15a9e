"""The session on a GPU, dry: every part runs and writes what it says; training goes on from the pieces of its state."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from udse_fast import load_network

SCRIPT = Path(__file__).with_name("gpu_session.sh")
PIECE = 15_000_000


def run(out: Path, *parts: str, **variables: str) -> None:
    given = {"DEVICE": "cpu", "LIMIT": "580", "OUT": str(out), "PYTHON": sys.executable, **variables}
    environment = {**os.environ, **given}
    done = subprocess.run([SCRIPT, *parts], env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    """Tones of three talkers."""
    folder = tmp_path / "speech"
    folder.mkdir()
    n = np.arange(32000) / 16000
    for talker in range(3):
        tone = 0.5 * np.sin(2 * np.pi * (150 + 40 * talker) * n) * np.sin(2 * np.pi * 3 * n) ** 2
        soundfile.write(folder / f"s{talker}.wav", tone, 16000)
    return folder


def test_report_and_tests_write_what_they_say(tmp_path: Path) -> None:
    tables = "--tiny --samplers diffuseen --tables network convolutions own_convolutions profile kernels tiles "
    tables += "amortised published samplers"
    run(tmp_path, "build", "tests", "sanitize", "report", TESTS="-k silence", REPORT_ARGUMENTS=tables)
    assert "reference" in (tmp_path / "build.txt").read_text()
    assert " passed" in (tmp_path / "tests.txt").read_text()
    for tool in ("memcheck", "racecheck"):
        assert f"compute-sanitizer --tool {tool}" in (tmp_path / f"sanitize-{tool}.txt").read_text()
    page = (tmp_path / "gpu_measured.md").read_text()
    assert page.count("\n## ") == 9
    assert "ailed" not in page


def test_training_goes_on_from_pieces_of_its_state(tmp_path: Path, speech: Path) -> None:
    options = {
        "SPEECH": str(speech),
        "NETWORK": "compact",
        "TRAIN_ARGUMENTS": "--batch-size 2 --crop-seconds 0.5 --threads 1",
    }
    first, carried, second = (tmp_path / name for name in ("first", "carried", "second"))
    run(first, "train", TRAIN_STEPS="1", **options)
    pieces = sorted(first.glob("state-*"))
    assert len(pieces) > 1
    assert all(piece.stat().st_size <= PIECE for piece in pieces)
    carried.mkdir()
    for piece in pieces:
        shutil.copy(piece, carried)
    run(second, "train", TRAIN_STEPS="2", STATE=str(carried), **options)
    training = load_network(second / "prior.safetensors").config["training"]
    assert training["steps"] == 2
    assert training["seconds_of_audio_seen"] == 2  # of both parts


def test_an_unknown_part_is_refused(tmp_path: Path) -> None:
    done = subprocess.run([SCRIPT, "bulid"], env={**os.environ, "OUT": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 2
    assert "got bulid" in done.stderr

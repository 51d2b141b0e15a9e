"""Training in two processes gives the weights of one, files come from the first only, and all stop together."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    for speaker in range(4):
        (folder / f"speaker{speaker}").mkdir()
        soundfile.write(folder / f"speaker{speaker}" / "a.wav", rng.standard_normal(16000) * 0.1, 16000)
    return folder


def start(corpus: Path, out: Path, count: int, *options: str) -> list[subprocess.Popen[str]]:
    """`udse-fast train` in `count` processes, with the environment that torchrun gives them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [
        sys.executable, "-m", "udse_fast", "train", "--speech", str(corpus), "--valid-speech", str(corpus),
        "--out", str(out), "--batch-size", "4", "--crop-seconds", "0.3", "--device", "cpu", "--precision", "float32",
        "--threads", "1", "--ema", "0", *options,
    ]  # fmt: skip
    processes = []
    for rank in range(count):
        environment = {**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
        environment |= {"LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        processes.append(
            subprocess.Popen(  # beside the corpus: in the checkout its sources would hide the package
                command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=corpus
            )
        )
    return processes


def weights(state: Path) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = torch.load(state, weights_only=True)["weights"]
    return loaded


def test_two_processes_give_the_weights_of_one(corpus: Path, tmp_path: Path) -> None:
    results = {}
    for count in (1, 2):
        processes = start(corpus, tmp_path / f"{count}.safetensors", count, "--steps", "3")
        said = [process.communicate(timeout=300) for process in processes]
        assert [process.returncode for process in processes] == [0] * count, said
        results[count] = weights(tmp_path / f"{count}.safetensors.state")
        assert sum("done at step 3" in out for out, _ in said) == 1  # the first speaks
        assert load_file(tmp_path / f"{count}.safetensors")
    moved = 0.0
    for name, one in results[1].items():
        torch.testing.assert_close(results[2][name], one, rtol=1e-3, atol=2e-5)
        moved = max(moved, float(one.float().abs().max()))
    assert moved > 0
    assert not list(tmp_path.glob("*.tmp"))


def test_one_that_is_told_to_stop_stops_them_all_with_everything_saved(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "prior.safetensors"
    processes = start(corpus, out, 2, "--steps", "100000", "--save-minutes", "0.001")
    try:
        until = time.monotonic() + 240
        while not out.with_name(out.name + ".state").exists():
            assert all(process.poll() is None for process in processes)
            assert time.monotonic() < until
            time.sleep(0.1)
        processes[1].send_signal(signal.SIGTERM)
        said = [process.communicate(timeout=120) for process in processes]
        assert [process.returncode for process in processes] == [0, 0], said
        assert "stopped at step" in said[0][0]
    finally:
        for process in processes:
            process.kill()
            process.wait()

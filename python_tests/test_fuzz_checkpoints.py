"""Damaged checkpoints, taggers and states of streams: read or refused in one line; no other error, crash, hang, file
left or program run.

Some run as a test. Many: `python python_tests/test_fuzz_checkpoints.py --count 20000 --seed 1`.
"""

from __future__ import annotations

import copy
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import udse_fast
from udse_fast.checkpoints.checkpoint import load_network, load_visual_encoder, save_checkpoint
from udse_fast.checkpoints.export import export_network
from udse_fast.checkpoints.tagger_file import read_tagger
from udse_fast.networks import build_network
from udse_fast.networks.cnn14 import Cnn14
from udse_fast.streaming.stored_state import stored

SMALL = {"channels": [4, 4], "blocks": [1, 1], "frame_channels": 8, "dilations": [1], "embedding": 8}
STFT = {"n_fft": 510, "hop_length": 255, "window": "sqrt_hann", "sample_rate": 16000}
PROGRAMS = ("os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "subprocess.Popen", "socket.connect")


def refuse_programs(event: str, _: Any) -> None:
    """An audit hook: what no file may do."""
    if event in PROGRAMS:
        raise AssertionError(f"a file ran {event}")


def originals(folder: Path) -> dict[str, bytes]:
    """Small files of every kind, by name; the suffix does not matter to who reads them."""
    architectures = {
        "speech": {"name": "compact", **SMALL},
        "joint": {"name": "compact", **SMALL, "joint": True},
        "posterior": {"name": "compact-posterior", **SMALL},
        "av": {"name": "compact-av", "encoder": {"name": "compact", "features": 4, "channels": [2, 2, 2]}, **SMALL},
    }
    torch.manual_seed(0)
    for name, architecture in architectures.items():
        config = {"architecture": architecture, "stft": STFT}
        save_checkpoint(folder / name, build_network(architecture).state_dict(), config)
    export_network(load_network(folder / "speech"), folder / "script", kind="torchscript")
    golden = Path(__file__).parent / "golden"
    (folder / "lightning").write_bytes((golden / "networks_sgmse" / "ncsnpp.ckpt").read_bytes())
    weights = Cnn14(1).state_dict()
    torch.save({"model": weights}, folder / "tagger")
    torch.save({"model": weights}, folder / "old tagger", _use_new_zipfile_serialization=False)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def read_checkpoint(data: bytes, name: str, folder: Path) -> None:
    """By whoever reads files of its kind."""
    source = folder / "in"
    source.write_bytes(data)
    readers: dict[str, Callable[[Path], object]] = {"tagger": read_tagger, "av": load_visual_encoder}
    readers.get(name.removeprefix("old "), load_network)(source)


class States:
    """A running stream of each kind, with what it has been given before."""

    def __init__(self, small: Path) -> None:
        quick: dict[str, Any] = {"steps": 1, "samples": 1, "precision": "float32", "device": "cpu"}
        self.streams = {
            "native": udse_fast.Enhancer(**quick).open_stream(),
            "overlap": udse_fast.Enhancer(small, sampler="ddrm", **quick).open_stream(
                block_seconds=0.5, overlap_seconds=0.1
            ),
        }
        self.sound = np.random.default_rng(0).normal(0, 0.1, 4000).astype(np.float32)
        self.states = {}
        for name, stream in self.streams.items():
            stream.process(self.sound)
            self.states[name] = stream.state()

    def try_damaged(self, rng: np.random.Generator) -> None:
        """Restore a state with something changed; a native one also with a digest that fits."""
        name = ("native", "overlap")[int(rng.integers(0, 2))]
        state, stream = copy.deepcopy(self.states[name]), self.streams[name]
        signed = name == "native" and rng.random() < 0.5
        if signed:
            core = state["content"]["core"]
            place = rng.integers(0, len(core) if rng.random() < 0.5 else 200, int(rng.integers(1, 9)))
            core[torch.from_numpy(place)] = torch.from_numpy(rng.integers(0, 256, len(place)).astype(np.uint8))
            if rng.random() < 0.2:
                state["content"]["core"] = core[: int(rng.integers(0, len(core)))].clone()
            state = stored(state["belongs_to"], state["content"])
        else:
            state = changed(state, rng)
        try:
            stream.restore(state)
        finally:  # whatever it was, the stream goes on
            if not np.isfinite(stream.process(self.sound)).all():
                raise AssertionError("not finite after a damaged state")


def changed(value: Any, rng: np.random.Generator) -> Any:
    """Something else in one place of it."""
    others = [None, -1, 1e300, "x" * 99, [], {}, torch.zeros(3), np.nan, b"\0", object()]
    if isinstance(value, dict) and value and rng.random() < 0.95:
        key = list(value)[int(rng.integers(0, len(value)))]
        if rng.random() < 0.1:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: changed(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.9:
        place = int(rng.integers(0, len(value)))
        return [changed(v, rng) if i == place else v for i, v in enumerate(value)]
    if isinstance(value, torch.Tensor) and value.numel() and rng.random() < 0.7:
        damaged = value.clone().reshape(-1)
        damaged[int(rng.integers(0, len(damaged)))] += 1
        return damaged.reshape(value.shape) if rng.random() < 0.8 else damaged[:-1]
    return others[int(rng.integers(0, len(others)))]


def serve(connection: Connection) -> None:
    """Main function of the process that tries; it is sent seeds."""
    from test_fuzz_files import mutated

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as made, tempfile.TemporaryDirectory() as folder:
        files = originals(Path(made))
        states = States(Path(made) / "speech")
        sys.addaudithook(refuse_programs)
        while (seed := connection.recv()) is not None:
            try:
                if seed % 4 == 3:
                    name = "state"
                    states.try_damaged(np.random.default_rng(seed))
                else:
                    name, data = mutated(files, seed)
                    read_checkpoint(data, name, Path(folder))
                result = "read"
            except udse_fast.UdseError as error:
                result = "refused" if "\n" not in str(error) else f"several lines: {error}"
            except BaseException as error:
                result = f"{type(error).__name__}: {error}"
            left = {path.name for path in Path(folder).iterdir()} - {"in"}
            connection.send((f"left {left}" if left else result, name))


def test_damaged_checkpoints_and_states(tmp_path: Path) -> None:
    """By the command line: a process without threads, as a fork of one that has them may wait for them for good."""
    command = [sys.executable, __file__, "--count", "300"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    said = re.fullmatch(r"300 tried, (\d+) read, (\d+) refused, 0 wrong\n", done.stdout)
    assert said, done.stdout
    assert min(int(count) for count in said.groups()) > 3


@pytest.mark.parametrize("seed", ["518", "12414"], ids=["count of a storage", "bytes in a pickle"])
def test_a_size_beyond_the_file_is_one_line_and_takes_no_memory(seed: str, tmp_path: Path) -> None:
    """In a file of PyTorch's older format."""
    command = [sys.executable, __file__, "--count", "1", "--seed", seed]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=500)
    assert done.stdout == "1 tried, 0 read, 1 refused, 0 wrong\n", done.stdout + done.stderr


if __name__ == "__main__":
    from test_fuzz_files import main

    sys.exit(main(serve, __doc__))

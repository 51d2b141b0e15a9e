"""The programs of examples/ do what they say."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
import soundfile

from udse_fast import Enhancer

EXAMPLES = Path(__file__).parent.parent / "examples"


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def enhancer(tiny_checkpoints: dict[str, Path]) -> Enhancer:
    return Enhancer(tiny_checkpoints["causal"], "ddrm", steps=2, samples=1, readout="wiener", precision="float32")


def signal(length: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(length).astype(np.float32) * 0.1


def test_a_callback_plays_the_enhanced_signal_after_the_latency(enhancer: Enhancer) -> None:
    module = example("callback")
    x = signal(20 * module.BUFFER)
    callback = module.Callback(enhancer.open_stream())
    played = np.full_like(x, np.nan)
    for at in range(0, len(x), module.BUFFER):
        part = slice(at, at + module.BUFFER)
        callback(x[part, None], played[part, None], module.BUFFER, None, None)
    delay = enhancer.open_stream().latency_samples + module.BUFFER
    expected = enhancer.enhance(x, 16000, causal=True)
    np.testing.assert_array_equal(played[delay:], expected[: len(x) - delay])
    assert not played[:delay].any()
    assert callback.worst > 0


@pytest.mark.needs("websockets")
def test_a_websocket_gives_back_the_enhanced_signal(enhancer: Enhancer) -> None:
    import websockets

    module = example("websocket")
    x = (signal(12_000) * 32767).astype(np.int16)

    async def talk(port: int, pieces: int) -> bytes:
        received = b""
        async with websockets.connect(f"ws://localhost:{port}") as connection:
            for piece in np.array_split(x, pieces):
                await connection.send(piece.astype("<i2").tobytes())
            await connection.send("end")
            async for message in connection:
                received += message
        return received

    async def check() -> tuple[bytes, bytes, int]:
        async with websockets.serve(module.Server(enhancer), "localhost", 0) as server:
            port = next(iter(server.sockets)).getsockname()[1]
            first, second = await asyncio.gather(talk(port, 7), talk(port, 31))
            async with websockets.connect(f"ws://localhost:{port}") as connection:
                await connection.send(b"odd")
                with pytest.raises(websockets.ConnectionClosedError):
                    await connection.recv()
                code = connection.close_code
        return first, second, code or 0

    first, second, code = asyncio.run(check())
    assert first == second == enhancer.enhance(x, 16000, causal=True).astype("<i2").tobytes()
    assert code == 1003


@pytest.mark.parametrize("program", ["ffmpeg", pytest.param("gstreamer", marks=pytest.mark.needs("gstreamer"))])
def test_a_pipe_gives_the_enhanced_signal(
    program: str, enhancer: Enhancer, tiny_checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    x = (signal(12_000) * 32767).astype(np.int16)
    soundfile.write(tmp_path / "in.flac", x, 16000)
    options = ["--checkpoint", str(tiny_checkpoints["causal"]), "--sampler", "ddrm", "--steps", "2", "--samples", "1"]
    options += ["--readout", "wiener", "--precision", "float32"]
    environment = {
        **os.environ,
        "FFMPEG": imageio_ffmpeg.get_ffmpeg_exe(),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    command = [EXAMPLES / "pipe.sh", program, tmp_path / "in.flac", tmp_path / "out.wav", *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(
        soundfile.read(tmp_path / "out.wav", dtype="int16")[0], enhancer.enhance(x, 16000, causal=True)
    )


def test_a_pipe_that_cannot_start_fails(tmp_path: Path) -> None:
    for arguments in ([], ["sox", "a.wav", "b.wav"]):
        done = subprocess.run([EXAMPLES / "pipe.sh", *arguments], capture_output=True, text=True, check=False)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)

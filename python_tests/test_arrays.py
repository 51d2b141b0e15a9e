"""Arrays of every kind: converted, given back alike, and not a matter of torch's default dtype."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from udse_fast import Enhancer, UdseError
from udse_fast.audio.format import AudioFormat

RATE = 16000
FULL_SCALE = {"int16": 2**15, "int32": 2**31, "uint8": 2**7}
RESOLUTION = {"float32": 1e-6, "float64": 1e-6, "float16": 2e-3, "bfloat16": 1e-2, "int16": 1e-4, "int32": 1e-6,
              "uint8": 2e-2}  # fmt: skip


@pytest.fixture(scope="module")
def enhancer(tiny_checkpoint: Path) -> Enhancer:
    return Enhancer(tiny_checkpoint, steps=2, samples=1, precision="float32")


def audio(dtype: str, length: int = 5000) -> np.ndarray:
    x = np.clip(0.1 * np.random.default_rng(0).standard_normal(length), -0.9, 0.9)
    if dtype not in FULL_SCALE:
        return x.astype("float32" if dtype == "bfloat16" else dtype)
    return np.rint(x * FULL_SCALE[dtype] + (128 if dtype == "uint8" else 0)).astype(dtype)


def as_float(y: np.ndarray, dtype: str) -> np.ndarray:
    wide = y.astype(np.float64)
    return (wide - (128 if dtype == "uint8" else 0)) / FULL_SCALE.get(dtype, 1)


@pytest.mark.parametrize("dtype", RESOLUTION)
@pytest.mark.parametrize("kind", ["numpy", "torch", "numpy of the other byte order"])
def test_every_dtype_comes_back(enhancer: Enhancer, dtype: str, kind: str) -> None:
    """The result is that of float32, as far as the dtype can say it."""
    x = audio(dtype)
    given: Any = x
    if kind == "torch":
        given = torch.from_numpy(x).to(getattr(torch, dtype))
    elif dtype == "bfloat16":
        pytest.skip("numpy has none")
    elif kind != "numpy":
        given = x.astype(x.dtype.newbyteorder())
    out = enhancer.enhance(given, RATE)
    assert type(out) is type(given)
    assert out.dtype == given.dtype
    assert out.shape == given.shape
    seen = given.float().numpy() if kind == "torch" else given
    expected = enhancer.enhance(as_float(seen, dtype).astype(np.float32), RATE)
    result = as_float(out.double().numpy() if kind == "torch" else out, dtype)
    if dtype in FULL_SCALE:
        expected = np.clip(expected, -1, 1 - 1 / FULL_SCALE[dtype])
    scale = np.abs(expected).max()
    np.testing.assert_allclose(result, expected, atol=RESOLUTION[dtype] * max(1, scale))


@pytest.mark.parametrize("dtype", RESOLUTION)
def test_streams_keep_the_dtype(enhancer: Enhancer, dtype: str) -> None:
    x = audio(dtype, 40000)
    given = torch.from_numpy(x).to(torch.bfloat16) if dtype == "bfloat16" else x
    stream = enhancer.open_stream(RATE, causal=False, block_seconds=0.5)
    parts = [stream.process(given[start : start + 999]) for start in range(0, len(given), 999)] + [stream.flush()]
    assert {part.dtype for part in parts} == {given.dtype}
    assert sum(len(part) for part in parts) == len(given)


@pytest.mark.parametrize("dtype", FULL_SCALE)
def test_full_scale_is_clipped_and_never_wraps(dtype: str) -> None:
    silence, scale = (128, 128) if dtype == "uint8" else (0, FULL_SCALE[dtype])
    audio_format = AudioFormat.of(np.zeros(4, dtype))
    out = audio_format.from_float(np.array([[1.5, -1.5, 1.0, 0.0]], np.float32))
    top = silence + scale - 1
    assert [int(v) for v in out] == [top, silence - scale, top, silence]


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int64", "bool", "complex64", "U3", "O", "longdouble"])
def test_other_dtypes_are_refused(enhancer: Enhancer, dtype: str) -> None:
    with pytest.raises(UdseError, match=r"audio: expected float32, .*convert it first"):
        enhancer.enhance(np.zeros(100, dtype), RATE)


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_stream_does_not_mix_byte_orders(enhancer: Enhancer, order: str) -> None:
    stream = enhancer.open_stream(RATE)
    stream.process(audio("float32").astype("<f4"))
    chunk = audio("float32").astype(f"{order}f4")
    if order == "<":
        stream.process(chunk)
        return
    with pytest.raises(UdseError, match="byte order"):
        stream.process(chunk)


SCRIPT = """
import hashlib, sys, numpy as np, torch
if sys.argv[1] != "float32":
    torch.set_default_dtype(getattr(torch, sys.argv[1]))
from udse_fast import Enhancer
x = (0.05 * np.random.default_rng(0).standard_normal(20000)).astype(np.float32)
for checkpoint, options in ((sys.argv[2], {}), (sys.argv[3], {}), (sys.argv[4], {"sampler": "paradiffuse_en"})):
    enhancer = Enhancer(checkpoint, steps=2, samples=1, precision="float32", **options)
    stream = enhancer.open_stream(16000)
    for result in (enhancer.enhance(x, 16000), stream.process(x), stream.flush()):
        assert result.dtype == np.float32
        print(hashlib.sha256(result.tobytes()).hexdigest())
"""


def test_the_default_dtype_of_torch_does_not_matter(tiny_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Bit for bit; in processes of their own, as it belongs to a whole process."""
    paths = [str(tiny_checkpoints[name]) for name in ("speech", "causal", "joint")]
    said = {}
    for dtype in ("float32", "float64", "float16"):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, dtype, *paths], capture_output=True, text=True, check=False, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        said[dtype] = done.stdout
    assert said["float64"] == said["float32"]
    assert said["float16"] == said["float32"]

"""Fixtures that several test files share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# `python -m pytest` looks here first, where neither the C++ core nor the kernels are in the package
sys.path[:] = [p for p in sys.path if Path(p).resolve() != Path(__file__).parent.parent]

from udse_fast import _core  # noqa: E402
from udse_fast.checkpoints.checkpoint import save_checkpoint  # noqa: E402
from udse_fast.errors import UdseError  # noqa: E402
from udse_fast.networks import build_network  # noqa: E402


@pytest.fixture(params=["scalar", "avx2", "avx512"])
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Every instruction set of the C++ core that this processor has, with no way around the core."""
    before = _core.isa()
    try:
        _core.set_isa(request.param)
    except UdseError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("UDSE_BACKEND", "cpp")
    yield request.param
    _core.set_isa(before)


@pytest.fixture
def nan_filled_memory() -> Iterator[None]:
    """torch.empty gives NaN, so that an element which is not written is seen."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def tiny_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints of untrained, very small networks, which run in milliseconds: "speech", "joint" and "causal"."""
    folder = tmp_path_factory.mktemp("checkpoints")
    paths = {}
    for name in ("speech", "joint", "causal"):
        architecture = {
            "name": "compact", "channels": [8, 8], "blocks": [1, 1], "frame_channels": 16, "dilations": [1],
            "embedding": 16, "joint": name == "joint", "causal_block": 3 if name == "causal" else 0,
        }  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = build_network(architecture)
            for weight in network.parameters():
                if name == "causal" and not weight.any():  # what starts at zero would hide what comes before it
                    torch.nn.init.normal_(weight, std=0.05)
        stft = {"n_fft": 510, "hop_length": 255, "window": "sqrt_hann", "sample_rate": 16000}
        paths[name] = folder / f"{name}.safetensors"
        save_checkpoint(paths[name], network.state_dict(), {"architecture": architecture, "stft": stft})
    return paths


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_checkpoints: dict[str, Path]) -> Path:
    """The one of speech."""
    return tiny_checkpoints["speech"]

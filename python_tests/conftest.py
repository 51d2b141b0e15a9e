"""Fixtures that several test files share, and `@pytest.mark.needs(...)`: what a test cannot run without."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # the other cores have workers of their own
    os.environ["OMP_NUM_THREADS"] = "1"

import torch

# `python -m pytest` looks here first, where neither the C++ core nor the kernels are in the package
sys.path[:] = [p for p in sys.path if Path(p).resolve() != Path(__file__).parent.parent]

from udse_fast import _core  # noqa: E402
from udse_fast.checkpoints.checkpoint import save_checkpoint  # noqa: E402
from udse_fast.errors import UdseError  # noqa: E402
from udse_fast.networks import build_network  # noqa: E402

STFT = {"n_fft": 510, "hop_length": 255, "window": "sqrt_hann", "sample_rate": 16000}


@cache
def _runs(isa: str) -> bool:
    before = _core.isa()
    try:
        _core.set_isa(isa)
    except UdseError:
        return False
    _core.set_isa(before)
    return True


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


NEEDS: dict[str, Callable[[], object]] = {
    "avx2": partial(_runs, "avx2"),
    "avx512": partial(_runs, "avx512"),
    "compiler": lambda: shutil.which(os.environ.get("CXX", "c++")),
    "cuda": torch.cuda.is_available,
    "fork": lambda: hasattr(os, "fork"),
    "gstreamer": lambda: shutil.which("gst-launch-1.0"),
    "nvcc": lambda: shutil.which("nvcc"),
    "ordinary user": lambda: os.geteuid() != 0,
    **{
        name: partial(_installed, name)
        for name in ("mkdocs", "onnxruntime", "onnxscript", "ray", "triton", "websockets")
    },
}
"""What `@pytest.mark.needs(name, ...)` may name, and how to find out whether it is here.

A test is skipped where something is missing, and fails where the environment variable UDSE_FAIL_WITHOUT (names with
commas between them, or "all") says that it has to be here: then a broken installation cannot pass by skipping.
"""


def _must_be_here() -> set[str]:
    names = {name.strip() for name in os.environ.get("UDSE_FAIL_WITHOUT", "").split(",")} - {""}
    return set(NEEDS) if "all" in names else names


def pytest_configure(config: pytest.Config) -> None:
    """A name that is misspelt would let tests be skipped."""
    if unknown := _must_be_here() - NEEDS.keys():
        raise pytest.UsageError(f"UDSE_FAIL_WITHOUT: expected all or some of {', '.join(NEEDS)}; got {unknown}")


def _require(name: str) -> None:
    """Skip, or fail, the test that runs now if it needs what is not here."""
    if not NEEDS[name]():
        give_up = pytest.fail if name in _must_be_here() else pytest.skip
        give_up(f"needs {name}")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Heed `@pytest.mark.needs(...)`."""
    for mark in item.iter_markers("needs"):
        for name in mark.args:
            _require(name)


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    """What a test sets (`--threads`) is not the next one's."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def require() -> Callable[[str], None]:
    """What `@pytest.mark.needs` is for tests, as a function for fixtures."""
    return _require


@pytest.fixture(params=["scalar", *(pytest.param(name, marks=pytest.mark.needs(name)) for name in ("avx2", "avx512"))])
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Every instruction set of the C++ core that this processor has, with no way around the core."""
    before = _core.isa()
    _core.set_isa(request.param)
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
    """Checkpoints of untrained, very small networks, which run in milliseconds: "speech", "joint" and "causal" priors,
    and a causal posterior network, "posterior_causal"."""
    folder = tmp_path_factory.mktemp("checkpoints")
    paths = {}
    for name in ("speech", "joint", "causal", "posterior_causal"):
        causal, told = name.endswith("causal"), name.startswith("posterior")
        architecture = {
            "name": "compact-posterior" if told else "compact", "channels": [8, 8], "blocks": [1, 1],
            "frame_channels": 16, "dilations": [1], "embedding": 16, "joint": name == "joint",
            "causal_block": 3 if causal else 0,
        }  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = build_network(architecture)
            for weight in network.parameters():
                if causal and not weight.any():  # what starts at zero would hide what comes before it
                    torch.nn.init.normal_(weight, std=0.05)
        paths[name] = folder / f"{name}.safetensors"
        save_checkpoint(paths[name], network.state_dict(), {"architecture": architecture, "stft": STFT})
    return paths


@pytest.fixture(scope="session")
def audio_visual_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a very small audio-visual prior of which every weight matters."""
    architecture = {
        "name": "compact-av", "encoder": {"name": "compact", "features": 6, "channels": [4, 4, 4]},
        "channels": [8, 8, 8], "blocks": [1, 1, 1], "frame_channels": 16, "dilations": [1, 2], "embedding": 16,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_network(architecture)
        for weight in network.parameters():
            weight.data += 0.1 * torch.randn_like(weight)
    path = tmp_path_factory.mktemp("audio_visual") / "av.safetensors"
    save_checkpoint(path, network.state_dict(), {"architecture": architecture, "stft": STFT})
    return path


@pytest.fixture
def fast(tiny_checkpoint: Path) -> list[str]:
    """Options of `udse-fast enhance` with which it takes no time."""
    return ["--steps", "2", "--samples", "1", "--precision", "float32", "--checkpoint", str(tiny_checkpoint)]


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_checkpoints: dict[str, Path]) -> Path:
    """The checkpoint of a speech prior."""
    return tiny_checkpoints["speech"]

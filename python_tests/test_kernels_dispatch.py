"""Which backend runs, and what the compiled core refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from udse_fast import _core
from udse_fast.backends.dispatch import _state, backends, forced_backend, isa, wanted
from udse_fast.errors import UdseError
from udse_fast.kernels.coefficients import Coefficients
from udse_fast.kernels.complex_normal import NoiseKey, complex_normal
from udse_fast.kernels.predictor_corrector import predictor
from udse_fast.kernels.step import Step

C = Coefficients(gamma=1.5, delta=0.6, sigma=0.25, g=0.5, dt=1 / 30)
NUMBERS = (1.5, 0.6, 0.25, 0.5, 1 / 30, 0.5)


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.complex64)


def call(state: np.ndarray, out: np.ndarray | None = None, numbers: Any = NUMBERS, noise: Any = None) -> None:
    _core.update("predictor", state, state, numbers, noise, next=zeros(*state.shape) if out is None else out)


def test_backends_say_what_they_are() -> None:
    _state.cache_clear()  # another test may have changed the instruction set
    state = {backend.name: backend for backend in backends()}
    assert list(state) == ["reference", "cpp", "triton", "cuda"]
    assert state["reference"].available
    assert state["cpp"].available
    assert isa() in state["cpp"].detail
    assert all(backend.detail for backend in state.values())


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a shell leaves it: UDSE_BACKEND= udse-fast ..."""
    for value, wanted_backends in (("", {"reference", "cpp", "triton", "cuda"}), ("cpp", {"cpp"})):
        monkeypatch.setenv("UDSE_BACKEND", value)
        assert forced_backend() == (value or None)
        assert {backend.name for backend in backends() if wanted(backend.name)} == wanted_backends


@pytest.mark.parametrize("name", ["fortran", "CPP"])
def test_unknown_backend(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UDSE_BACKEND", name)
    with pytest.raises(UdseError, match=f"one of reference, cpp, triton, cuda; got '{name}'"):
        complex_normal(NoiseKey(0, "dither"), (1, 1, 1))


def test_a_backend_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    monkeypatch.setenv("UDSE_BACKEND", "cuda")
    with pytest.raises(UdseError, match="UDSE_BACKEND=cuda is not available: "):
        complex_normal(NoiseKey(0, "dither"), (1, 1, 1))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (torch.zeros(1, 2, 3, dtype=torch.complex128), "complex128"),
        (torch.zeros(1, 3, 2, dtype=torch.complex64).mT, "non-contiguous"),
    ],
)
def test_forced_core_refuses_what_it_would_have_to_convert(
    state: torch.Tensor, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert predictor(Step(state, state, C)).dtype == state.dtype  # by the reference
    monkeypatch.setenv("UDSE_BACKEND", "cpp")
    with pytest.raises(UdseError, match=message):
        predictor(Step(state, state, C))


def test_gradients_and_lazy_conjugates_go_through_the_reference() -> None:
    state = torch.randn(1, 2, 3, dtype=torch.complex64)
    leaf = state.clone().requires_grad_()
    predictor(Step(leaf, state, C)).abs().sum().backward()
    assert leaf.grad is not None
    torch.testing.assert_close(
        predictor(Step(state.conj(), state, C)), predictor(Step(state.conj().resolve_conj(), state, C))
    )


def test_core_refuses_other_dtypes_and_layouts() -> None:
    for bad in (
        np.zeros((1, 2, 3), np.complex128),
        np.zeros((1, 2, 3), np.float32),
        zeros(1, 3, 2).swapaxes(1, 2),
    ):
        with pytest.raises(TypeError):
            call(bad, zeros(1, 2, 3))


def test_core_refuses_read_only_results() -> None:
    out = zeros(1, 2, 3)
    out.flags.writeable = False
    with pytest.raises(UdseError, match="next is read-only; give a writeable array"):
        call(zeros(1, 2, 3), out)


def test_core_takes_read_only_inputs() -> None:
    state = zeros(1, 2, 3)
    state.flags.writeable = False
    call(state)


def test_errors_say_the_values() -> None:
    with pytest.raises(UdseError, match=r"state must have shape \(B, F, T\); got \(2, 3\)"):
        call(zeros(2, 3))
    with pytest.raises(UdseError, match=r"next must have shape \(1, 2, 3\); got \(1, 2, 4\)"):
        call(zeros(1, 2, 3), zeros(1, 2, 4))
    with pytest.raises(UdseError, match=r"coefficients must have shape \(6, 3\); got \(6, 2\)"):
        call(zeros(1, 2, 3), numbers=np.ones((6, 2), np.float32))
    with pytest.raises(UdseError, match=r'there is no update "predict"'):
        _core.update("predict", zeros(1, 2, 3), zeros(1, 2, 3), NUMBERS)
    with pytest.raises(UdseError, match=r"noise must have shape \(1, 2, 3\); got \(2, 2, 3\)"):
        call(zeros(1, 2, 3), noise=zeros(2, 2, 3))


def test_no_frames_is_no_work() -> None:
    call(zeros(1, 2, 0))


def test_parallel_callers_get_the_serial_results() -> None:
    """Eight Python threads at once, each asking for eight threads of the pool."""
    out = [zeros(2, 129, 130) for _ in range(32)]

    def draw(index: int) -> None:
        _core.complex_normal((index, 0, 0, 0, 0), out[index], 8)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(draw, range(32)))
    for index, result in enumerate(out):
        expected = zeros(2, 129, 130)
        _core.complex_normal((index, 0, 0, 0, 0), expected, 1)
        assert np.array_equal(result, expected)


@pytest.mark.needs("fork")
def test_the_core_works_in_a_forked_child() -> None:
    """Data loaders fork: the threads of the pool are gone in the child, the work must go on."""
    code = (
        "import os, numpy as np\n"
        "from udse_fast import _core\n"
        "a = np.zeros((2, 256, 256), np.complex64)\n"
        "_core.complex_normal((1, 0, 0, 0, 0), a, 4)\n"
        "pid = os.fork()\n"
        "b = np.zeros_like(a)\n"
        "_core.complex_normal((1, 0, 0, 0, 0), b, 4)\n"
        "assert np.array_equal(a, b)\n"
        "os._exit(0) if pid == 0 else exit(os.waitpid(pid, 0)[1])\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd="/")  # the installed package


@pytest.mark.parametrize(("forced", "status"), [("scalar", 0), ("neon", 1)])
def test_forced_instruction_set(forced: str, status: int) -> None:
    code = "from udse_fast import _core; print(_core.isa())"
    environment = {**os.environ, "UDSE_FORCE_ISA": forced}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, cwd="/"
    )
    assert done.returncode == status
    assert (forced if status == 0 else 'UDSE_FORCE_ISA must be scalar, avx2 or avx512; got "neon"') in (
        done.stdout + done.stderr
    )


@pytest.mark.parametrize(("version", "there"), [("3.2.0+git1", False), ("3.3.0", True), ("4.0.0", True)])
def test_a_triton_that_would_end_the_process_is_not_used(
    version: str, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    triton = pytest.importorskip("triton")
    monkeypatch.setattr(triton, "__version__", version)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    _state.cache_clear()
    try:
        state = {backend.name: backend for backend in backends()}["triton"]
    finally:
        _state.cache_clear()
    assert state.available == there
    assert there or "need triton 3.3 or newer, got 3.2" in state.detail

"""The Triton and CUDA kernels against the float64 references.

Where there is a CUDA device they run on it. Elsewhere Triton runs in its interpreter, and the CUDA source is
built for the host: the same functors, entry points and adapters, without a launch.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from udse_fast import cuda_library
from udse_fast.coefficients import Coefficients
from udse_fast.errors import UdseError
from udse_fast.kernels.complex_normal import NoiseKey

ROOT = Path(__file__).parent.parent
OPERATIONS = (
    "complex_normal",
    "predictor_corrector",
    "likelihood_gradient",
    "nmf_is",
    "compression",
    "network_input",
)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HAS_TRITON = importlib.util.find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # triton reads it when it is imported
BACKENDS = ["cuda"] + ["triton"] * (HAS_TRITON and (DEVICE == "cuda" or INTERPRETED))
TOLERANCE = 5e-6  # of the largest value: float32 rounding of a dozen operations, a GPU's division
ONE_TIME = Coefficients(gamma=1.5, delta=0.6, sigma=0.25, g=0.5, dt=1 / 30, corrector_snr=0.5)
SHAPES = [(1, 1, 1, 1), (3, 5, 67, 3), (2, 8, 33, 5)]
KEYS = NoiseKey(2**40 + 11, "predictor_speech", 3, 2**32 - 9, 6), NoiseKey(1, "predictor_noise", 1, 1, 1)


@dataclass(frozen=True)
class Backend:
    """The modules of one backend, or the references."""

    modules: dict[str, ModuleType]

    def __getattr__(self, name: str) -> Any:
        return next(getattr(m, name) for m in self.modules.values() if hasattr(m, name))


def modules(name: str) -> dict[str, ModuleType]:
    return {o: importlib.import_module(f"udse_fast.kernels.{o}.{name}") for o in OPERATIONS}


REFERENCE = Backend(modules("reference"))


@pytest.fixture(scope="module")
def host_library(tmp_path_factory: pytest.TempPathFactory) -> cuda_library.CudaLibrary:
    """The CUDA source as plain C++."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    folder = tmp_path_factory.mktemp("cuda")
    unit = folder / "unit.cpp"
    unit.write_text("".join(f'#include "{ROOT}/kernels/{o}/{o}.cu"\n' for o in OPERATIONS))
    path = folder / cuda_library.NAME
    flags = ["-std=c++17", "-O1", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'csrc'}"]
    subprocess.run([compiler, *flags, str(unit), "-o", str(path)], check=True, timeout=300)
    return cuda_library.CudaLibrary(path, "cpu")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Backend:
    if request.param == "triton":
        return Backend(modules("triton_kernel"))
    if DEVICE == "cpu":
        host = request.getfixturevalue("host_library")
        monkeypatch.setattr(cuda_library, "cuda_library", lambda: host)
        for module in modules("cuda").values():
            if hasattr(module, "cuda_library"):
                monkeypatch.setattr(module, "cuda_library", lambda: host)
    elif cuda_library.library_path() is None:
        pytest.skip("this installation has no CUDA kernels")
    return Backend(modules("cuda"))


class Inputs:
    """Random arguments of every operation in float32, or, of the same values, in float64."""

    def __init__(self, shape: tuple[int, int, int, int], double: bool) -> None:
        B, F, T, R = shape
        generator = torch.Generator().manual_seed(F * T)
        self.cplx, self.real = (torch.complex128, torch.float64) if double else (torch.complex64, torch.float32)
        self.device = "cpu" if double else DEVICE

        def cplx(*sizes: int) -> torch.Tensor:
            return torch.randn(*sizes, generator=generator, dtype=torch.complex64).to(self.device, self.cplx)

        def positive(*sizes: int) -> torch.Tensor:
            return torch.rand(*sizes, generator=generator).to(self.device, self.real) + 0.01

        self.shape = (B, F, T)
        self.s, self.S, self.n, self.N, self.z, self.z2 = (cplx(B, F, T) for _ in range(6))
        self.x = cplx(F, T)
        self.factors = positive(F, R), positive(R, T)
        self.V = self.factors[0] @ self.factors[1]
        self.P, self.A, self.B = positive(F, T) ** 2, positive(F, R), positive(F, R)
        self.ramp = torch.linspace(0.5, 1.5, T, dtype=torch.float64)


def single(name: str, **keywords: Any) -> Callable[..., Any]:
    """An update of the speech state alone, with V as its factors."""
    return lambda m, a, c, z, z2: getattr(m, name)(a.s, a.S, a.x, a.factors, c, z, **keywords)


UPDATES: dict[str, Callable[..., Any]] = {
    "corrector": lambda m, a, c, z, z2: m.corrector(a.s, a.S, c, z),
    "predictor": lambda m, a, c, z, z2: m.predictor(a.s, a.S, c, z),
    "udiffse": single("marginal_guidance", power_of_state=True),
    "udiffse_unguided": single("marginal_guidance", apply=False, power_of_state=True),
    "udiffse_plus": single("marginal_guidance"),
    "udiffse_plus_paper": single("marginal_guidance", divide_tweedie=True),
    "given_variance": lambda m, a, c, z, z2: m.marginal_guidance(a.s, a.S, a.x, a.V, c, z, c.sigma),
    "depse_il": single("product_of_gaussians"),
    "depse_tl": lambda m, a, c, z, z2: m.product_of_gaussians(
        a.s, a.S, a.x, a.factors, c, z, forward_noise=z2, divide_tweedie=True
    ),
    "diffuseen": single("noise_posterior_guidance"),
    "diffuseen_paper": single("noise_posterior_guidance", paper_posterior=True, want_noise=True),
    "predictor_residual": lambda m, a, c, z, z2: m.predictor_residual(a.s, a.S, a.x, c, z, z2),
    "score_noise_guidance": lambda m, a, c, z, z2: m.score_noise_guidance(a.s, a.S, c, 0.7),
    "paradiffuse_en": lambda m, a, c, z, z2: m.joint_guidance(a.s, a.S, a.n, a.N, a.x, c, z, z2, 5.75 * c.sigma),
    "paradiffuse_en_last": lambda m, a, c, z, z2: m.joint_guidance(a.s, a.S, a.n, a.N, a.x, c, z, z2, 1.0, apply=False),
}
OTHERS: dict[str, Callable[..., Any]] = {
    "complex_normal": lambda m, a: m.complex_normal(KEYS[0], a.shape, a.cplx, a.device),
    "network_input": lambda m, a: m.network_input(a.s, 0.7, a.real),
    "network_input_per_frame": lambda m, a: m.network_input(a.s, a.ramp.to(a.device), a.real),
    "compress": lambda m, a: m.compress(a.s),
    "compress_cube_root": lambda m, a: m.compress(a.s, 1 / 3, 0.3),
    "decompress": lambda m, a: m.decompress(a.s),
    "decompress_cube_root": lambda m, a: m.decompress(a.s, 1 / 3, 0.3),
    "nmf": lambda m, a: m.nmf_update(a.P, *a.factors, 3),
    "nmf_fixed_w": lambda m, a: m.nmf_update(a.P, *a.factors, 2, fixed_w=True),
    "nmf_nothing": lambda m, a: m.nmf_update(a.P, *a.factors, 0),
    "online_nmf": lambda m, a: m.online_nmf_update(a.P, a.factors[0], a.A, a.B, 0.9, 2),
    "online_nmf_started": lambda m, a: m.online_nmf_update(a.P, a.factors[0], a.A, a.B, 0.0, 1, a.factors[1]),
}


def assert_close(results: Any, expected: Any) -> None:
    if isinstance(expected, torch.Tensor):
        results, expected = (results,), (expected,)
    assert len(results) == len(expected)
    for result, value in zip(results, expected, strict=True):
        if value is None:
            assert result is None
            continue
        bound = TOLERANCE * max(1.0, float(value.abs().max()))
        torch.testing.assert_close(result.cpu().to(value.dtype), value, rtol=0, atol=bound)


@pytest.mark.usefixtures("nan_filled_memory")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", OTHERS)
def test_operation_is_the_float64_reference(backend: Backend, name: str, shape: tuple[int, int, int, int]) -> None:
    results = OTHERS[name](backend, Inputs(shape, False))
    assert_close(results, OTHERS[name](REFERENCE, Inputs(shape, True)))


@pytest.mark.usefixtures("nan_filled_memory")
@pytest.mark.parametrize(
    ("shape", "noise", "per_frame"),
    [
        (SHAPES[0], "drawn", True),
        (SHAPES[1], "given", True),
        (SHAPES[1], "none", False),
        (SHAPES[2], "drawn", False),
    ],
)
@pytest.mark.parametrize("name", UPDATES)
def test_update_is_the_float64_reference(
    backend: Backend, name: str, shape: tuple[int, int, int, int], noise: str, per_frame: bool
) -> None:
    single_precision, double = Inputs(shape, False), Inputs(shape, True)
    results = []
    for module, a in ((backend, single_precision), (REFERENCE, double)):
        c = Coefficients(*(v * a.ramp for v in ONE_TIME.values())) if per_frame else ONE_TIME
        draws = {"given": (a.z, a.z2), "drawn": KEYS, "none": (None, None)}[noise]
        results.append(UPDATES[name](module, a, c, *draws))
    assert_close(*results)


def layer_cases(dtype: torch.dtype = torch.float32) -> list[tuple[str, tuple[Any, ...]]]:
    """(function, arguments): 6 channels per group, several tiles, odd sizes; with and without conditions."""
    generator = torch.Generator().manual_seed(0)

    def normal(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, generator=generator).to(DEVICE, dtype)

    x = (3 + normal(2, 12, 47, 33)).contiguous(memory_format=torch.channels_last)
    before, scale, shift = (normal(2, 12, 1, 1) for _ in range(3))
    weight, bias = normal(12), normal(12)
    small = normal(2, 5, 6, 10)
    return [
        ("norm_film_silu", (x, weight, bias, 2)),
        ("norm_film_silu", (x, weight, bias, 2, before)),
        (
            "norm_film_silu",
            (small, bias[:5], weight[:5], 1, before[:1, :5], scale[:, :5], shift[:, :5], False),
        ),
        ("residual_sum", (x, x.flip(0), bias, 0.7)),
        ("resample", (small, True)),
        ("resample", (small, False)),
    ]


@pytest.mark.usefixtures("nan_filled_memory")
@pytest.mark.skipif("triton" not in BACKENDS, reason="runs in the interpreter")
@pytest.mark.parametrize("case", range(6))
def test_layer_of_triton_is_the_plain_one(case: int) -> None:
    fused_layers, reference = (
        importlib.import_module(f"udse_fast.kernels.fused_layers.{name}") for name in ("triton_kernel", "reference")
    )
    name, arguments = layer_cases()[case]
    double = (x.cpu().double() if isinstance(x, torch.Tensor) else x for x in arguments)
    assert_close(getattr(fused_layers, name)(*arguments), getattr(reference, name)(*double))


def test_in_place_is_the_same(backend: Backend) -> None:
    expected = UPDATES["paradiffuse_en"](REFERENCE, Inputs(SHAPES[1], True), ONE_TIME, *KEYS)
    a = Inputs(SHAPES[1], False)
    results = backend.joint_guidance(a.s, a.S, a.n, a.N, a.x, ONE_TIME, *KEYS, 5.75 * ONE_TIME.sigma, out=(a.s, a.n))
    assert results[0] is a.s
    assert_close(results, expected)


def test_silence_and_no_frames(backend: Backend) -> None:
    zero = torch.zeros(2, 3, 5, dtype=torch.complex64, device=DEVICE)
    assert torch.equal(backend.compress(zero), zero)
    assert torch.equal(backend.decompress(zero), zero)
    W, H = backend.nmf_update(zero[0].real.contiguous(), *Inputs((1, 3, 5, 2), False).factors, 3)
    assert W.isfinite().all()
    assert H.isfinite().all()
    assert backend.predictor(zero[..., :0], zero[..., :0], ONE_TIME, None).shape == (2, 3, 0)


@pytest.mark.skipif(not HAS_TRITON or "triton" in BACKENDS, reason="needs triton, and no CUDA device")
def test_triton_kernels_in_the_interpreter() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        __file__,
        "-k",
        "triton and not compile",
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.skipif(not HAS_TRITON, reason="needs triton")
def test_triton_kernels_compile_for_ampere_and_hopper(tmp_path: Path) -> None:
    """Every call of the adapters, compiled but not launched."""
    code = f"""
import sys, importlib, importlib.util, torch, triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction
spec = importlib.util.spec_from_file_location("cases", {str(__file__)!r})
cases = importlib.util.module_from_spec(spec)
sys.modules["cases"] = cases
spec.loader.exec_module(cases)
class Driver:
    def __init__(self, capability): self.capability = capability
    def get_current_target(self): return GPUTarget("cuda", self.capability, 32)
    def get_current_device(self): return self.capability
    def get_current_stream(self, device): return 0
run, compiled = JITFunction.run, []
def compile_only(self, *args, grid, warmup, **kwargs):
    compiled.append(run(self, *args, grid=grid, warmup=True, **kwargs))
JITFunction.run = compile_only
backend = cases.Backend(cases.modules("triton_kernel"))
importlib.import_module("udse_fast.kernels.fused_layers.triton_kernel")
for capability in (80, 90):
    triton.runtime.driver.set_active(Driver(capability))
    a = cases.Inputs((2, 8, 32, 4), False)
    for name, operation in cases.OTHERS.items():
        if name in sys.argv[1:]: operation(backend, a)
    for name, update in cases.UPDATES.items():
        if name in sys.argv[1:]: update(backend, a, cases.ONE_TIME, *cases.KEYS)
    for name, arguments in cases.layer_cases(torch.bfloat16):
        getattr(sys.modules["udse_fast.kernels.fused_layers.triton_kernel"], name)(*arguments)
    targets = {{k.metadata.target.arch for k in compiled if k.asm["cubin"]}}
    assert capability in targets, targets
print(len(compiled))
"""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = os.environ.get("TRITON_CACHE_DIR", str(tmp_path))
    names = ["complex_normal", "network_input", "compress", "nmf", "online_nmf", "corrector", "udiffse_plus"]
    names += ["diffuseen_paper", "depse_tl", "predictor_residual", "score_noise_guidance", "paradiffuse_en"]
    done = subprocess.run(
        [sys.executable, "-c", code, *names], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 2 * len(names)


def test_the_structures_are_checked(host_library: cuda_library.CudaLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    class Longer(ctypes.Structure):
        _fields_ = (("step", cuda_library.Step), ("more", ctypes.c_int64))

    monkeypatch.setattr(cuda_library, "Step", Longer)
    with pytest.raises(UdseError, match="another version"):
        cuda_library.CudaLibrary(host_library.path, "cpu")


def test_what_is_not_there_is_said(
    host_library: cuda_library.CudaLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UdseError, match="do not load"):
        cuda_library.CudaLibrary(tmp_path / "absent.so")
    elsewhere = cuda_library.CudaLibrary(host_library.path, "cuda")
    with pytest.raises(UdseError, match="expected tensors on cuda, got cpu"):
        elsewhere.call("corrector", torch.zeros(1), None)
    monkeypatch.setattr(cuda_library, "library_path", lambda: None)
    cuda_library.cuda_library.cache_clear()
    with pytest.raises(UdseError, match="UDSE_CUDA=ON"):
        cuda_library.cuda_library()


def test_a_rank_that_does_not_fit_is_refused(host_library: cuda_library.CudaLibrary) -> None:
    power = torch.rand(4, 4)
    nmf = cuda_library.NMF(4, 4, 33, power.data_ptr(), power.data_ptr(), power.data_ptr(), 1e-10)
    with pytest.raises(UdseError, match=r"1\.\.32"):
        host_library.call("nmf_update", power, ctypes.byref(nmf), 1, 0)

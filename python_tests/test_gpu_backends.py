"""The Triton and CUDA kernels against the float64 references.

Where there is a CUDA device they run on it. Elsewhere Triton runs in its interpreter, and the CUDA source in the
emulation of csrc/emulation: the same kernels, launches, entry points and adapters.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from udse_fast.backends import cuda_library
from udse_fast.backends import dispatch as backends
from udse_fast.backends.cuda_graphs import Replayed, cuda_graphs
from udse_fast.block_enhancer import OverlapBlockEnhancer, enhance_blocks
from udse_fast.enhancer import Enhancer
from udse_fast.errors import UdseError
from udse_fast.kernels import fused_layers
from udse_fast.kernels import step as step_kernels
from udse_fast.kernels.coefficients import Coefficients
from udse_fast.kernels.complex_normal import NoiseKey
from udse_fast.kernels.convolution import Convolution, choice
from udse_fast.kernels.fused_layers import reference
from udse_fast.kernels.step import UPDATES as DECLARED
from udse_fast.kernels.step import Step
from udse_fast.networks.ncsnpp import NCSNpp
from udse_fast.networks.optimised import fused_ncsnpp
from udse_fast.sampling.noise_models import NMF, FixedVariance
from udse_fast.sampling.passes import run
from udse_fast.sampling.posterior import ReversePass, SamplerSettings, per_frame
from udse_fast.sampling.requests import FunctionPrior
from udse_fast.sampling.samplers import SAMPLERS
from udse_fast.sampling.sde import OUVE
from udse_fast.streaming.blocks import Block

OF_PRIORS = [
    name
    for name, row in SAMPLERS.items()
    if row.network == "prior" and not row.likelihood.needs_posterior_network  # alone
]

ROOT = Path(__file__).parent.parent
OPERATIONS = (
    "complex_normal",
    "predictor_corrector",
    "posterior_step",
    "nmf_is",
    "compression",
    "fused_layers",
    "convolution",
)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HAS_TRITON = importlib.util.find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # triton reads it when it is imported
BACKENDS = ["cuda"] + ["triton"] * (HAS_TRITON and (DEVICE == "cuda" or INTERPRETED))
TOLERANCE = 5e-6  # of the largest value: float32 rounding of a dozen operations, a GPU's division
ROUNDING = {  # of each value; the interpreter cuts to bfloat16
    torch.float16: 2**-11,
    torch.bfloat16: 2**-7 if INTERPRETED else 2**-8,
}
ONE_TIME = Coefficients(gamma=1.5, delta=0.6, sigma=0.25, g=0.5, dt=1 / 30, corrector_snr=0.5)
SHAPES = [(1, 1, 1, 1), (3, 5, 67, 3), (2, 8, 33, 5)]
KEYS = NoiseKey(2**40 + 11, "predictor_speech", 3, 2**32 - 9, 6), NoiseKey(1, "predictor_noise", 1, 1, 1)


def in_memory(keys: tuple[NoiseKey, ...], device: str) -> tuple[NoiseKey, ...]:
    """The same draws with the first frame where a kernel reads it."""
    return tuple(replace(key, first_frame=torch.tensor(key.first_frame, device=device)) for key in keys)


@dataclass(frozen=True)
class Backend:
    """The modules of one backend, or the references."""

    modules: dict[str, ModuleType]

    def __getattr__(self, name: str) -> Any:
        if name in DECLARED and "step" in self.modules:
            run, declared = self.modules["step"].run, DECLARED[name]
            return lambda step, **options: run(declared, declared.arguments(declared.values(step), options))
        folder, function = next((f, vars(m)[name]) for f, m in self.modules.items() if name in vars(m))
        if folder in ("fused_layers", "convolution", "predictor_corrector", "posterior_step"):
            return function
        named = backends.named_arguments(vars(importlib.import_module(f"udse_fast.kernels.{folder}.reference"))[name])
        return lambda *args, **keywords: function(**named(*args, **keywords))


def modules(name: str) -> dict[str, ModuleType]:
    updates = ("predictor_corrector", "posterior_step") if name == "reference" else ("step",)
    folders = (*updates, "complex_normal", "nmf_is", "compression", "fused_layers", "convolution")
    return {folder: importlib.import_module(f"udse_fast.kernels.{folder}.{name}") for folder in folders}


REFERENCE = Backend(modules("reference"))


@pytest.fixture(scope="module")
def host_library(tmp_path_factory: pytest.TempPathFactory, require: Callable[[str], None]) -> cuda_library.CudaLibrary:
    """The CUDA source for the emulation."""
    require("compiler")
    compiler = os.environ.get("CXX", "c++")
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
        # not by cuBLAS, which older torch refuses where memory is filled with NaN
        self.V = (self.factors[0][:, :, None] * self.factors[1]).sum(1)
        self.C = positive(B, F, T)
        self.P, self.A, self.B = positive(F, T) ** 2, positive(F, R), positive(F, R)
        self.ramp = torch.linspace(0.5, 1.5, T, dtype=torch.float64)


UPDATES: dict[str, tuple[str, dict[str, Any]]] = {
    "corrector": ("corrector", {}),
    "predictor": ("predictor", {}),
    "udiffse": ("marginal_guidance", {"power_of_state": True}),
    "udiffse_unguided": ("marginal_guidance", {"apply": False, "power_of_state": True}),
    "udiffse_plus": ("marginal_guidance", {}),
    "udiffse_plus_paper": ("marginal_guidance", {"divide_tweedie": True}),
    "given_variance": ("marginal_guidance", {"guidance": "sigma"}),
    "depse_il": ("product_of_gaussians", {}),
    "depse_tl": ("product_of_gaussians", {"divide_tweedie": True}),
    "diffuseen": ("noise_posterior_guidance", {}),
    "diffuseen_paper": ("noise_posterior_guidance", {"paper_posterior": True, "want_noise": True}),
    "predictor_residual": ("predictor_residual", {}),
    "score_noise_guidance": ("score_noise_guidance", {"guidance": 0.7}),
    "paradiffuse_en": ("joint_guidance", {"guidance": "sigma"}),
    "paradiffuse_en_last": ("joint_guidance", {"guidance": 1.0, "apply": False}),
    "unexplained_power": ("unexplained_power", {"noise_bias": 2.5}),
    "ddrm": ("ddrm_step", {}),
    "ddrm_given_variance": ("ddrm_step", {"eta": 0.3}),
    "posterior_mean": ("posterior_mean", {}),
}
"""Case -> update and its options."""


def call(backend: Backend, name: str, a: Inputs, c: Coefficients, z: Any, z2: Any) -> Any:
    """A case in a backend. The level of the next step is below V in some bins and above it in others."""
    update, options = UPDATES[name]
    if options.get("guidance") == "sigma":
        options = {**options, "guidance": 5.75 * c.sigma}
    V = a.V if "given_variance" in name else a.factors
    second = None if name == "depse_il" else z2
    step = Step(a.s, a.S, c, z, a.x, V, a.C, replace(c, delta=0.7, sigma=3 * c.sigma), a.n, a.N, second)
    return getattr(backend, update)(step, **options)


OTHERS: dict[str, Callable[..., Any]] = {
    "complex_normal": lambda m, a: m.complex_normal(KEYS[0], a.shape, a.cplx, a.device),
    "complex_normal_in_memory": lambda m, a: m.complex_normal(in_memory(KEYS, a.device)[0], a.shape, a.cplx, a.device),
    "compress": lambda m, a: m.compress(a.s),
    "compress_cube_root": lambda m, a: m.compress(a.s, 1 / 3, 0.3),
    "decompress": lambda m, a: m.decompress(a.s),
    "decompress_cube_root": lambda m, a: m.decompress(a.s, 1 / 3, 0.3),
    "nmf": lambda m, a: m.nmf_update(a.P, *a.factors, 3),
    "nmf_nothing": lambda m, a: m.nmf_update(a.P, *a.factors, 0),
    "online_nmf": lambda m, a: m.online_nmf_update(a.P, *a.factors, a.A, a.B, 0.9, 2),
    "online_nmf_from_nothing": lambda m, a: m.online_nmf_update(a.P, *a.factors, a.A, a.B, 0.0, 0),
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
        rounding = ROUNDING.get(result.dtype, 0)
        torch.testing.assert_close(result.cpu().to(value.dtype), value, rtol=rounding, atol=bound)


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
        (SHAPES[2], "drawn in memory", False),
    ],
)
@pytest.mark.parametrize("name", UPDATES)
def test_update_is_the_float64_reference(
    backend: Backend, name: str, shape: tuple[int, int, int, int], noise: str, per_frame: bool
) -> None:
    single_precision, double = Inputs(shape, False), Inputs(shape, True)
    results = []
    for module, a, drawn in ((backend, single_precision, in_memory(KEYS, DEVICE)), (REFERENCE, double, KEYS)):
        c = Coefficients(*(v * a.ramp for v in ONE_TIME.values())) if per_frame else ONE_TIME
        draws = {"given": (a.z, a.z2), "drawn": KEYS, "drawn in memory": drawn, "none": (None, None)}[noise]
        results.append(call(module, name, a, c, *draws))
    assert_close(*results)


LAYERS: dict[str, tuple[str, Callable[..., tuple[Any, ...]]]] = {
    "norm": ("norm_film_silu", lambda a: (a.x, a.weight, a.bias, 4)),
    "norm_before": ("norm_film_silu", lambda a: (a.x, a.weight, a.bias, 2, a.before)),
    "norm_film": (
        "norm_film_silu",
        lambda a: (a.odd, a.bias[:5], a.weight[:5], 1, a.before[:1, :5], a.scale[:, :5], a.shift[:, :5], False),
    ),
    "norm_film_of_one_map": (  # scale and shift as two halves of it, which are not copied
        "norm_film_silu",
        lambda a: (a.x, a.weight, a.bias, 4, a.before[:1], *a.film.chunk(2, 1)),
    ),
    "norm_film_of_two_maps": (
        "norm_film_silu",
        lambda a: (a.x, a.weight, a.bias, 4, None, a.film.chunk(2, 1)[0], a.shift),
    ),
    "norm_far_from_zero": ("norm_film_silu", lambda a: (a.far, a.weight, a.bias, 3, a.before, a.scale, a.shift)),
    "norm_of_one_position": ("norm_film_silu", lambda a: (a.x[..., :1, :1], a.weight, a.bias, 2)),
    "norm_of_two_maps": ("norm_film_silu", lambda a: (a.x, a.of(32), a.of(32), 4, *[None] * 3, True, a.far[:, :8])),
    "norm_of_two_odd_maps": (
        "norm_film_silu",  # a group of channels of both
        lambda a: (a.odd, a.of(9), a.of(9), 3, a.of(9)[None, :, None, None], *[None] * 2, True, a.odd[:, :4].flip(3)),
    ),
    "norm_of_measured_maps": (
        "norm_film_silu",
        lambda a: (a.x, a.of(32), a.of(32), 4, *[None] * 3, True, a.far[:, :8], a.measured(a.x, a.far[:, :8])),
    ),
    "norm_of_a_measured_map": (
        "norm_film_silu",
        lambda a: (a.x, a.weight, a.bias, 2, *[None] * 3, False, None, (*a.measured(a.x), None)),
    ),
    "norm_of_a_measured_skip": (
        "norm_film_silu",
        lambda a: (a.x, a.of(32), a.of(32), 4, *[None] * 3, True, a.far[:, :8], (None, *a.measured(a.far[:, :8]))),
    ),
    "statistics": ("tile_statistics", lambda a: (a.far,)),
    "statistics_odd": ("tile_statistics", lambda a: (a.odd,)),
    "measured_sum": ("measured_sum", lambda a: (a.x, a.far, a.bias, 0.7)),
    "measured_sum_odd": ("measured_sum", lambda a: (a.odd, a.odd.flip(0), a.bias[:5], 1.0)),
    "residual_sum": ("residual_sum", lambda a: (a.x, a.x.flip(0), a.bias, 0.7)),
    "residual_sum_odd": ("residual_sum", lambda a: (a.odd, a.odd.flip(0), a.bias[:5], 1.0)),
    "resample_up": ("resample", lambda a: (a.odd, True)),
    "resample_down": ("resample", lambda a: (a.odd, False)),
    "resample_up_packed": ("resample", lambda a: (a.x[:, :, :5, :7], True)),
    "resample_down_packed": ("resample", lambda a: (a.x[:, :, :6, :], False)),
    "unaligned": ("residual_sum", lambda a: (a.unaligned, a.x[:, :8], a.bias[:8], 0.7)),
}
"""Name -> function and its arguments."""


class LayerInputs:
    """Random numbers of `dtype` on the device, or the same in float64 on the CPU.

    6 to 12 channels per group, several tiles, the last one not full; odd sizes; memory that is aligned and not.
    """

    def __init__(self, dtype: torch.dtype, double: bool) -> None:
        generator = torch.Generator().manual_seed(0)

        def normal(*sizes: int, mean: float = 0) -> torch.Tensor:
            z = (mean + torch.randn(*sizes, generator=generator)).to(dtype)
            return z.double() if double else z.to(DEVICE)

        self.x = normal(2, 24, 47, 33, mean=3).contiguous(memory_format=torch.channels_last)
        self.far = normal(2, 24, 47, 33, mean=20).contiguous(memory_format=torch.channels_last)
        self.before, self.scale, self.shift = (normal(2, 24, 1, 1) for _ in range(3))
        self.film = normal(2, 48, 1, 1)
        self.weight, self.bias = normal(24), normal(24)
        self.odd = normal(2, 5, 6, 10)
        self.unaligned = normal(1 + 2 * 47 * 33 * 8)[1:].view(2, 47, 33, 8).permute(0, 3, 1, 2)
        self.weights = normal(32)

    def of(self, channels: int) -> torch.Tensor:
        return self.weights[:channels]

    @staticmethod
    def measured(*maps: torch.Tensor) -> list[torch.Tensor]:
        return [reference.tile_statistics(x) for x in maps]


def layer(backend: Backend, name: str, inputs: LayerInputs) -> Any:
    """A case in a backend."""
    function, arguments = LAYERS[name]
    values = arguments(inputs)
    return getattr(backend, function)(*((reference.Norm(*values),) if function == "norm_film_silu" else values))


@pytest.mark.usefixtures("nan_filled_memory")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_layer_is_the_float64_reference(backend: Backend, name: str, dtype: torch.dtype) -> None:
    function, _ = LAYERS[name]
    result = layer(backend, name, LayerInputs(dtype, False))
    expected = layer(REFERENCE, name, LayerInputs(dtype, True))
    if function == "measured_sum":  # statistics are those of the rounded sum
        expected = expected[0], reference.tile_statistics(result[0].double().cpu())
    assert (result if function.startswith(("norm", "res")) else result[0]).dtype == (
        torch.float32 if function == "tile_statistics" else dtype
    )
    assert_close(result, expected)


@pytest.mark.usefixtures("nan_filled_memory")
@pytest.mark.parametrize("name", [name for name in LAYERS if name.startswith(("norm", "statistics", "measured"))])
def test_norm_of_long_tiles(backend: Backend, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps of more positions than the tests can have: few tiles, each read in several steps."""
    monkeypatch.setattr(reference, "MAX_TILES", 2)
    result = layer(backend, name, LayerInputs(torch.float32, False))
    assert_close(result, layer(REFERENCE, name, LayerInputs(torch.float32, True)))


@pytest.mark.usefixtures("nan_filled_memory")
@pytest.mark.parametrize("joint", [False, True])
def test_fused_network_is_the_plain_one(backend: Backend, joint: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the kernels."""
    monkeypatch.setattr(fused_layers, "_module", lambda x: backend.modules["fused_layers"])
    torch.manual_seed(0)
    plain = NCSNpp(nf=20, ch_mult=(1, 2), joint=joint).to(DEVICE, memory_format=torch.channels_last)
    for parameter in plain.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    x, time = torch.randn(2, 2, 8, 12, device=DEVICE), torch.tensor([0.8, 0.3], device=DEVICE)
    with torch.no_grad():
        expected, result = (n.predict_noise(x, time) for n in (plain, fused_ncsnpp(plain)))
    assert float((result - expected).norm() / expected.norm()) < 1e-4


class ConvolutionInputs:
    """Random numbers of `dtype` on the device, or the same in float64 on the CPU; maps of odd sizes in many tiles."""

    def __init__(self, dtype: torch.dtype, double: bool) -> None:
        self.dtype, self.double = dtype, double
        self.generator = torch.Generator().manual_seed(0)

    def map(self, channels: int, mean: float = 0.5) -> torch.Tensor:
        x = self.numbers(2, channels, 9, 19, mean=mean)
        return x.contiguous(memory_format=torch.channels_last)

    def numbers(self, *sizes: int, mean: float = 0, factor: float = 1) -> torch.Tensor:
        z = (mean + factor * torch.randn(*sizes, generator=self.generator)).to(self.dtype)
        return z.double() if self.double else z.to(DEVICE)

    def weight(self, channels: int, out: int, size: int = 3) -> torch.Tensor:
        return self.numbers(out, channels, size, size, factor=(channels * size**2) ** -0.5)

    def norm(
        self, channels: int, groups: int, skip: int = 0, film: bool = False, measured: bool = False
    ) -> reference.Norm:
        maps = [self.map(channels, 3.0), *([self.map(skip, -2.0)] if skip else [])]
        weight, bias = (self.numbers(channels + skip) for _ in range(2))
        conditions = [self.numbers(2, channels + skip, 1, 1) if film else None for _ in range(3)]
        statistics = [reference.tile_statistics(x) if measured else None for x in maps] + [None] * (not skip)
        other = maps[1] if skip else None
        return reference.Norm(maps[0], weight, bias, groups, *conditions, True, other, statistics)


CONVOLUTIONS: dict[str, Callable[[ConvolutionInputs], Convolution]] = {
    "plain": lambda a: Convolution(a.map(16), a.weight(16, 24)),
    "odd": lambda a: Convolution(a.map(5), a.weight(5, 7), a.numbers(7), measured=True),
    "pointwise": lambda a: Convolution(a.map(40), a.weight(40, 12, 1), a.numbers(12), measured=True),
    "norm": lambda a: Convolution(a.norm(40, 4), a.weight(40, 16), measured=True),
    "residual": lambda a: Convolution(
        a.norm(24, 3, film=True), a.weight(24, 24), a.numbers(24), (a.map(24),), None, 0.7, True
    ),
    "shortcut": lambda a: Convolution(
        a.norm(20, 5, film=True), a.weight(20, 20), a.numbers(20), (a.map(40),), a.weight(40, 20, 1)[:, :, 0, 0],
    ),
    "two_maps": lambda a: Convolution(a.norm(24, 3, 9, measured=True), a.weight(33, 40), measured=True),
    "two_maps_added": lambda a: Convolution(
        a.norm(12, 3), a.weight(12, 70), a.numbers(70), (a.map(12), a.map(7)), a.weight(19, 70, 1)[:, :, 0, 0],
        measured=True,
    ),
    "published": lambda a: Convolution(
        a.norm(96, 24, measured=True), a.weight(96, 96), a.numbers(96), (a.map(96),), None, 0.7, True
    ),
}  # fmt: skip
"""Name -> a convolution."""


def by_definition(job: Convolution) -> torch.Tensor:
    """In plain torch."""
    F, h, norm = torch.nn.functional, job.input, job.input
    if isinstance(norm, reference.Norm):
        h = norm.x if norm.skip is None else torch.cat([norm.x, norm.skip], 1)
        if norm.before is not None and norm.scale is not None and norm.shift is not None:
            h = F.group_norm(h + norm.before, norm.groups, norm.weight, norm.bias, reference.EPS)
            h = F.silu(h * norm.scale + norm.shift)
        else:
            h = F.silu(F.group_norm(h, norm.groups, norm.weight, norm.bias, reference.EPS))
    assert isinstance(h, torch.Tensor)
    out = F.conv2d(h, job.weight, job.bias, padding="same")
    if job.shortcut is not None:
        return out + F.conv2d(torch.cat(job.added, 1), job.shortcut[:, :, None, None])
    return out + job.factor * job.added[0] if job.added else out


def check_convolution(backend: Backend, name: str, dtype: torch.dtype) -> None:
    """The largest difference, and what is made of the statistics."""
    out, statistics = backend.convolution(job := CONVOLUTIONS[name](ConvolutionInputs(dtype, False)))
    expected = by_definition(CONVOLUTIONS[name](ConvolutionInputs(dtype, True)))
    assert out.dtype == dtype
    assert out.is_contiguous(memory_format=torch.channels_last)
    rounding = {torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]  # of what is activated, and of the sum
    assert float((out.cpu() - expected).abs().max()) < rounding * float(expected.abs().max())
    assert (statistics is None) == (not job.measured)
    if statistics is not None:
        assert torch.equal(statistics[2].sum(1), torch.full_like(statistics[2, :, 0], 9 * 19))
        variance, mean = torch.var_mean(out.double().flatten(2), 2, correction=0)
        for of_tiles, whole in zip(reference.moments(statistics.double()), (mean, variance), strict=True):
            torch.testing.assert_close(of_tiles, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("nan_filled_memory")
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution_is_the_float64_one(backend: Backend, name: str) -> None:
    check_convolution(backend, name, torch.float16)


@pytest.mark.usefixtures("nan_filled_memory")
@pytest.mark.parametrize("backend", ["cuda"] + ["triton"] * (HAS_TRITON and DEVICE == "cuda"), indirect=True)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution_of_bfloat16(backend: Backend, name: str) -> None:
    """Triton's interpreter multiplies the bits of these as if they were whole numbers."""
    if DEVICE == "cuda" and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("no bfloat16 on this device")
    check_convolution(backend, name, torch.bfloat16)


@pytest.mark.usefixtures("nan_filled_memory")
@pytest.mark.parametrize("joint", [False, True])
def test_network_of_own_convolutions_is_the_plain_one(
    backend: Backend, joint: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Statistics go from convolutions to norms, from tiles of one form to those of another."""
    monkeypatch.setattr(fused_layers, "_module", lambda x: backend.modules["fused_layers"])
    monkeypatch.setattr(choice, "forms", lambda job: ["here"])
    monkeypatch.setattr(choice, "form", lambda name: backend.modules["convolution"].convolution)
    monkeypatch.setenv("UDSE_CONVOLUTION", "own")
    torch.manual_seed(0)
    plain = NCSNpp(nf=20, ch_mult=(1, 2), joint=joint).to(DEVICE, memory_format=torch.channels_last)
    for parameter in plain.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    x, time = torch.randn(2, 2, 8, 20, device=DEVICE), torch.tensor([0.8, 0.3], device=DEVICE)
    with torch.no_grad():
        expected = plain.predict_noise(x, time)
        result = fused_ncsnpp(plain).half().predict_noise(x, time)
    assert float((result - expected).norm() / expected.norm()) < 0.02


@pytest.mark.usefixtures("nan_filled_memory")
@pytest.mark.parametrize("rank", [7, 8, 12, 16, 20])
@pytest.mark.parametrize("name", [name for name in OTHERS if "nmf" in name])
def test_nmf_of_many_components(backend: Backend, name: str, rank: int) -> None:
    """The kernels are compiled for a few of the ranks; the others take the next."""
    shape = (1, 6, 33, rank)
    assert_close(OTHERS[name](backend, Inputs(shape, False)), OTHERS[name](REFERENCE, Inputs(shape, True)))


@pytest.mark.parametrize("backend", ["cuda"], indirect=True)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_16_bit_number_is_read_and_rounded(backend: Backend, dtype: torch.dtype) -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    h, x = every.view(1, 4, 128, 128), every.flip(0).roll(4099).view(1, 4, 128, 128)
    bias = torch.zeros(4, dtype=dtype)
    result = backend.residual_sum(h.to(DEVICE), x.to(DEVICE), bias.to(DEVICE), 1.0)
    torch.testing.assert_close(result.cpu(), (h.float() + x.float()).to(dtype), rtol=0, atol=0, equal_nan=True)


class Tape(TorchDispatchMode):
    """Takes the place of CUDA graphs: repeats what was launched, on the same memory and with the same numbers.

    Like them it refuses whatever waits for the device or copies from the host.
    """

    REFUSED = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "lift_fresh")

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.recordings, self.calls = 0, list[Callable[[], None]]()
        self.failed = False
        self._active = False
        monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # what other threads launch is not seen
        self._watch(monkeypatch, cuda_library.CudaLibrary, "call")
        for module in modules("triton_kernel").values() if HAS_TRITON else ():
            self._watch(monkeypatch, module, "launch")

    def _watch(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        launch = getattr(owner, name)

        def watched(*arguments: Any, **keywords: Any) -> None:
            active, self._active = self._active, False  # the interpreter itself calls torch
            launch(*arguments, **keywords)
            self._active = active
            if active:
                self.calls.append(lambda: launch(*arguments, **keywords))

        monkeypatch.setattr(owner, name, watched)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kept = function(*args, **kwargs or {})
        if not self._active:
            return kept
        assert function.overloadpacket.__name__ not in self.REFUSED, function

        def repeat() -> None:
            for old, new in zip(tree_leaves(kept), tree_leaves(function(*args, **kwargs or {})), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)

        self.calls.append(repeat)
        return kept

    def record(self, function: Callable[[], tuple[Any, ...]]) -> tuple[Callable[[], None], tuple[Any, ...]]:
        self.recordings, self.calls, self._active = self.recordings + 1, [], True
        with self:
            results = function()
        calls, self._active = self.calls, False
        for tensor in results:
            if isinstance(tensor, torch.Tensor):
                tensor.fill_(torch.nan)
        return lambda: [call() for call in calls] and None, results

    def in_order(self) -> AbstractContextManager[None]:
        return nullcontext()


def reverse_pass(
    settings: SamplerSettings, score: Any, mixture: torch.Tensor, first_frame: Any, *tensors: torch.Tensor
) -> tuple[torch.Tensor | None, ...]:
    """What `posterior_sample` does on the device."""
    start = ReversePass(FunctionPrior(score), settings, noise_model=NMF(*tensors[:2]))
    outcome = run(start(mixture, first_frame, *tensors))
    return outcome.states[0], outcome.noise, *outcome.factors


@pytest.mark.parametrize("sampler", OF_PRIORS)
def test_whole_pass_is_replayed(backend: Backend, sampler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mixture, start of the noise model and frame number of later blocks get into a recorded pass; nothing waits."""
    name = "cuda" if backend.modules["nmf_is"].__name__.endswith("cuda") else "triton"
    monkeypatch.setattr(backends, "chosen_backend", lambda *_: name)
    monkeypatch.setattr(step_kernels, "chosen_backend", lambda *_: name)
    tape, sde, calls = Tape(monkeypatch), OUVE(), list[str]()

    def score(state: torch.Tensor, time: Any, source: str) -> torch.Tensor:
        calls.append(source)
        return -state / (sde.delta(time) ** 2 * (0.1 if source == "speech" else 0.2) + sde.sigma(time) ** 2)

    replayed = Replayed(recorder=cuda_graphs if DEVICE == "cuda" else lambda device: tape)
    counts = []
    for block, first_frame in enumerate((7, 2**32 - 3, 2**32 + 40)):
        # one time per frame, other ones in every block, and one for all
        frames = torch.linspace(0.8 + 0.05 * block, 1, 11, dtype=torch.float64)
        there, here = (
            SamplerSettings(sampler, samples=2, em_rounds=2, seed=2**33 + 5, times=[t, 0.03], dt=0.5)
            for t in (frames.float(), frames)
        )
        generator = torch.Generator().manual_seed(block)
        mixture = torch.randn(5, 11, dtype=torch.complex64, generator=generator)
        nmf = torch.rand(5, 2, generator=generator) + 0.1, torch.rand(2, 11, generator=generator) + 0.1
        inputs = [x.to(DEVICE) for x in (mixture, torch.tensor(first_frame), *nmf)]
        inputs += per_frame(there, inputs[0])
        results = replayed(functools.partial(reverse_pass, there, score), *inputs, key=there.key)
        counts.append(len(calls))
        double = mixture.to(torch.complex128), first_frame, *(x.double() for x in nmf), frames[None]
        with monkeypatch.context() as patch:
            patch.setattr(backends, "chosen_backend", lambda *_: "reference")
            patch.setattr(step_kernels, "chosen_backend", lambda *_: "reference")
            expected = reverse_pass(here, score, *double)
        del calls[counts[-1] :]
        for result, value in zip(results, expected, strict=True):
            assert (result is None) == (value is None)
            if result is not None:
                assert float((result.cpu() - value).norm() / value.norm()) < 1e-4
    assert counts[1:] == [3 * counts[0]] * 2  # called, called and recorded, replayed


@pytest.mark.skipif(DEVICE == "cuda", reason="test_gpu_device runs it on the device")
@pytest.mark.parametrize("sampler", ["diffuseen", "udiffse", "paradiffuse_en"])
def test_blocks_of_an_enhancer_are_one_recording(
    sampler: str, tiny_checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything between analysis and read-out, network included, waits for nothing: blocks in step, twice replayed."""
    monkeypatch.setenv("UDSE_BACKEND", "reference")
    checkpoint = tiny_checkpoints["joint" if sampler.startswith("para") else "speech"]
    fast, plain = (
        Enhancer(checkpoint, sampler, 2, 2, "cpu", "float32", em_rounds=2, block_seconds=0.5, overlap_seconds=0.1)
        for _ in range(2)
    )
    length = OverlapBlockEnhancer(plain.model, plain.settings, seed=0).new_blocks().block
    tape = Tape(monkeypatch)
    models = replace(fast.model, passes=Replayed(recorder=lambda device: tape)), plain.model
    for call in range(4):
        signals = 0.1 * torch.randn(2, length, generator=torch.Generator().manual_seed(call))
        blocks = [Block(x, 9 * call + i, None) for i, x in enumerate(signals)]
        results, expected = (
            enhance_blocks([(enhancer, blocks)])[0]
            for enhancer in (OverlapBlockEnhancer(model, model.settings, seed=0) for model in models)
        )
        for ours, theirs in zip(results, expected, strict=True):
            torch.testing.assert_close(ours.signals, theirs.signals)
            torch.testing.assert_close(ours.memory, theirs.memory)
            assert ours.network_calls == theirs.network_calls > 0
    assert tape.recordings == 1


@pytest.mark.skipif(DEVICE == "cuda", reason="the tape records on CPUs")
def test_short_signals_of_all_lengths_share_a_recording(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of short files would be run launch by launch. What is added to a file is not learnt as noise."""
    monkeypatch.setenv("UDSE_BACKEND", "reference")
    plain = Enhancer(tiny_checkpoint, steps=2, samples=2, device="cpu", precision="float32", block_seconds=2.0).model
    tape = Tape(monkeypatch)
    model = replace(plain, passes=Replayed(recorder=lambda device: tape))
    blocks = OverlapBlockEnhancer(plain, plain.settings, seed=0).new_blocks()
    quarter = -(-blocks.block // (4 * blocks.hop)) * blocks.hop
    for length in (5000, 6311, 8000, 7999, 4100):
        signal = 0.1 * torch.randn(length, generator=torch.Generator().manual_seed(length))
        mirrored = torch.cat([signal, signal.flip(0)])[:quarter]
        (ours,), (theirs,) = (
            enhance_blocks([(OverlapBlockEnhancer(of, of.settings, seed=0), [Block(given, 0, None)])])[0]
            for of, given in ((model, signal), (plain, mirrored))
        )
        assert ours.signals.shape == (2, length)
        inner = length - plain.spectral.n_fft  # frames at the end see what follows
        torch.testing.assert_close(ours.signals[0, :inner], theirs.signals[0, :inner])
    assert tape.recordings == 1
    seen = list[torch.Size]()

    def known(mixture: torch.Tensor, level: torch.Tensor, block: Block[Any]) -> FixedVariance:
        seen.append(mixture.shape)
        return FixedVariance(torch.ones(mixture.shape))

    oracle = OverlapBlockEnhancer(model, model.settings, seed=0, make_noise_model=known)
    enhance_blocks([(oracle, [Block(0.1 * torch.randn(5000), 0, None)])])
    assert seen == [(256, 1 + 5000 // 255)]  # what knows the noise knows it for the signal as it is


def test_silence_and_no_frames(backend: Backend) -> None:
    zero = torch.zeros(2, 3, 5, dtype=torch.complex64, device=DEVICE)
    assert torch.equal(backend.compress(zero), zero)
    assert torch.equal(backend.decompress(zero), zero)
    W, H = backend.nmf_update(zero[0].real.contiguous(), *Inputs((1, 3, 5, 2), False).factors, 3)
    assert W.isfinite().all()
    assert H.isfinite().all()
    assert backend.predictor(Step(zero[..., :0], zero[..., :0], ONE_TIME)).shape == (2, 3, 0)


@pytest.mark.needs("triton")
@pytest.mark.skipif("triton" in BACKENDS, reason="there is a CUDA device")
def test_triton_kernels_in_the_interpreter(tmp_path: Path) -> None:
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
        # of the networks that without a label, of the passes one with a corrector and one without, of the types of
        # 16 bits that which it rounds as devices do
        "triton and not compile and not interpreter and not (network and True) and "
        "not (replayed and not (diffuseen or ddrm)) and not bfloat16",
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:]
    ran = re.search(r"^(\d+) passed, \d+ deselected in", done.stdout, re.MULTILINE)
    assert ran, done.stdout[-3000:]  # none was skipped
    assert int(ran[1]) >= len(OTHERS) * len(SHAPES) + 5 * len(UPDATES) + 2 * len(LAYERS) + len(CONVOLUTIONS)


@pytest.mark.needs("triton")
def test_triton_kernels_compile_for_ampere_and_hopper(tmp_path: Path) -> None:
    """Every call of the adapters, compiled for one of them but not launched."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = os.environ.get("TRITON_CACHE_DIR", str(tmp_path))
    names = "complex_normal complex_normal_in_memory compress nmf online_nmf corrector udiffse_plus diffuseen_paper "
    names += "depse_tl predictor_residual score_noise_guidance paradiffuse_en unexplained_power ddrm posterior_mean"
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("compile_triton.py"), "--dealt-out", *names.split()],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        cwd=tmp_path,  # the installed package: here the kernels are not in it
    )
    assert done.returncode == 0, done.stderr
    for capability in (80, 90):
        found = re.search(rf"sm_{capability}: (\d+) kernels", done.stdout)
        assert found, done.stdout
        assert int(found[1]) >= len(names.split()) // 2 + 4  # and those of the layers


@pytest.fixture(scope="module")
def device_library(tmp_path_factory: pytest.TempPathFactory, require: Callable[[str], None]) -> Path:
    """The CUDA kernels as nvcc builds them: those of this installation, else made here."""
    installed = cuda_library.library_path()
    if installed is not None:
        return installed
    require("nvcc")
    folder = tmp_path_factory.mktemp("device")
    unit, path = folder / "unit.cu", folder / cuda_library.NAME
    unit.write_text("".join(f'#include "{ROOT}/kernels/{o}/{o}.cu"\n' for o in OPERATIONS))
    targets = re.search(r"ARCHITECTURES ([\d a-z-]+)\)", (ROOT / "cmake" / "cuda.cmake").read_text())
    assert targets
    code = [n.removesuffix("-real") for n in targets[1].split()]
    flags = ["-std=c++17", "-shared", "-Xcompiler", "-fPIC", f"-I{ROOT / 'csrc'}", "-Werror", "all-warnings"]
    flags += [f"-gencode=arch=compute_{n},code=sm_{n}" for n in code]
    subprocess.run(["nvcc", *flags, str(unit), "-o", str(path)], check=True, timeout=600)
    return path


def test_cuda_kernels_compile_for_turing_to_hopper(device_library: Path) -> None:
    """All entry points are there, and without a device they say so instead of crashing."""
    library = cuda_library.CudaLibrary(device_library, "cpu")
    for name in [*cuda_library.ARGUMENTS, *DECLARED]:
        library._function(name)
    if DEVICE == "cpu":
        z = torch.zeros(1, 1, 1, dtype=torch.complex64)
        with pytest.raises(UdseError, match=r"the CUDA kernel complex_normal failed: .*(driver|device)"):
            library.call(
                "complex_normal",
                z,
                ctypes.byref(cuda_library.key_argument(KEYS[0])),
                ctypes.byref(cuda_library.shape_argument(z.shape)),
                z.data_ptr(),
            )
    dump = shutil.which("cuobjdump") or next(iter(_of_triton("cuobjdump")), None)
    if dump is not None:
        listed = subprocess.run([dump, "--list-elf", str(device_library)], capture_output=True, text=True, check=True)
        listing = subprocess.run(
            [dump, "-sass", str(device_library)], capture_output=True, text=True, check=True
        ).stdout
        packs = [code for code in listing.split("Function : ") if re.match(r"\S*AffineSiLU\S*Half\S*Li8", code)]
        assert packs
        for code in packs:  # 16 bytes at a time, and no division that calls its slow path
            assert re.search(r"LDG\S*\.128", code)
            calls = re.findall(r"/\*([0-9a-f]+)\*/\s+(?:@!?U?P\d+\s+)?CALL\S*\s+`?\(?0x([0-9a-f]+)", code)
            assert len(calls) == len(re.findall(r"\bCALL\b", code))
            # over one instruction (the loop's branch) it is how a warp leaves a loop together
            assert all(int(to, 16) - int(at, 16) == 0x20 for at, to in calls)
        there = set(re.findall(r"sm_(\d+)", listed.stdout))
        # where there is a GPU an installation may be for it alone
        assert there if DEVICE == "cuda" else {"75", "80", "86", "90"} <= there
        command = [dump, "--dump-resource-usage", str(device_library)]
        used = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert set(re.findall(r"STACK:(\d+)", used)) == {"0"}  # what kernels add up stays in registers


def _of_triton(tool: str) -> list[str]:
    """A program that comes with triton."""
    spec = importlib.util.find_spec("triton")
    folders = spec.submodule_search_locations if spec is not None else None
    return [str(path) for folder in folders or () for path in Path(folder).glob(f"backends/nvidia/bin/{tool}")]


def test_each_device_has_its_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A T4 beside an H100: that of the tensors counts, not the current one."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.delenv("UDSE_BACKEND", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=None: (9, 0) if index == 1 else (7, 5))
    monkeypatch.setattr(cuda_library, "cuda_library", lambda: cuda_library)
    monkeypatch.setattr(cuda_library, "path", "a library", raising=False)
    backends._state.cache_clear()
    try:
        assert [fused_layers.backend_of(torch.device("cuda", index)) for index in (0, 1)] == ["cuda", "triton"]
        assert fused_layers.backend_of(torch.device("cpu")) == "reference"
        monkeypatch.setenv("UDSE_BACKEND", "reference")
        assert fused_layers.backend_of(torch.device("cuda", 0)) == "reference"
        monkeypatch.setenv("UDSE_BACKEND", "triton")
        with pytest.raises(UdseError, match="UDSE_BACKEND=triton is not available: triton needs an sm_80"):
            fused_layers.backend_of(torch.device("cuda", 0))
    finally:
        backends._state.cache_clear()
    assert backends._index((3, torch.zeros(1), torch.device("cuda", 1))) == 1
    assert backends._index((None, "cuda:1")) == 1
    assert backends._index((None, torch.zeros(1), "cuda")) is None


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
        host_library.call("nmf_update", power, ctypes.byref(nmf), 1)

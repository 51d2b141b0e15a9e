"""Compile the Triton kernels for GPUs that need not be there: every call of the adapters, compiled but not launched.

    python python_tests/compile_triton.py                    # every variant: minutes
    python python_tests/compile_triton.py corrector nmf      # those cases in one variant, and the layers in bfloat16
    python python_tests/compile_triton.py --capability 90

The exit status is 1 if a variant does not compile, and its line says why.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

DTYPES = torch.float32, torch.float16, torch.bfloat16
PUBLISHED_CHANNELS = 96, 192
RANKS = 1, 4, 5, 8, 16, 20
RUN = JITFunction.run


class Absent:
    """In the place of a GPU of a capability."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability

    def get_current_stream(self, device: int) -> int:
        return 0


def load_cases() -> Any:
    """The cases that the tests compare with the references."""
    spec = importlib.util.spec_from_file_location("cases", Path(__file__).with_name("test_gpu_backends.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["cases"] = module
    spec.loader.exec_module(module)
    return module


def chosen(cases: Any, names: list[str]) -> Iterator[tuple[str, Callable[[], object]]]:
    """The named cases in one variant, and all layers in bfloat16."""
    backend, a = cases.Backend(cases.modules("triton_kernel")), cases.Inputs((2, 8, 32, 4), False)
    for name in names:
        if name in cases.OTHERS:
            yield name, lambda name=name: cases.OTHERS[name](backend, a)
        else:
            yield name, lambda name=name: cases.call(backend, name, a, cases.ONE_TIME, *cases.KEYS)
    for name in cases.LAYERS:
        yield name, lambda name=name: cases.layer(backend, name, cases.LayerInputs(torch.bfloat16, False))
    yield from convolutions(cases, torch.bfloat16)


def convolutions(cases: Any, dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], object]]]:
    """All of them."""
    convolution = cases.modules("triton_kernel")["convolution"].convolution
    for name, job in cases.CONVOLUTIONS.items():
        yield (
            f"convolution {name} {dtype}",
            lambda job=job: convolution(job(cases.ConvolutionInputs(dtype, False))),
        )


def variants(cases: Any) -> Iterator[tuple[str, Callable[[], object]]]:
    """Every case with every kind of noise, times per frame or not; many ranks; all dtypes; the published channels."""
    backend = cases.Backend(cases.modules("triton_kernel"))
    for shape in (cases.SHAPES[0], (2, 8, 32, 4)):
        for name in cases.OTHERS:
            yield f"{name} {shape}", lambda n=name, s=shape: cases.OTHERS[n](backend, cases.Inputs(s, False))
    for rank in RANKS:
        a = cases.Inputs((1, 6, 33, rank), False)
        for name in (name for name in cases.OTHERS if "nmf" in name):
            yield f"{name} rank {rank}", lambda n=name, a=a: cases.OTHERS[n](backend, a)
    a = cases.Inputs((2, 8, 32, 4), False)
    in_memory = tuple(replace(key, first_frame=torch.tensor(key.first_frame)) for key in cases.KEYS)
    noises = {"none": (None, None), "given": (a.z, a.z2), "drawn": cases.KEYS, "in memory": in_memory}
    times = {"one time": cases.ONE_TIME}
    times["per frame"] = type(cases.ONE_TIME)(*(v * a.ramp for v in cases.ONE_TIME.values()))
    for name in cases.UPDATES:
        for noise, draws in noises.items():
            for kind, c in times.items():
                yield f"{name}, noise {noise}, {kind}", lambda n=name, c=c, d=draws: cases.call(backend, n, a, c, *d)
    for dtype in DTYPES:
        for name in cases.LAYERS:
            yield f"{name} {dtype}", lambda n=name, t=dtype: cases.layer(backend, n, cases.LayerInputs(t, False))
        for channels in PUBLISHED_CHANNELS:
            yield f"published layers {channels} {dtype}", lambda c=channels, t=dtype: published(cases, c, t)
        if dtype != torch.float32:
            yield from convolutions(cases, dtype)


def published(cases: Any, channels: int, dtype: torch.dtype) -> None:
    """Every layer with the channels of the published network, on a map of its smallest level."""
    layers = cases.modules("triton_kernel")["fused_layers"]
    x = torch.zeros(2, channels, 32, 32, dtype=dtype).to(memory_format=torch.channels_last)
    weight = torch.ones(channels, dtype=dtype)
    condition = torch.zeros(2, channels, 1, 1, dtype=dtype)
    known = layers.tile_statistics(x), None
    for statistics in ((None, None), known):
        layers.norm_film_silu(cases.reference.Norm(x, weight, weight, 24, condition, statistics=statistics))
    layers.measured_sum(x, x, weight, 0.7)
    layers.residual_sum(x, x, weight, 0.7)
    for up in (False, True):
        layers.resample(x, up)


def main() -> int:
    """Compile, and say how many there were."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="cases of test_gpu_backends.py (default: every variant of all)")
    parser.add_argument("--capability", nargs="+", type=int, default=[80, 90])
    parser.add_argument("--dealt-out", action="store_true", help="every case for one of the capabilities, in turn")
    arguments = parser.parse_args()
    compiled: list[Any] = []

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **keywords: Any) -> None:
        compiled.append(RUN(self, *args, grid=grid, warmup=True, **keywords))

    JITFunction.run = compile_only
    cases, failed = load_cases(), 0
    for number, capability in enumerate(arguments.capability):
        triton.runtime.driver.set_active(Absent(capability))
        compiled.clear()
        calls = list(chosen(cases, arguments.names) if arguments.names else variants(cases))
        for name, adapter_call in calls[number :: len(arguments.capability)] if arguments.dealt_out else calls:
            try:
                adapter_call()
            except Exception as error:
                failed += 1
                print(f"sm_{capability} {name}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
        kernels = {kernel.hash: kernel for kernel in compiled}
        wrong = [
            k.metadata.name for k in kernels.values() if k.metadata.target.arch != capability or not k.asm["cubin"]
        ]
        failed += len(wrong)
        most = max((kernel.metadata.shared for kernel in kernels.values()), default=0)
        print(
            f"sm_{capability}: {len(kernels)} kernels in {len(compiled)} launches, at most {most} bytes shared", *wrong
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

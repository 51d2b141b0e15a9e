"""Which implementation of an operation runs: the plain reference, C++ on CPUs, Triton or CUDA on GPUs."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, ParamSpec, TypeVar

import torch

from udse_fast.errors import UdseError

P = ParamSpec("P")
R = TypeVar("R")

MODULES: Final = {"reference": "reference", "cpp": "cpp", "triton": "triton_kernel", "cuda": "cuda"}
"""Backend -> module of that name in the folder of each operation. All have the functions of `reference`."""

CPP_DTYPES: Final = (torch.complex64, torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class Backend:
    """A backend, whether it is there, and what it is or what to do about it."""

    name: str
    available: bool
    detail: str


def backends() -> list[Backend]:
    """Every backend and its state on this machine, for `udse-fast info`."""
    return [Backend(name, *_state(name)) for name in MODULES]


def isa() -> str:
    """The instruction set the C++ core runs with: scalar, avx2 or avx512."""
    return _core().isa()


def _core() -> Any:
    return importlib.import_module("udse_fast._core")


@functools.cache
def _state(name: str) -> tuple[bool, str]:
    if name == "reference":
        return True, "plain torch"
    if name == "cpp":
        try:
            _core()
        except ImportError as error:
            return (
                False,
                f"the compiled core does not load ({error}); install a wheel, or a compiler and the source",
            )
        return True, f"C++ core, {isa()}"
    if importlib.util.find_spec(f"udse_fast.kernels.predictor_corrector.{MODULES[name]}") is None:
        return False, f"this installation has no {name} kernels; use cpp or reference"
    if name == "triton" and importlib.util.find_spec("triton") is None:
        return False, "triton is not installed; pip install udse-fast[triton]"
    if not torch.cuda.is_available() and not (name == "triton" and os.environ.get("TRITON_INTERPRET") == "1"):
        return False, "torch sees no CUDA device; install a CUDA build of torch and the driver"
    return True, f"{name} kernels"


def _fits_cpp(value: object) -> bool:
    """Whether the C++ core takes this argument as it is: it converts nothing and has no gradients."""
    if isinstance(value, torch.Tensor):
        per_frame = value.ndim == 1 and not value.is_complex()  # the adapters convert these
        return (
            value.is_cpu
            and (per_frame or (value.dtype in CPP_DTYPES and value.is_contiguous()))
            and not (value.requires_grad or value.is_conj() or value.is_neg())
        )
    if isinstance(value, torch.dtype):
        return value in CPP_DTYPES
    if isinstance(value, torch.device | str):
        return torch.device(value).type == "cpu"
    return all(map(_fits_cpp, value)) if isinstance(value, tuple) else True


def _choose(operation: str, arguments: tuple[object, ...]) -> str:
    """UDSE_BACKEND where set, else cpp for what it takes and the reference for the rest."""
    forced = os.environ.get("UDSE_BACKEND", "")
    if not forced:
        return "cpp" if _state("cpp")[0] and _fits_cpp(arguments) else "reference"
    if forced not in MODULES:
        raise UdseError(f"UDSE_BACKEND must be one of {', '.join(MODULES)}; got {forced!r}")
    available, detail = _state(forced)
    if not available:
        raise UdseError(f"UDSE_BACKEND={forced} is not available: {detail}")
    if forced == "cpp" and not _fits_cpp(arguments):
        descriptions = ", ".join(_description(a) for a in arguments if isinstance(a, torch.Tensor))
        raise UdseError(
            "UDSE_BACKEND=cpp takes contiguous complex64 and float32 CPU tensors without gradient; "
            f"{operation} got {descriptions}; convert these or unset UDSE_BACKEND"
        )
    return forced


def _description(tensor: torch.Tensor) -> str:
    layout = "" if tensor.is_contiguous() else "non-contiguous "
    return f"{layout}{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)} on {tensor.device}"


@functools.cache
def _function(package: str, backend: str, name: str) -> Callable[..., Any]:
    function: Callable[..., Any] = getattr(importlib.import_module(f"{package}.{MODULES[backend]}"), name)
    return function


def dispatched(reference: Callable[P, R]) -> Callable[P, R]:
    """The public form of an operation: it runs the backend that fits the arguments, or the forced one."""
    package, name = reference.__module__.rpartition(".")[0], reference.__name__

    @functools.wraps(reference)
    def operation(*args: P.args, **kwargs: P.kwargs) -> R:
        backend = _choose(name, (*args, *kwargs.values()))
        result: R = _function(package, backend, name)(*args, **kwargs)
        return result

    return operation

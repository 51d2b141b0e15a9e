"""Which implementation of an operation runs: the plain reference, C++ on CPUs, Triton or CUDA on GPUs."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final, ParamSpec, TypeAlias, TypeVar

import torch
from torch import Tensor

from udse_fast.errors import UdseError

P = ParamSpec("P")
R = TypeVar("R")

MODULES: Final = {"reference": "reference", "cpp": "cpp", "triton": "triton_kernel", "cuda": "cuda"}
"""Backend -> module in the folder of each operation, with the functions of `reference`, which alone has defaults."""

COMPILED: Final = ("cpp", "cuda", "triton")
"""The other backends, in order of preference."""
TRITON: Final = 3, 3
"""The oldest version that takes tuples as arguments of kernels; the one before ends the process."""
DTYPES: Final = frozenset({torch.complex64, torch.float32})
"""What they take and give; the reference takes all."""
DEVICES: Final = (torch.device, str)


@dataclass(frozen=True)
class Backend:
    """A backend, whether it is there, and what it is or what to do about it."""

    name: str
    available: bool
    detail: str


def backends() -> list[Backend]:
    """Every backend and its state on this machine, for `udse-fast info`."""
    return [_backend(name) for name in MODULES]


def _backend(name: str) -> Backend:
    try:
        return Backend(name, *_state(name))
    except UdseError as error:  # UDSE_FORCE_ISA is wrong: for those who only ask, no reason to stop
        return Backend(name, False, str(error))


def forced_backend() -> str | None:
    """The backend that UDSE_BACKEND asks for, None where it is not set or empty. Nothing else reads the variable.

    Raises:
        UdseError: there is no such backend.
    """
    forced = os.environ.get("UDSE_BACKEND", "")
    if forced and forced not in MODULES:
        raise UdseError(f"UDSE_BACKEND must be one of {', '.join(MODULES)}; got {forced!r}")
    return forced or None


def wanted(name: str) -> bool:
    """Whether UDSE_BACKEND leaves a backend in the choice: it is not set, or names it."""
    return forced_backend() in (None, name)


def available(name: str, device: torch.device) -> bool:
    """Whether a backend is there for tensors on a device."""
    return _state(name, device.index)[0]


def disable(name: str, reason: str) -> None:
    """From now on a backend counts as not there: it does not work on this machine."""
    _disabled[name] = reason
    _state.cache_clear()


def isa() -> str:
    """The instruction set the C++ core runs with: scalar, avx2 or avx512."""
    return _core().isa()


def _core() -> Any:
    return importlib.import_module("udse_fast._core")


_disabled: dict[str, str] = {}
"""Backend -> why."""


@functools.cache
def _state(name: str, index: int | None = None) -> tuple[bool, str]:
    """Whether a backend is there for a CUDA device, None: the current one; and what it is or what to do about it."""
    if name in _disabled:
        return False, _disabled[name]
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
    if importlib.util.find_spec(f"udse_fast.kernels.complex_normal.{MODULES[name]}") is None:
        return False, f"this installation has no {name} kernels; use cpp or reference"
    if name == "triton" and importlib.util.find_spec("triton") is None:
        return False, "triton is not installed; pip install udse-fast[triton]"
    if name == "triton" and (_interpreted() or torch.cuda.is_available()) and _triton_version() < TRITON:
        needed, there = (".".join(map(str, version)) for version in (TRITON, _triton_version()))
        return False, f"the kernels need triton {needed} or newer, got {there}; install torch 2.7 or newer"
    if name == "triton" and _interpreted():
        return True, "triton kernels in the interpreter (TRITON_INTERPRET=1)"
    if not torch.cuda.is_available():
        return False, "torch sees no CUDA device; install a CUDA build of torch and the driver"
    if name == "triton":
        enough = torch.cuda.get_device_capability(index) >= (8, 0)
        return (
            enough,
            "triton kernels" if enough else "triton needs an sm_80 GPU or newer; use cuda or reference",
        )
    from udse_fast.backends.cuda_library import cuda_library

    try:
        return True, f"CUDA kernels, {cuda_library().path}"
    except UdseError as error:
        return False, str(error)


def _triton_version() -> tuple[int, ...]:
    """(major, minor)."""
    return tuple(int(number) for number in importlib.import_module("triton").__version__.split(".")[:2])


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _fits(backend: str, arguments: tuple[object, ...]) -> bool:
    """Whether a compiled backend takes the arguments as they are. This runs in every call of an operation."""
    on_cpu = backend == "cpp" or (backend == "triton" and _interpreted())
    for value in arguments:
        if isinstance(value, Tensor):
            if not _tensor_fits(value, on_cpu):
                return False
        elif value is None or isinstance(value, float):
            continue
        elif isinstance(value, tuple):
            if not _fits(backend, value):
                return False
        elif isinstance(value, torch.dtype):
            if value not in DTYPES:
                return False
        elif isinstance(value, DEVICES) and torch.device(value).type != ("cpu" if on_cpu else "cuda"):
            return False
    return True


def _tensor_fits(tensor: Tensor, on_cpu: bool) -> bool:
    """It converts nothing and has no gradients."""
    if tensor.requires_grad or tensor.is_conj() or tensor.is_neg():
        return False
    there = tensor.is_cpu if on_cpu else tensor.is_cuda
    if tensor.ndim <= 1 and not tensor.is_complex():  # a number, or one per frame: the adapters convert these
        return there or tensor.is_cpu
    return there and tensor.dtype in DTYPES and tensor.is_contiguous()


def _index(arguments: tuple[object, ...]) -> int | None:
    """Of the CUDA device that the arguments are on, or name; None: none, or the current one."""
    for value in arguments:
        if isinstance(value, Tensor) and value.is_cuda:
            return value.get_device()
        if isinstance(value, DEVICES):
            return torch.device(value).index
    return None


Fits: TypeAlias = Callable[[str, tuple[Any, ...]], bool]
"""fits(backend, arguments): whether a compiled backend takes the arguments as they are."""


def chosen_backend(
    operation: str, arguments: tuple[Any, ...], order: tuple[str, ...] = COMPILED, fits: Fits = _fits
) -> str:
    """UDSE_BACKEND where set, else the first compiled one that takes the arguments, else the reference.

    Args:
        operation: its name, for the error.
        arguments: of the call.
        order: the compiled backends that have the operation; in all others it is the reference.
        fits: what they take.

    Raises:
        UdseError: the forced backend is not there, or does not take the arguments.
    """
    forced = forced_backend()
    if forced is None:
        for backend in order:
            if fits(backend, arguments) and _state(backend, None if backend == "cpp" else _index(arguments))[0]:
                return backend
        return "reference"
    there, detail = _state(forced, _index(arguments))
    if not there:
        raise UdseError(f"UDSE_BACKEND={forced} is not available: {detail}")
    if forced in order and not fits(forced, arguments):
        tensors = (a for part in arguments for a in (part if isinstance(part, tuple) else (part,)))
        descriptions = ", ".join(_description(a) for a in tensors if isinstance(a, Tensor))
        raise UdseError(
            f"UDSE_BACKEND={forced} takes contiguous complex64 and float32 "
            f"{'CPU' if forced == 'cpp' else 'CUDA'} tensors without gradient; "
            f"{operation} got {descriptions}; convert these or unset UDSE_BACKEND"
        )
    return forced if forced in order else "reference"


def _description(tensor: Tensor) -> str:
    layout = "" if tensor.is_contiguous() else "non-contiguous "
    return f"{layout}{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)} on {tensor.device}"


@functools.cache
def implementation(package: str, backend: str) -> ModuleType:
    """The module of a backend in the folder of an operation."""
    return importlib.import_module(f"{package}.{MODULES[backend]}")


def named_arguments(reference: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    """A function that gives the arguments of a call by name, with the defaults, which only the reference declares."""
    parameters = inspect.signature(reference).parameters
    defaults = {name: p.default for name, p in parameters.items() if p.default is not p.empty}

    def named(*args: Any, **kwargs: Any) -> dict[str, Any]:
        return {**defaults, **dict(zip(parameters, args, strict=False)), **kwargs}

    return named


def dispatched(reference: Callable[P, R]) -> Callable[P, R]:
    """The public form of an operation: it runs the backend that fits the arguments, or the forced one."""
    package, name = reference.__module__.rpartition(".")[0], reference.__name__
    named = named_arguments(reference)

    @functools.wraps(reference)
    def operation(*args: P.args, **kwargs: P.kwargs) -> R:
        backend = chosen_backend(name, (*args, *kwargs.values()))
        if backend == "reference":
            return reference(*args, **kwargs)
        result: R = vars(implementation(package, backend))[name](**named(*args, **kwargs))
        return result

    return operation

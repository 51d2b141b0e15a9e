"""The compiled CUDA kernels, by ctypes: built without torch, loaded at the first call."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import sys
from collections.abc import Callable
from contextlib import nullcontext
from ctypes import POINTER, Structure, c_bool, c_float, c_int, c_int32, c_int64, c_uint32, c_uint64, c_void_p
from pathlib import Path

import torch

from udse_fast.errors import UdseError
from udse_fast.kernels.complex_normal.reference import ROLES, NoiseKey

NAME = "udse_cuda.dll" if sys.platform == "win32" else "libudse_cuda.so"


class PerFrame(Structure):
    """One number for all frames, or (T,) of them. The structures of this module mirror csrc/udse_core.hpp."""

    _fields_ = (("value", c_float), ("values", c_void_p))


class Shape(Structure):
    """(B, F, T)."""

    _fields_ = (("samples", c_int64), ("bins", c_int64), ("frames", c_int64))


class Key(Structure):
    """A `NoiseKey`."""

    _fields_ = (
        ("seed", c_uint64),
        ("role", c_uint32),
        ("step", c_uint32),
        ("first_frame", c_uint64),
        ("first_sample", c_uint32),
        ("first_frame_at", c_void_p),
    )


class StepNoise(Structure):
    """No noise (kind 0), given numbers (1), or a draw (2)."""

    _fields_ = (("kind", c_int), ("values", c_void_p), ("key", Key))


class Variance(Structure):
    """V, or its factors."""

    _fields_ = (("values", c_void_p), ("W", c_void_p), ("H", c_void_p), ("rank", c_int64))


class Step(Structure):
    """The arguments of one fused update."""

    _fields_ = (
        ("shape", Shape),
        ("state", c_void_p),
        ("score", c_void_p),
        ("coefficients", PerFrame * 6),
        ("noise", StepNoise),
        ("mixture", c_void_p),
        ("variance", Variance),
        ("posterior_variance", c_void_p),
        ("following", PerFrame * 6),
        ("other_state", c_void_p),
        ("other_score", c_void_p),
        ("other_noise", StepNoise),
        ("guidance", PerFrame),
        ("observation_variance", c_float),
        ("noise_bias", c_float),
        ("eta", c_float),
        ("apply", c_bool),
        ("power_of_state", c_bool),
        ("divide_tweedie", c_bool),
        ("paper_posterior", c_bool),
        ("next", c_void_p),
        ("other_next", c_void_p),
        ("power", c_void_p),
    )


class NMF(Structure):
    """The arguments of the NMF updates."""

    _fields_ = (
        ("bins", c_int64),
        ("frames", c_int64),
        ("rank", c_int64),
        ("power", c_void_p),
        ("W", c_void_p),
        ("H", c_void_p),
        ("floor", c_float),
    )


class Map(Structure):
    """(B, N, C) numbers and the statistics of their tiles; from here on: see kernels/fused_layers/fused_layers.cu."""

    _fields_ = (
        ("values", c_void_p),
        ("statistics", c_void_p),
        ("channels", c_int64),
        ("tiles", c_int64),
        ("measured", c_bool),
    )


class Tiling(Structure):
    """Of the positions of a map."""

    _fields_ = tuple((name, c_int64) for name in ("samples", "positions", "tiles", "length"))


class GroupNorm(Structure):
    """The arguments of norm, FiLM and SiLU."""

    _fields_ = (
        ("x", Map),
        ("skip", Map),
        ("tiling", Tiling),
        *((name, c_void_p) for name in ("weight", "bias", "before", "scale", "shift", "out", "scratch")),
        *((name, c_int64) for name in ("groups", "before_stride", "film_stride")),
        ("eps", c_float),
        ("dtype", c_int32),
        ("activate", c_bool),
    )


class Source(Structure):
    """A map that a convolution reads; see kernels/convolution/convolution.cu."""

    _fields_ = (
        *((name, c_void_p) for name in ("values", "factor", "offset", "weights")),
        *((name, c_int64) for name in ("channels", "stride")),
        ("taps", c_int32),
        ("packed", c_bool),
    )


class Convolution(Structure):
    """The arguments of a convolution."""

    _fields_ = (
        ("sources", Source * 4),
        ("source_count", c_int64),
        ("shape", Shape),
        *((name, c_int64) for name in ("channels", "columns")),
        *((name, c_void_p) for name in ("bias", "residual", "out", "statistics")),
        ("factor", c_float),
        ("dtype", c_int32),
        ("packed", c_bool),
    )


ARGUMENTS: dict[str, list[type]] = {
    "complex_normal": [POINTER(Key), POINTER(Shape), c_void_p],
    "compress": [c_void_p, c_int64, c_float, c_float, c_void_p],
    "decompress": [c_void_p, c_int64, c_float, c_float, c_void_p],
    "convolution": [POINTER(Convolution)],
    "fold_norm": [POINTER(GroupNorm)],
    "norm_film_silu": [POINTER(GroupNorm)],
    "tile_statistics": [POINTER(Map), POINTER(Tiling), c_int32],
    "residual_sum": [c_void_p, c_void_p, c_void_p, c_float, POINTER(Map), POINTER(Tiling), c_int32],
    "resample": [c_void_p, POINTER(Shape), c_int64, c_int, c_int32, c_void_p],
    "nmf_update": [POINTER(NMF), c_int],
    "online_nmf_update": [POINTER(NMF), c_void_p, c_void_p, c_float, c_int],
}
"""Function -> its arguments before the stream; those that are not here take a Step."""


class CudaLibrary:
    """The kernels of one file.

    Args:
        path: of the library.
        device: type of the tensors it takes; a build of the same source for the host takes "cpu".

    Raises:
        UdseError: the file does not load, or is of another version.
    """

    def __init__(self, path: Path, device: str = "cuda") -> None:
        self.path, self.device = path, device
        try:
            self._library = ctypes.CDLL(str(path))
        except OSError as error:
            raise UdseError(f"the CUDA kernels do not load: {error}; build udse-fast with -DUDSE_CUDA=ON") from error
        structures = ("step", Step), ("nmf", NMF), ("group_norm", GroupNorm), ("convolution", Convolution)
        for name, structure in structures:
            size = getattr(self._library, f"udse_cuda_size_of_{name}")
            size.restype = c_int64
            if size() != ctypes.sizeof(structure):
                raise UdseError(f"{path} is of another version of udse-fast: build it anew with -DUDSE_CUDA=ON")

    @functools.cache  # noqa: B019 (one library for the life of the process)
    def _function(self, name: str) -> Callable[..., bytes | None]:
        function = getattr(self._library, f"udse_cuda_{name}")
        function.restype = ctypes.c_char_p
        function.argtypes = [*ARGUMENTS.get(name, [POINTER(Step)]), c_void_p]
        called: Callable[..., bytes | None] = function
        return called

    def call(self, name: str, like: torch.Tensor, *arguments: object) -> None:
        """Run a kernel on the device and the current stream of `like`.

        Raises:
            UdseError: tensors of another device, or what CUDA reports.
        """
        if like.device.type != self.device:
            raise UdseError(f"the CUDA kernels expected tensors on {self.device}, got {like.device}: move them")
        stream = torch.cuda.current_stream(like.device).cuda_stream if like.is_cuda else None
        with torch.cuda.device_of(like) if like.is_cuda else nullcontext():
            message = self._function(name)(*arguments, stream)
        if message:
            raise UdseError(f"the CUDA kernel {name} failed: {message.decode()}; check the driver (nvidia-smi)")


def library_path() -> Path | None:
    """Where this installation has its CUDA kernels, beside the compiled core; None: it was built without."""
    core = importlib.util.find_spec("udse_fast._core")
    path = Path(core.origin).with_name(NAME) if core is not None and core.origin else None
    return path if path is not None and path.is_file() else None


@functools.cache
def cuda_library() -> CudaLibrary:
    """The kernels of this installation.

    Raises:
        UdseError: it has none, or they do not load.
    """
    path = library_path()
    if path is None:
        raise UdseError(
            "this installation has no CUDA kernels: build udse-fast from source where nvcc is, "
            "pip install . -C cmake.define.UDSE_CUDA=ON"
        )
    return CudaLibrary(path)


def key_argument(key: NoiseKey) -> Key:
    """A draw as the kernels take it. A first frame in memory must outlive the launch."""
    frame = key.first_frame
    number, address = (0, frame.data_ptr()) if isinstance(frame, torch.Tensor) else (frame, None)
    return Key(key.seed, ROLES[key.role], key.step, number, key.first_sample, address)


def shape_argument(shape: torch.Size | tuple[int, ...]) -> Shape:
    """(B, F, T) as the kernels take it."""
    return Shape(*shape)

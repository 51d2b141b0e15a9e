"""The devices of this machine, what they compute fast, and the memory that a CPU computes in."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache

import torch

from udse_fast.errors import UdseError, first_line


def usable_device(name: str | torch.device) -> torch.device:
    """A device by name; "auto" is the CUDA device if there is one.

    Raises:
        UdseError: there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise UdseError(
            f"expected a device of this machine (cpu, cuda, cuda:1, auto), got {name!r}: {first_line(error)}"
        ) from error
    return device


def fast_bfloat16(device: torch.device) -> bool:
    """Whether the hardware computes in bfloat16; others emulate it, which is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


KEPT_BYTES = 1 << 28
"""Of freed memory at the end of the heap: the maps of a few network calls."""
OWN_MAPPING_BYTES = 1 << 25
"""From which on memory is mapped by itself: the most that glibc takes."""


@cache
def keep_freed_memory() -> None:
    """Let glibc keep what a network call frees for the next one, up to `KEPT_BYTES`, for this process.

    By itself it gives the memory back to the system and asks for it again, page by page, in every call: a twentieth of
    the time. Left alone where the user has set such limits (mallopt(3)), and where there is no glibc.
    """
    told = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")
    if sys.platform != "linux" or any(name in os.environ for name in told):
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        trim_threshold, mmap_threshold = -1, -3  # malloc.h; one alone would fix the other at its lowest
        library.mallopt(mmap_threshold, OWN_MAPPING_BYTES)
        library.mallopt(trim_threshold, KEPT_BYTES)

"""The devices of this machine, and what they compute fast."""

from __future__ import annotations

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

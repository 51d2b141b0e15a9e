"""The C++ form: zero-copy, complex64 on CPUs."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from udse_fast import _core
from udse_fast.kernels.complex_normal.reference import ROLES, Noise, NoiseKey, Shape

NoiseArgument: TypeAlias = NDArray[np.complex64] | tuple[int, int, int, int, int] | None


def key_argument(key: NoiseKey) -> tuple[int, int, int, int, int]:
    """A draw as the core takes it."""
    return key.seed, ROLES[key.role], key.step, int(key.first_frame), key.first_sample


def noise_argument(noise: Noise) -> NoiseArgument:
    """The noise of an update as the core takes it."""
    return key_argument(noise) if isinstance(noise, NoiseKey) else None if noise is None else noise.numpy()


def complex_normal(key: NoiseKey, shape: Shape, dtype: torch.dtype, device: torch.device | str) -> torch.Tensor:
    z = torch.empty(shape, dtype=dtype, device=device)
    _core.complex_normal(key_argument(key), z.numpy(), torch.get_num_threads())
    return z

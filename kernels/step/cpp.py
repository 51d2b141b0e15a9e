"""The C++ form: an update in one pass, V = W H formed on the fly, noise drawn inside, complex64 on CPUs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from udse_fast import _core
from udse_fast.kernels.coefficients import Coefficients
from udse_fast.kernels.complex_normal.cpp import noise_argument
from udse_fast.kernels.step import NoiseVariance, Update, as_declared, empty_results

Floats = NDArray[np.float32]


def _number(number: float | torch.Tensor, frames: int) -> float | Floats:
    """One number, or one per frame, (T,)."""
    if isinstance(number, torch.Tensor) and number.ndim:
        return np.ascontiguousarray(np.broadcast_to(np.asarray(number, np.float32), frames))
    return float(number)


def _coefficients(coefficients: Coefficients, frames: int) -> tuple[float, ...] | Floats:
    """6 numbers, or (6, T)."""
    values = coefficients.values()
    if any([isinstance(value, torch.Tensor) for value in values]):
        return np.stack([np.broadcast_to(np.asarray(value, np.float32), frames) for value in values])
    return values  # type: ignore[return-value]


def _variance(variance: NoiseVariance, frames: int) -> Floats | tuple[Floats, Floats]:
    if isinstance(variance, tuple):
        return variance[0].numpy(), variance[1].numpy()
    return variance.numpy()


CONVERTED: dict[str, Callable[[Any, int], Any]] = {
    **dict.fromkeys(
        ("state", "score", "mixture", "posterior_variance", "other_state", "other_score"), lambda x, _: x.numpy()
    ),
    **dict.fromkeys(("noise", "other_noise"), lambda noise, _: noise_argument(noise)),
    **dict.fromkeys(("coefficients", "following"), _coefficients),
    "variance": _variance,
    "guidance": _number,
}
"""Argument -> what the core takes of it and of the number of frames; others as they are."""


def run(declared: Update, arguments: dict[str, Any]) -> Any:
    state = arguments["state"]
    results = empty_results(declared, state, arguments)
    frames = state.shape[-1]
    converted: dict[str, Any] = {
        **{name: CONVERTED[name](a, frames) if name in CONVERTED else a for name, a in arguments.items()},
        **{name: None if result is None else result.numpy() for name, result in results.items()},
    }
    _core.update(declared.name, **converted, threads=torch.get_num_threads())
    return as_declared(results)

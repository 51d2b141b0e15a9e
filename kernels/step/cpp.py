"""The C++ form: an update in one pass, V = W H formed on the fly, noise drawn inside, complex64 on CPUs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from udse_fast import _core
from udse_fast.kernels.coefficients import Coefficients
from udse_fast.kernels.complex_normal.cpp import noise_argument
from udse_fast.kernels.step import NoiseVariance, Update, as_declared, empty_results

Floats = NDArray[np.float32]


def _array(tensor: torch.Tensor | None) -> NDArray[Any] | None:
    return None if tensor is None else tensor.numpy()


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


def _variance(variance: NoiseVariance | None) -> NDArray[Any] | tuple[Floats, Floats] | None:
    if isinstance(variance, tuple):
        return variance[0].numpy(), variance[1].numpy()
    return _array(variance)


def run(declared: Update, arguments: dict[str, Any]) -> Any:
    state, given = arguments["state"], arguments.get
    results = empty_results(declared, state, given("want_noise", True))
    frames = state.shape[-1]
    _core.update(  # by position: names would cost as much as the rest of the call
        declared.name,
        state.numpy(),
        arguments["score"].numpy(),
        _coefficients(arguments["coefficients"], frames),
        noise_argument(given("noise")),
        _array(given("mixture")),
        _variance(given("variance")),
        _array(given("posterior_variance")),
        _coefficients(arguments["following"], frames) if "following" in arguments else None,
        _array(given("other_state")),
        _array(given("other_score")),
        noise_argument(given("other_noise")),
        _number(given("guidance", 1.0), frames),
        given("observation_variance", 0.0),
        given("noise_bias", 1.0),
        given("eta", 0.0),
        given("apply", True),
        given("power_of_state", False),
        given("divide_tweedie", False),
        given("paper_posterior", False),
        _array(results.get("next")),
        _array(results.get("other_next")),
        _array(results.get("power")),
        torch.get_num_threads(),
    )
    return as_declared(results)

"""The CUDA form: an update in one pass, V = W H formed on the fly, noise drawn inside, complex64 on GPUs."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import byref
from typing import Any

import torch

from udse_fast.backends.cuda_library import (
    Key,
    PerFrame,
    StepNoise,
    Variance,
    cuda_library,
    key_argument,
    shape_argument,
)
from udse_fast.backends.cuda_library import Step as StepStructure
from udse_fast.kernels.coefficients import Coefficients
from udse_fast.kernels.complex_normal.reference import Noise, NoiseKey
from udse_fast.kernels.step import NoiseVariance, Update, as_declared, empty_results


class StepArgument:
    """The arguments of a call as the kernels take them, and the tensors that they point to."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self._like: torch.Tensor = arguments["state"]
        self._kept = list[torch.Tensor]()
        convert: dict[str, Callable[[Any], Any]] = {
            **dict.fromkeys(("noise", "other_noise"), self._noise),
            **dict.fromkeys(("coefficients", "following"), self._coefficients),
            "variance": self._variance,
            "guidance": self._per_frame,
        }
        fields = {name: convert.get(name, self._plain)(value) for name, value in arguments.items()}
        self.structure = StepStructure(shape=shape_argument(self._like.shape), **fields)

    def _plain(self, value: torch.Tensor | float | None) -> int | float | None:
        return self._pointer(value) if isinstance(value, torch.Tensor) else value

    def _pointer(self, tensor: torch.Tensor) -> int:
        self._kept.append(tensor)
        return tensor.data_ptr()

    def _per_frame(self, number: float | torch.Tensor) -> PerFrame:
        if isinstance(number, torch.Tensor) and number.ndim:
            return PerFrame(0.0, self._pointer(number.to(self._like.device, torch.float32).contiguous()))
        return PerFrame(float(number), None)

    def _coefficients(self, coefficients: Coefficients) -> Any:
        return (PerFrame * 6)(*map(self._per_frame, coefficients.values()))

    def _noise(self, noise: Noise) -> StepNoise:
        if isinstance(noise, NoiseKey):
            return StepNoise(2, None, key_argument(noise))
        return StepNoise(0, None, Key()) if noise is None else StepNoise(1, self._pointer(noise), Key())

    def _variance(self, variance: NoiseVariance) -> Variance:
        if isinstance(variance, tuple):
            W, H = variance
            return Variance(None, self._pointer(W), self._pointer(H), W.shape[1])
        return Variance(self._pointer(variance), None, None, 0)


def run(declared: Update, arguments: dict[str, Any]) -> Any:
    state = arguments["state"]
    results = empty_results(declared, state, arguments.pop("want_noise", True))
    step = StepArgument({**arguments, **results})
    cuda_library().call(declared.name, state, byref(step.structure))
    return as_declared(results)

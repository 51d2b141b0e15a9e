"""The CUDA form: V is formed on the fly, float32 on GPUs."""

from __future__ import annotations

from ctypes import byref

from torch import Tensor

from udse_fast.backends.cuda_library import NMF, cuda_library


def _argument(power: Tensor, W: Tensor, H: Tensor, floor: float) -> NMF:
    return NMF(*power.shape, W.shape[1], power.data_ptr(), W.data_ptr(), H.data_ptr(), floor)


def nmf_update(power: Tensor, W: Tensor, H: Tensor, iterations: int, floor: float) -> tuple[Tensor, Tensor]:
    W, H = W.clone(), H.clone()
    cuda_library().call("nmf_update", power, byref(_argument(power, W, H, floor)), iterations)
    return W, H


def online_nmf_update(
    power: Tensor, W: Tensor, H: Tensor, A: Tensor, B: Tensor, forgetting: float, iterations: int, floor: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    W, H, A, B = (x.clone() for x in (W, H, A, B))
    arguments = byref(_argument(power, W, H, floor)), A.data_ptr(), B.data_ptr(), forgetting, iterations
    cuda_library().call("online_nmf_update", power, *arguments)
    return W, H, A, B

"""`check_weights`: whether the weights of a file are those of a network."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from udse_fast.errors import UdseError


def check_weights(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], misfit: str, broken: str) -> None:
    """Check names, shapes and that every number is finite.

    Args:
        expected: of the network, on any device.
        misfit: what to do, or to think, where a name or a shape is another one.
        broken: what to do where a number is not finite.

    Raises:
        UdseError: the first weight that does not fit, by name, or NaN or infinity among them.
    """
    for name in sorted(expected.keys() | weights.keys()):
        wanted, found = (tuple(x[name].shape) if name in x else "none" for x in (expected, weights))
        if wanted != found:
            raise UdseError(f"expected the weight {name} of the shape {wanted}, got {found}: {misfit}")
    if not all(bool(torch.isfinite(weight).all()) for weight in weights.values()):
        raise UdseError(f"expected finite weights, got NaN or infinity: {broken}")

"""Checks of the numbers and tensors that users give: kind, range and shape. What does not fit gets one line."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from udse_fast.errors import UdseError


@dataclass(frozen=True)
class Range:
    """The numbers from `least` to `most`; `least` itself does not belong to it if it is `excluded`, NaN never does."""

    least: float
    most: float = math.inf
    excluded: bool = False

    def __contains__(self, value: Any) -> bool:
        return bool((self.least < value if self.excluded else self.least <= value) and value <= self.most)

    def __str__(self) -> str:
        if self.most == math.inf:
            return f"{'>' if self.excluded else '>='} {self.least:g}"
        most = _text(self.most)
        return f"above {self.least:g} and up to {most}" if self.excluded else f"from {_text(self.least)} to {most}"


def _text(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


def whole_number(name: str, value: Any, bounds: Range) -> int:
    """Return a Python or numpy integer in the range as an int.

    Raises:
        UdseError: another kind, or out of range.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or number not in bounds:
        raise UdseError(f"{name}: expected a whole number {bounds}, got {value!r}")
    return number


def real_number(name: str, value: Any, bounds: Range) -> float:
    """Return a Python or numpy number in the range as a float.

    Raises:
        UdseError: another kind, NaN, or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or value not in bounds:
        raise UdseError(f"{name}: expected a number {bounds}, got {value!r}")
    return float(value)


def flag(name: str, value: Any) -> bool:
    """Return True or False.

    Raises:
        UdseError: anything else.
    """
    if not isinstance(value, bool):
        raise UdseError(f"{name}: expected true or false, got {value!r}")
    return value


def complex_tensor(name: str, value: Any, shape: Sequence[int]) -> Tensor:
    """Return `value` if it is a complex tensor of the shape.

    Raises:
        UdseError: anything else.
    """
    if not isinstance(value, Tensor) or not value.is_complex() or tuple(value.shape) != tuple(shape):
        raise UdseError(f"{name}: expected a complex tensor {tuple(shape)}, got {described(value)}")
    return value


def described(value: Any) -> str:
    """Name the shape and dtype of a tensor or array, and the type of anything else."""
    if not hasattr(value, "shape") or not hasattr(value, "dtype"):
        return type(value).__name__
    return f"{type(value).__name__} {tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"

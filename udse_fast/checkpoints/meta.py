"""Networks without memory: their shapes alone, on torch's meta device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_DRAWN = torch.Tensor.normal_, torch.Tensor.uniform_


class _Undrawn(TorchFunctionMode):
    """Random numbers of tensors that have none: drawing them there imports torch's compiler, which takes a second."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if function in _DRAWN else function(*args, **(kwargs or {}))


@contextmanager
def shapes_alone() -> Iterator[None]:
    """Within it tensors are made on the meta device, and initial weights are not drawn."""
    with torch.device("meta"), _Undrawn():
        yield

"""Compact networks of sizes that a C++ core may get wrong, for tests that compare it with torch."""

from __future__ import annotations

from typing import Any, TypeVar

import torch

from udse_fast.networks.compact import Compact

Kind = TypeVar("Kind", bound=Compact)

SIZES: dict[str, dict[str, Any]] = {
    "whole panels": {"bins": 32, "channels": (16, 32), "blocks": (1, 1), "frame_channels": 32, "dilations": (1, 2)},
    "odd sizes": {
        "bins": 24, "stem": 2, "channels": (5, 19), "blocks": (2, 1), "frame_channels": 21, "dilations": (3,),
    },
    "one level": {
        "bins": 40, "stem": 8, "channels": (17,), "blocks": (1,), "frame_channels": 7, "dilations": (1, 4, 2),
        "sigma_data": (0.5, 0.1),
    },
    "four levels": {
        "bins": 64, "channels": (4, 48, 6, 80), "blocks": (0, 1, 0, 2), "frame_channels": 50, "dilations": (),
    },
}  # fmt: skip


def small_network(kind: type[Kind], size: str, **arguments: Any) -> Kind:
    """No weight is zero, and what follows from them neither very small nor very large."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        module = kind(**{"embedding": 20, **SIZES[size], **arguments})
        for parameter in module.parameters():
            if parameter.ndim != 4 or not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
    return module.eval().requires_grad_(False)

"""Fast and streaming unsupervised diffusion-based speech enhancement."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from udse_fast.errors import UdseError

if TYPE_CHECKING:
    from udse_fast.checkpoints.checkpoint import load_network, load_visual_encoder
    from udse_fast.enhancer import Enhancer
    from udse_fast.sampling.posterior import Posterior, posterior_sample
    from udse_fast.sampling.samplers import sampler_names
    from udse_fast.sampling.separation import Separated, separate_sources
    from udse_fast.separation.source import Source
    from udse_fast.separator import Separator
    from udse_fast.streaming.stream import Stream

__version__ = "0.1.0"
__all__ = [
    "Enhancer",
    "Posterior",
    "Separated",
    "Separator",
    "Source",
    "Stream",
    "UdseError",
    "load_network",
    "load_visual_encoder",
    "posterior_sample",
    "sampler_names",
    "separate_sources",
]

_HOME = {
    "Enhancer": "enhancer",
    "Posterior": "sampling.posterior",
    "Separated": "sampling.separation",
    "Separator": "separator",
    "Source": "separation.source",
    "Stream": "streaming.stream",
    "load_network": "checkpoints.checkpoint",
    "load_visual_encoder": "checkpoints.checkpoint",
    "posterior_sample": "sampling.posterior",
    "sampler_names": "sampling.samplers",
    "separate_sources": "sampling.separation",
}


def __getattr__(name: str) -> Any:
    """torch is imported with the first name that needs it, not with the package."""
    if name not in _HOME:
        raise AttributeError(f"module 'udse_fast' has no attribute {name!r}")
    return getattr(importlib.import_module(f"udse_fast.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)

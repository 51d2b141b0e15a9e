"""Networks by name: `build_network({"name": "ncsnpp", **arguments})`."""

from __future__ import annotations

import importlib
from typing import Any

from udse_fast.errors import UdseError
from udse_fast.networks.base import Network

_CLASSES = {
    "ncsnpp": ("udse_fast.networks.ncsnpp", "NCSNpp"),
    "ncsnpp-conditional": ("udse_fast.networks.conditional_ncsnpp", "ConditionalNCSNpp"),
    "ncsnpp-edm": ("udse_fast.networks.edm_ncsnpp", "EDMNCSNpp"),
    "ncsnpp-edm-av": ("udse_fast.networks.edm_ncsnpp", "SeeingEDMNCSNpp"),
    "ncsnpp-av": ("udse_fast.networks.ncsnpp_av", "AudioVisualNCSNpp"),
    "compact": ("udse_fast.networks.compact", "Compact"),
    "compact-av": ("udse_fast.networks.compact_av", "CompactAudioVisual"),
    "compact-conditional": ("udse_fast.networks.compact_conditional", "CompactConditional"),
    "compact-posterior": ("udse_fast.networks.compact_posterior", "CompactPosterior"),
}


def network_class(name: Any) -> type[Network]:
    """The class of an architecture, which says how it is trained and used.

    Raises:
        UdseError: there is no such architecture.
    """
    if name not in _CLASSES:
        raise UdseError(f"expected a network named {' or '.join(_CLASSES)}, got {name!r}: use a newer udse-fast?")
    module, class_name = _CLASSES[name]
    network: type[Network] = getattr(importlib.import_module(module), class_name)
    return network


def build_network(architecture: dict[str, Any]) -> Network:
    """A network with fresh weights; `architecture` holds its name and the arguments of its class.

    Raises:
        UdseError: unknown name or arguments.
    """
    arguments = dict(architecture)
    name = arguments.pop("name", None)
    network = network_class(name)
    try:
        return network(**arguments).float()  # whatever torch.set_default_dtype says
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RuntimeError) as error:
        raise UdseError(f"these are no arguments of the network {name}: {arguments} ({error})") from error

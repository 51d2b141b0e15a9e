"""From the complex state to the real tensor a network takes."""

from udse_fast.backends.dispatch import dispatched
from udse_fast.kernels.network_input import reference

__all__ = ["network_input"]

network_input = dispatched(reference.network_input)
